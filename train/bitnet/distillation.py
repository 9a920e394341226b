"""Quantisation-aware training (arXiv:2402.17764) with the parent model as the teacher (arXiv:1503.02531)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.bitnet.linear import set_lam
from train.data.packing import IGNORED, Batch
from train.loop import autocast, to_tensors


def lam(step: int, steps: int, share: float) -> float:
    """How far weights are quantised at the step numbered from 0: rises evenly from 0 to 1 over `share` of `steps`."""
    rising = share * steps
    return min(1.0, step / rising) if rising else 1.0


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, alpha: float, temperature: float) -> Tensor:
    """alpha CE + (1 - alpha) T^2 KL(teacher || student), both softened by T; nats per target token.

    Logits are (B, T, V), targets (B, T).
    """
    wanted = targets.flatten() != IGNORED
    flat, right = student.flatten(0, 1)[wanted].float(), targets.flatten()[wanted]
    loss = alpha * F.cross_entropy(flat, right)
    if alpha < 1:
        soft = (teacher.flatten(0, 1)[wanted].float() / temperature).log_softmax(-1)
        ours = (flat / temperature).log_softmax(-1)
        gap = F.kl_div(ours, soft, reduction="batchmean", log_target=True)
        loss = loss + (1 - alpha) * temperature**2 * gap
    return loss


class Distillation:
    """The objective. Sets the student's lam from the step, so that a resumed run goes on with the right one."""

    def __init__(
        self, teacher: nn.Module, *, steps: int, lambda_share: float, alpha: float, temperature: float,
        precision: str, device: torch.device,
    ) -> None:  # fmt: skip
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.steps, self.lambda_share = steps, lambda_share
        self.alpha, self.temperature = alpha, temperature
        self.precision, self.device = precision, device

    def __call__(self, student: nn.Module, batch: Batch, step: int) -> Tensor:
        """See `train.loop.Objective`."""
        set_lam(student, lam(step, self.steps, self.lambda_share))
        tokens, targets, documents = to_tensors(batch, self.device)
        with autocast(self.precision, self.device):
            logits = student(tokens, documents)
            with torch.no_grad():
                soft = self.teacher(tokens, documents) if self.alpha < 1 else logits
        return distillation_loss(logits, soft, targets, self.alpha, self.temperature)
