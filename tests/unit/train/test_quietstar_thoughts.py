"""Thoughts side by side are thoughts one by one, and what is learnt from them is what the paper says."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import SHAPE

from train.model.llama import Llama, same_document
from train.quietstar.blocks import Pondered, Thoughts, arrange
from train.quietstar.objective import Wanted, of_thoughts, places
from train.quietstar.thinker import Considered, Thinker

THINK, THOUGHT, ASSISTANT, AHEAD, ROOM = 60, 61, 5, 3, 4


def thinker() -> Thinker:
    torch.manual_seed(1)
    made = Thinker(Llama(SHAPE), THINK, THOUGHT, (0, THINK), steps=10, measures=4)
    for parameter in made.parameters():  # far from the small first weights, so that everything shows
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def rows(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of two documents each, the second row with padding."""
    tokens = torch.randint(6, 60, (2, 16), generator=generator)
    documents = torch.tensor([[1] * 7 + [2] * 9, [1] * 5 + [2] * 6 + [0] * 5])
    return tokens, documents


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(0, 14), st.integers(0, ROOM)), min_size=1, max_size=4))
def test_side_by_side_is_one_by_one(seed: int, drawn: list[tuple[int, int]]):
    generator, model = torch.Generator().manual_seed(seed), thinker()
    tokens, documents = rows(generator)
    at = torch.tensor([[where for where, _ in drawn]] * 2)
    lengths = torch.tensor([[size for _, size in drawn]] * 2)
    ids = torch.randint(6, 59, (2, len(drawn), ROOM), generator=generator)
    logits, found = model(tokens, documents, Pondered(tokens, documents, Thoughts(at, ids, lengths), AHEAD))
    assert found is not None
    torch.testing.assert_close(logits, model.model(tokens, documents), atol=1e-4, rtol=1e-4)
    for r in range(2):
        for m, (where, size) in enumerate(drawn):
            own = tokens[r][(documents[r] == documents[r, where])]
            first = int((documents[r] == documents[r, where]).nonzero()[0])
            before, after = own[: where - first + 1], own[where - first + 1 :][:AHEAD]
            text = torch.cat((before, torch.tensor([THINK]), ids[r, m, :size], torch.tensor([THOUGHT]), after))[None]
            hidden = model.model.hidden(text)
            through = model.model.lm_head(hidden)[0].log_softmax(-1)
            start = len(before) + 1 + size  # of the end mark
            plain_hidden = model.model.hidden(torch.cat((before, after))[None])
            plain = model.model.lm_head(plain_hidden)[0]
            assert found.known[r, m].sum() == len(after)
            for n, target in enumerate(after.tolist()):
                weight = model.head(plain_hidden[0, len(before) - 1 + n], hidden[0, start + n])
                mixed = weight * model.model.lm_head(hidden[0, start + n]) + (1 - weight) * plain[len(before) - 1 + n]
                want = (plain[len(before) - 1 + n].log_softmax(-1)[target], through[start + n, target],
                        mixed.log_softmax(-1)[target], weight)  # fmt: skip
                got = (found.plain[r, m, n], found.thought[r, m, n], found.mixed[r, m, n], found.weight[r, m, n])
                torch.testing.assert_close(torch.stack(got), torch.stack(want), atol=2e-4, rtol=2e-4)
            banned = model.model.lm_head(hidden)[0]
            banned[:, [0, THINK]] = -torch.inf
            steps = banned.log_softmax(-1)[len(before) : start]
            said = [*ids[r, m, :size].tolist(), THOUGHT]
            alone = sum(steps[i, token] for i, token in enumerate(said))
            torch.testing.assert_close(found.said[r, m], alone, atol=5e-4, rtol=5e-4)


