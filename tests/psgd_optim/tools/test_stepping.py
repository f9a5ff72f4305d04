import pytest
import torch
from torch import nn

from psgd_optim.tools.stepping import check_clipping, needs_closure, take_step
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


def quadratic(optimizer_class, max_norm=0.0):
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    loss = take_step(optimizer, model.parameters(), lambda: model.weight.square().sum(), max_norm)
    return loss, model


def test_both_kinds_of_optimizer_take_the_same_step():
    plain, closure = quadratic(torch.optim.SGD), quadratic(ClosureSGD)
    for loss, model in (plain, closure):
        assert loss.item() == 18
        assert not loss.requires_grad
        torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.4))
    assert needs_closure(ClosureSGD([nn.Parameter(torch.zeros(1))]))


def test_gradient_is_clipped_and_then_cleared():
    _, model = quadratic(torch.optim.SGD, max_norm=1.0)
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 3 - 0.1 / 2**0.5))
    assert model.weight.grad is None


def test_clipping_what_only_the_optimizer_sees_is_refused():
    parameters = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(InputError, match="give --grad-clip 0"):
        check_clipping(ClosureSGD(parameters), 1.0, "--grad-clip")
    check_clipping(ClosureSGD(parameters), 0.0, "--grad-clip")
    check_clipping(torch.optim.SGD(parameters), 1.0, "--grad-clip")
