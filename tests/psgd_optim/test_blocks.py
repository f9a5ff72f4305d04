"""Blocks: rows are views of stacks, and selections write back what they own and nothing else."""

import math

import pytest
import torch

from psgd_optim import PSGD, Every, Fitting
from psgd_optim.blocks import Block
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.forms.kron import Kron
from psgd_optim.scope import Split
from psgd_optim.types import State
from psgd_optim.views import Joined, Stacked


def block(dtype: torch.dtype = torch.float32) -> Block:
    rng = torch.Generator().manual_seed(0)
    params = [torch.randn(4, 1, 3, generator=rng).to(dtype).requires_grad_() for _ in range(3)]
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, float(i + 1))
    return Block.allocate(Stacked(params), Kron(), ["momentum"], ["radius"])


def pieces() -> Block:
    params = [torch.zeros(5, 3).requires_grad_() for _ in range(3)]
    view, form = Split(Diagonal(), 3).arrange([("", p) for p in params])[0]
    return Block.allocate(view, form, ["momentum"], ["radius"])


def test_entries_are_views_of_the_stacks() -> None:
    stacked = block()
    rows = dict(enumerate(row for _, row in stacked.entries()))
    stacked.state["q0"][1].fill_(7)
    stacked.steps[2] = 5
    assert bool((rows[1]["q0"] == 7).all())
    assert float(rows[2]["step"]) == 5
    assert rows[0]["momentum"].shape == (4, 3)
    assert rows[0]["radius"].shape == ()
    for row in rows.values():
        for name in ("q0", "l0"):
            shared = row[name].untyped_storage().data_ptr()
            assert shared == stacked.state[name].untyped_storage().data_ptr()


def test_a_unit_of_several_rows_is_one_entry_with_a_name_of_its_own() -> None:
    cut = pieces()  # (5, 3) into (2, 3) and (3, 3)
    entries = list(cut.entries())
    assert [param is p for (param, _), p in zip(entries, cut.view.params, strict=True)] == [
        True
    ] * 3
    assert set(entries[0][1]) == {
        f"2x3/{name}" for name in ("step", "momentum", "radius", "q", "l")
    }
    assert entries[0][1]["2x3/q"].shape == (1, 2, 3) or entries[0][1]["2x3/q"].shape == (2, 3)


def test_what_is_allocated_has_the_dtypes_it_should() -> None:
    half = block(torch.bfloat16)
    assert half.extra["momentum"].dtype == half.extra["radius"].dtype == torch.float32
    double = block(torch.float64)
    assert double.extra["momentum"].dtype == torch.float64
    assert double.steps.dtype == torch.float32


def test_a_plan_without_memory_has_the_same_layout() -> None:
    real = block()
    plan = Block.allocate(real.view, Kron(), ["momentum"], ["radius"], torch.device("meta"))
    for mine, theirs in ((real.state, plan.state), (real.extra, plan.extra)):
        assert {n: (x.shape, x.dtype) for n, x in mine.items()} == {
            n: (x.shape, x.dtype) for n, x in theirs.items()
        }
        assert all(x.is_meta for x in theirs.values())


