import pytest
import torch
from torch import nn

from psgd_lm.stepping import (
    FiniteGuard,
    check_clipping,
    is_finite,
    lr_factor,
    needs_closure,
    take_step,
)
from psgd_optim.types import InputError


class ClosureSGD(torch.optim.SGD):
    """Differentiates the loss itself, as a second-order optimizer does."""

    needs_closure = True

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        parameters = self.param_groups[0]["params"]
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= self.param_groups[0]["lr"] * grad
        return loss


def factors(steps=100, warmup=10, final=0.1):
    return [lr_factor(s, steps=steps, warmup=warmup, final=final) for s in range(steps)]


def test_lr_grows_then_falls_to_its_final_part():
    values = factors()
    assert values[0] == pytest.approx(1 / 11)
    assert max(values) == values[10] == 1
    assert values[-1] == pytest.approx(0.1)
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)


def test_lr_of_the_shortest_runs():
    assert factors(steps=1, warmup=0) == [1]
    assert factors(steps=2, warmup=1) == [0.5, 1]
    assert set(factors(final=1.0)[10:]) == {1.0}


def quadratic(optimizer_class, grad_clip=0.0):
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    loss = take_step(optimizer, model, lambda: model.weight.square().sum(), grad_clip)
    return loss, model


def test_both_kinds_of_optimizer_take_the_same_step():
    plain, closure = quadratic(torch.optim.SGD), quadratic(ClosureSGD)
    for loss, model in (plain, closure):
        assert loss.item() == 18
        assert not loss.requires_grad
        torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.4))
    assert needs_closure(ClosureSGD([nn.Parameter(torch.zeros(1))]))


def test_gradient_is_clipped_and_then_cleared():
    _, model = quadratic(torch.optim.SGD, grad_clip=1.0)
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 3 - 0.1 / 2**0.5))
    assert model.weight.grad is None


def test_clipping_what_only_the_optimizer_sees_is_refused():
    parameters = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(InputError, match="give --grad-clip 0"):
        check_clipping(ClosureSGD(parameters), 1.0)
    check_clipping(ClosureSGD(parameters), 0.0)
    check_clipping(torch.optim.SGD(parameters), 1.0)


def test_guard_remembers_the_first_bad_step():
    guard = FiniteGuard(torch.device("cpu"))
    for step, loss in enumerate((1.0, 2.0, float("inf"), 1.0, float("nan")), start=1):
        guard.watch(torch.tensor(loss), step)
        assert guard.first_bad_step() == (3 if step >= 3 else 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_number_makes_a_model_not_finite(bad):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert is_finite(model)
    model[1].bias.data[1] = bad
    assert not is_finite(model)