def test_thoughts_are_drawn_as_if_each_were_alone():
    model = thinker()
    tokens, documents = rows(torch.Generator().manual_seed(3))
    at = torch.tensor([[2, 9, 11], [1, 6, 8]])
    greedy = model.ponder(tokens, documents, at, ROOM, temperature=0)
    for r in range(2):
        for m, where in enumerate(at[r].tolist()):
            ids = [*tokens[r][: where + 1][documents[r][: where + 1] == documents[r, where]].tolist(), THINK]
            for size in range(ROOM + 1):
                if size == ROOM:
                    assert greedy.lengths[r, m] == ROOM
                    break
                logits = model.model(torch.tensor([ids]))[0, -1]
                logits[[0, THINK]] = -torch.inf
                token = int(logits.argmax())
                if token == THOUGHT:
                    assert greedy.lengths[r, m] == size
                    break
                assert greedy.ids[r, m, size] == token
                ids.append(token)


def test_a_row_sees_no_thought():
    tokens, documents = rows(torch.Generator().manual_seed(0))
    thoughts = Thoughts(torch.tensor([[3], [3]]), torch.full((2, 1, ROOM), 7), torch.tensor([[2], [4]]))
    blocks = arrange(Pondered(tokens, documents, thoughts, AHEAD), THINK, THOUGHT)
    assert torch.equal(blocks.mask[:, :, :16, :16], same_document(documents))
    assert not blocks.mask[:, :, :16, 16:].any()


WANTED = Wanted(
    positions=4, thoughts=3, thought_tokens=ROOM, ahead=AHEAD, anywhere=0.5, temperature=1, reinforce=1, weight=1
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_thinking_begins_where_something_follows(seed: int):
    torch.manual_seed(seed)
    tokens, documents = rows(torch.Generator().manual_seed(seed))
    tokens[0, [2, 9]], tokens[1, 3] = ASSISTANT, ASSISTANT
    tokens[0, 10] = THINK  # a document that has its thought already
    at = places(tokens, documents, ASSISTANT, THINK, WANTED, last=12)
    assert at.shape == (2, 12)
    for r in range(2):
        chosen = at[r, ::3]
        assert torch.equal(at[r], chosen.repeat_interleave(3)) and len(set(chosen.tolist())) == 4
        for where in chosen.tolist():
            assert where <= 12 and documents[r, where] == documents[r, where + 1] != 0
            assert tokens[r, where + 1] != THINK
    assert 2 in at[0, :6] and 3 in at[1, :6] and 9 not in at[0]


def considered(thought: torch.Tensor, said: torch.Tensor) -> Considered:
    """One row of one position with its thoughts: likelihoods (S, A)."""
    known = torch.ones_like(thought, dtype=torch.bool)
    return Considered(torch.zeros_like(thought), thought, thought, known, torch.zeros_like(thought), said)


def test_only_thoughts_that_helped_more_than_others_are_reinforced():
    thought = torch.tensor([[[-1.0, -1.0, -1.0], [-2.0, -1.0, -1.0], [-6.0, -1.0, -1.0]]])
    said = torch.tensor([[-4.0, -5.0, -6.0]], requires_grad=True)
    loss, advantage = of_thoughts(considered(thought, said), WANTED)
    loss.backward()
    # Rewards are -3, -4 and -8, their mean -5; the mean over 3 thoughts of k = 4 tokens.
    assert advantage.tolist() == [[2.0, 1.0, 0.0]]
    assert said.grad is not None

    torch.testing.assert_close(said.grad, torch.tensor([[-2 / 12, -1 / 12, 0.0]]))


def test_reinforcing_learns_the_thought_that_tells():
    """A world where one thought token gives the future away: REINFORCE finds it, with no other signal."""
    torch.manual_seed(0)
    logits = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        drawn = torch.multinomial(logits.softmax(-1), 3, replacement=True)  # (S,)
        thought = torch.where(drawn == 6, -0.1, -3.0)[None, :, None]
        loss, _ = of_thoughts(considered(thought, logits.log_softmax(-1)[drawn][None]), WANTED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.softmax(-1)[6] > 0.8


def test_a_thought_begins_with_little_to_say():
    torch.manual_seed(0)
    model = Thinker(Llama(SHAPE), THINK, THOUGHT, (0,), 1, 4)
    hidden = torch.randn(5, SHAPE.width)
    weight = model.head(hidden, hidden)
    assert ((weight > 0) & (weight < 0.1)).all()