def test_gradients_are_stacked_in_single_precision() -> None:
    grads = block(torch.bfloat16).gather_gradients()
    assert grads.shape == (3, 4, 3)
    assert grads.dtype == torch.float32
    torch.testing.assert_close(grads[:, 0, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_a_selection_writes_back_only_its_rows() -> None:
    stacked = block()
    part = stacked.select([0, 2])
    part.steps += 1
    for entry in (part.state["q0"], part.extra["momentum"], part.extra["radius"]):
        entry += 1
    part.pending.clear()
    before = stacked.state["q0"].clone()
    stacked.write_back(part)
    assert stacked.steps.tolist() == stacked.extra["radius"].tolist() == [1, 0, 1]
    torch.testing.assert_close(stacked.state["q0"][1], before[1], rtol=0, atol=0)
    torch.testing.assert_close(stacked.state["q0"][2], before[2] + 1, rtol=0, atol=0)
    assert stacked.extra["momentum"][1].abs().sum() == 0
    assert stacked.extra["momentum"][2].min() == 1
    assert stacked.pending == {1}


def test_a_selection_of_pieces_has_all_rows_of_its_units() -> None:
    params = [torch.zeros(6).requires_grad_() for _ in range(3)]
    view, form = Split(Diagonal(), 3).arrange([("", p) for p in params])[0]
    cut = Block.allocate(view, form)
    part = cut.select([2])
    assert part.pending == {0, 1}
    part.steps += 1
    part.wait_for(torch.tensor([False, True]))
    cut.write_back(part)
    assert cut.steps.tolist() == [0, 0, 0, 0, 1, 1]
    assert cut.pending == {0, 1, 2, 3, 5}


def test_selecting_all_units_copies_nothing() -> None:
    stacked = block()
    assert stacked.select([0, 1, 2]) is stacked


def test_a_unit_has_a_gradient_when_one_of_its_parameters_has() -> None:
    params = [torch.zeros(2).requires_grad_() for _ in range(3)]
    params[1].grad = torch.ones(2)
    assert Block.allocate(Stacked(params), Kron()).units_with_gradient() == [1]
    assert Block.allocate(Joined(params), Kron()).units_with_gradient() == [0]


def test_sparse_gradients_are_refused() -> None:
    stacked = block()
    param = stacked.view.params[0]
    param.grad = torch.zeros(4, 1, 3).to_sparse()
    with pytest.raises(TypeError, match=r"sparse gradient for a parameter of shape \(4, 1, 3\)"):
        stacked.units_with_gradient()


def test_the_host_counts_only_steps_of_all_rows() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    block = Block.allocate(Stacked(params), Diagonal())
    for _ in range(11):
        block.count(None)
    assert block.has_ramped(0.9) and not block.has_ramped(0.95)
    block.count(torch.tensor([True, False]))
    assert not block.has_ramped(0.91)  # 11 steps of the second row


def test_p_is_formed_again_only_when_the_state_or_the_plan_has_changed() -> None:
    params = [torch.randn(6, 3, requires_grad=True) for _ in range(2)]
    block = Block.allocate(Stacked(params), Kron(max_skew=math.inf))
    first = block.operator(64.0)
    assert set(first) == {"p0", "p1"}
    assert block.operator(64.0) is first
    assert set(block.operator(1.0)) == {"q0", "p1"}  # 6^2 > 18: two products cost less once
    again = block.operator(64.0)
    block.state["q0"][1] *= 2  # by whomever
    torch.testing.assert_close(block.operator(64.0)["p0"][1], 4 * again["p0"][1])
    block.state["q1"] = 3 * block.state["q1"]
    torch.testing.assert_close(block.operator(64.0)["p1"], 9 * again["p1"])


def test_a_selection_forms_no_product_that_it_would_lose() -> None:
    params = [torch.randn(8, 2, requires_grad=True) for _ in range(3)]
    fitting = Fitting(gate=Every(100))
    optimizer = PSGD(params, form=Kron(max_skew=math.inf), fitting=fitting)
    seen: list[float] = []
    prepare = Kron.prepare

    def watched(self: Kron, state: State, uses: float) -> State:
        seen.append(uses)
        return prepare(self, state, uses)

    for step in range(70):  # beyond the first stretch, in which the gate's rate is not known yet
        for p in params:
            p.grad = torch.randn_like(p)
        if step == 68:
            params[1].grad = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Kron, "prepare", watched)
            optimizer.step()
        if step >= 67:
            seen.append(-step)
    tail = seen[seen.index(-67) :]
    assert tail[:3] == [-67, 1.0, -68]
    assert tail[3] > 8  # the whole block again


def test_state_of_inference_mode_is_stepped_without_a_cache() -> None:
    with torch.inference_mode():
        p = torch.ones(4, 3)
        optimizer = PSGD([p], lr=0.1, form=Kron(max_skew=math.inf))
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert bool((p < 1).all())
