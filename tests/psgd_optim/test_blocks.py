import pytest
import torch

from psgd_optim.blocks import Block
from psgd_optim.forms.kron import Kron


def block(dtype: torch.dtype = torch.float32) -> Block:
    rng = torch.Generator().manual_seed(0)
    params = [torch.randn(4, 1, 3, generator=rng).to(dtype).requires_grad_() for _ in range(3)]
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, float(i + 1))
    return Block.allocate(params, Kron(), momentum=True)


def test_rows_are_views_of_the_stacks() -> None:
    stacked = block()
    rows = stacked.rows()
    stacked.state["q0"][1].fill_(7)
    stacked.steps[2] = 5
    assert bool((rows[1]["q0"] == 7).all())
    assert float(rows[2]["step"]) == 5
    assert rows[0]["momentum"].shape == (4, 1, 3)
    for row in rows:
        for name in ("q0", "l0"):
            shared = row[name].untyped_storage().data_ptr()
            assert shared == stacked.state[name].untyped_storage().data_ptr()


def test_gather_stacks_the_gradients_in_single_precision() -> None:
    grads = block(torch.bfloat16).gather()
    assert grads.shape == (3, 4, 3)
    assert grads.dtype == torch.float32
    torch.testing.assert_close(grads[:, 0, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_the_average_ramps_up_and_then_decays() -> None:
    stacked = block()
    ones = torch.ones(3)
    seen = []
    for t in range(30):
        stacked.steps += 1
        grads = torch.full((3, 4, 3), float(t))
        seen.append(float(stacked.average(grads, ones, 0.9)[0, 0, 0]))
    assert seen[:3] == [0.0, 0.5, 1.0]  # the plain mean while t / (t + 1) < 0.9
    expected, mean = [], 0.0
    for t in range(30):
        decay = min(t / (t + 1), 0.9)
        mean = decay * mean + (1 - decay) * t
        expected.append(mean)
    assert seen == pytest.approx(expected, rel=1e-5)


def test_inactive_rows_keep_their_average() -> None:
    stacked = block()
    stacked.steps += torch.tensor([1.0, 0.0, 1.0])
    stacked.average(torch.ones(3, 4, 3), torch.tensor([1.0, 0.0, 1.0]), 0.9)
    torch.testing.assert_close(
        stacked.momentum[:, 0, 0], torch.tensor([1.0, 0.0, 1.0]), rtol=0, atol=0
    )


def test_a_selection_writes_back_only_its_rows() -> None:
    stacked = block()
    part = stacked.select([0, 2])
    part.steps += 1
    part.state["q0"] += 1
    part.momentum += 1
    before = stacked.state["q0"].clone()
    stacked.write_back(part)
    assert stacked.steps.tolist() == [1, 0, 1]
    torch.testing.assert_close(stacked.state["q0"][1], before[1], rtol=0, atol=0)
    torch.testing.assert_close(stacked.state["q0"][2], before[2] + 1, rtol=0, atol=0)
    assert stacked.momentum[1].abs().sum() == 0
    assert stacked.momentum[2].min() == 1


def test_selecting_all_rows_copies_nothing() -> None:
    stacked = block()
    assert stacked.select([0, 1, 2]) is stacked


def test_scatter_decays_then_steps() -> None:
    stacked = block()
    before = [p.detach().clone() for p in stacked.params]
    with torch.no_grad():
        stacked.scatter(torch.ones(3, 4, 3), lr=0.1, weight_decay=0.5)
    for new, old in zip(stacked.params, before, strict=True):
        torch.testing.assert_close(new.detach(), 0.95 * old - 0.1)
