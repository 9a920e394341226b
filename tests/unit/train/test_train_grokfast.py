"""GrokFast-EMA: mean <- alpha * mean + (1 - alpha) * g; g <- g + lamb * mean."""

import pytest
import torch

from train.grokfast import GrokFast


def filtered(gradients, alpha, lamb):
    weight = torch.zeros(1, requires_grad=True)
    filter_ = GrokFast([weight], alpha, lamb)
    out = []
    for gradient in gradients:
        weight.grad = torch.tensor([float(gradient)])
        filter_.filter()
        out.append(weight.grad.item())
    return out


@pytest.mark.parametrize(
    ("gradients", "alpha", "lamb", "expected"),
    [
        ([1, 1, 1], 0.98, 2.0, [3, 3, 3]),  # a steady gradient is amplified 1 + lamb times
        ([1, -1], 0.5, 2.0, [3, -1]),  # mean 1, then 0
        ([4, 0, 0], 0.5, 1.0, [8, 2, 1]),  # an old one fades by alpha
        ([5, -7], 0.9, 0.0, [5, -7]),  # lamb 0 changes nothing
        ([2, 6], 0.0, 1.0, [4, 12]),  # alpha 0 remembers nothing
    ],
)
def test_gradients_are_amplified_by_their_running_mean(gradients, alpha, lamb, expected):
    assert filtered(gradients, alpha, lamb) == pytest.approx(expected)


def test_a_restored_filter_goes_on_where_it_was():
    weight = torch.zeros(1, requires_grad=True)
    before, after = GrokFast([weight], 0.5, 1.0), GrokFast([weight], 0.5, 1.0)
    weight.grad = torch.tensor([4.0])
    before.filter()
    after.load_state_dict(before.state_dict())
    weight.grad = torch.tensor([0.0])
    after.filter()
    assert weight.grad.item() == pytest.approx(2.0)
