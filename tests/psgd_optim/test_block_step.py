"""One block's step: who starts, who is averaged, who is fitted, what comes out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from psgd_optim import PSGD, Diagonal, Fitting, MomentumWhitening
from psgd_optim.averages import Nesterov
from psgd_optim.block_step import StepRules, precondition_all
from psgd_optim.blocks import Block
from psgd_optim.criteria import Criterion, GradientWhitening, UnbiasedFisher
from psgd_optim.linalg import Mask
from psgd_optim.noise import noise_generator
from psgd_optim.runners import Eager
from psgd_optim.schedules import Adaptive
from psgd_optim.updates import Update
from psgd_optim.views import Stacked

QUIET = GradientWhitening(damping=0.0)


def block(*grads: list[float], momentum: bool = False, numbers: tuple[str, ...] = ()) -> Block:
    params = [torch.ones(len(g), dtype=torch.float64).requires_grad_() for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float64)
    tensors = (["momentum"] if momentum else []) + ["mean_grad"]
    return Block.allocate(Stacked(params), Diagonal(), tensors, numbers)


def rules(criterion: Criterion = QUIET, **settings: Any) -> StepRules:
    fitting = settings.pop("fitting", Fitting(init_scale=1.0))
    defaults: dict[str, Any] = {
        "rate": 0.0,
        "momentum": 0.0,
        "nesterov": False,
        "pairs": None,
        "uses": 1.0,
        "generator": lambda: noise_generator(torch.device("cpu"), 0, 0, 0),
    }
    return StepRules(criterion=criterion, fitting=fitting, **defaults | settings)


def precondition(block: Block, of: StepRules) -> tuple[Update, Mask]:
    return precondition_all([(block, of)], Eager())[0]


def set_grads(stack: Block, *grads: list[float]) -> None:
    for p, g in zip(stack.view.params, grads, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float64)


def test_rows_start_with_their_first_finite_gradient_that_is_not_zero() -> None:
    stack = block([1.0, 2.0], [0.0, 0.0], [math.nan, 1.0], [3.0, math.inf])
    update, ok = precondition(stack, rules())
    assert update.rows.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]
    assert ok is not None
    assert ok.tolist() == [True, True, False, False]
    assert stack.steps.tolist() == [1, 0, 0, 0]
    assert stack.pending == {1, 2, 3}
    set_grads(stack, [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0])
    precondition(stack, rules())
    assert stack.steps.tolist() == [2, 1, 1, 1]
    assert stack.pending == set()


def test_a_given_scale_keeps_the_precision_of_the_parameters() -> None:
    stack = block([1.0, 2.0])
    precondition(stack, rules(fitting=Fitting(init_scale=0.1)))
    assert stack.state["q"].tolist() == [[0.1, 0.1]]


def test_only_sound_rows_are_averaged_and_fitted() -> None:
    stack = block([1.0, 2.0], [3.0, 4.0], momentum=True)
    settings: dict[str, Any] = {"rate": 0.5, "momentum": 0.9}
    criterion = MomentumWhitening(damping=0.0)
    precondition(stack, rules(criterion, **settings))
    q, average = stack.state["q"].clone(), stack.extra["momentum"].clone()
    set_grads(stack, [math.inf, 1.0], [1.0, 1.0])
    update, _ = precondition(stack, rules(criterion, **settings))
    assert torch.equal(stack.state["q"][0], q[0])
    assert torch.equal(stack.extra["momentum"][0], average[0])
    assert not torch.equal(stack.state["q"][1], q[1])
    assert update.rows[0].tolist() == [0, 0]
    torch.testing.assert_close(stack.extra["momentum"][1], (average[1] + 1) / 2)


def test_nesterov_looks_one_gradient_ahead() -> None:
    grads = [[1.0, 2.0], [4.0, -1.0], [0.5, 0.5]]
    average, b = torch.zeros(2, dtype=torch.float64), 0.6
    stack, plain = block(grads[0], momentum=True), block(grads[0], momentum=True)
    for t, g in enumerate(grads):
        set_grads(stack, g)
        set_grads(plain, g)
        update, _ = precondition(stack, rules(momentum=b, nesterov=True))
        behind, _ = precondition(plain, rules(momentum=b))
        grad, ramp = torch.tensor(g, dtype=torch.float64), min(t / (t + 1), b)
        average = ramp * average + (1 - ramp) * grad
        torch.testing.assert_close(update.rows[0], b * average + (1 - b) * grad, rtol=1e-6, atol=0)
        torch.testing.assert_close(behind.rows[0], average, rtol=1e-6, atol=0)


def test_nesterov_is_a_setting_of_a_group_that_can_be_scheduled() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    groups = [{"params": params[:1], "momentum": Nesterov(0.5)}, {"params": params[1:]}]
    optimizer = PSGD(groups, 0.1, clip=(), momentum=0.5, fitting=Fitting(gate=0.0, init_scale=1.0))
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5]
    for g in (1.0, 3.0):
        for p in params:
            p.grad = torch.full((2,), g)
        optimizer.step()
    # Averages 1 and 2; steps 1 and 2 along them, or 1 and (2 + 3) / 2 when looking ahead.
    torch.testing.assert_close(params[1].detach(), torch.full((2,), 1 - 0.1 * 3))
    torch.testing.assert_close(params[0].detach(), torch.full((2,), 1 - 0.1 * 3.5))
    with pytest.raises(ValueError, match=r"momentum = 1.5; give a number in \[0, 1\)"):
        PSGD(params, momentum=Nesterov(1.5))


@pytest.mark.parametrize("update_first", [False, True])
def test_the_order_decides_which_q_preconditions_and_not_what_it_becomes(
    update_first: bool,
) -> None:
    stack = block([1.0, 2.0])
    fitting = Fitting(init_scale=1.0, update_first=update_first)
    update, _ = precondition(stack, rules(rate=0.5, fitting=fitting))
    q = 1 - 0.5 * (torch.tensor([1.0, 4.0]) - 1) / (torch.tensor([1.0, 4.0]) + 1)
    torch.testing.assert_close(stack.state["q"][0].float(), q)
    expected = torch.tensor([1.0, 2.0]) * (q.square() if update_first else 1)
    torch.testing.assert_close(update.rows[0].float(), expected)


def test_a_mean_gradient_is_remembered_after_the_fit_that_it_must_not_see() -> None:
    stack = block([2.0, 4.0])
    criterion = UnbiasedFisher(batch_size=4, damping=0.0)
    precondition(stack, rules(criterion, rate=0.5))
    first = stack.state["q"].clone()
    other = block([2.0, 4.0])
    precondition(other, rules(rate=0.5))
    assert torch.equal(first, other.state["q"])  # the mean was still zero
    assert stack.extra["mean_grad"].tolist() == [[2, 4]]


def test_a_step_too_large_for_the_dtype_is_no_step() -> None:
    stack = block([1.0, 1.0])
    stack.state["q"].fill_(1e200)
    stack.steps += 1
    stack.pending.clear()
    update, sound = precondition(stack, rules())
    assert update.rows.tolist() == [[0, 0]]
    assert sound is not None
    assert sound.tolist() == [False]  # it is counted as skipped


# --- the adaptive step size ----------------------------------------------------------------------


def test_the_adaptive_rate_follows_the_whitening_error() -> None:
    adaptive = Adaptive(low=0.05, high=0.8, decay=0.75)
    stack = block([2.0, 0.0], [1.0, 1.0], numbers=("whitened",))
    fitting = Fitting(init_scale=1.0, precond_lr=adaptive)
    held, seen = torch.zeros(2, dtype=torch.float64), []
    update = Diagonal.update

    def watching(self: Any, state: Any, probe: Any, draws: Any, rate: Tensor) -> None:
        seen.append(rate.clone())
        update(self, state, probe, draws, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diagonal, "update", watching)
        for _ in range(4):
            q = stack.state["q"].clone()
            precondition(stack, rules(rate=0.8, fitting=fitting))
            grads = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
            q = torch.ones_like(q) if len(seen) == 1 else q
            error = ((q.square() * grads).square().mean(dim=1) - 1).abs().clamp(max=1)
            held = 0.75 * held + 0.25 * (1 - error)
            torch.testing.assert_close(seen[-1], (1 - held).clamp(0.05, 0.8), rtol=1e-6, atol=0)
    assert float(seen[0][0]) == pytest.approx(0.8)  # an error of 1: mean |P h|^2 is 2
    assert float(seen[0][1]) == pytest.approx(0.75)  # already white, but not yet known to be


def test_rows_that_are_not_fitted_keep_their_whitening_error() -> None:
    stack = block([1.0, 1.0], [math.nan, 1.0], numbers=("whitened",))
    fitting = Fitting(init_scale=1.0, precond_lr=Adaptive())
    precondition(stack, rules(rate=0.7, fitting=fitting))
    assert float(stack.extra["whitened"][0]) == pytest.approx(0.1)
    assert float(stack.extra["whitened"][1]) == 0
