import pytest
import torch
from torch import nn

from psgd_optim import PSGD, Every, Fitting
from psgd_optim.criteria import Newton
from psgd_optim.curvature import Exact, Given
from psgd_optim.tools.stepping import (
    check_clipping,
    clip_gradients,
    needs_closure,
    take_step,
    takes_pairs,
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


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_clipping_is_torchs_and_returns_the_norm(max_norm):
    torch.manual_seed(0)
    mine = nn.Linear(4, 3)
    theirs = nn.Linear(4, 3)
    theirs.load_state_dict(mine.state_dict())
    for model in (mine, theirs):
        model(torch.ones(2, 4)).square().sum().backward()
    norm = clip_gradients(mine.parameters(), max_norm)
    limit = max_norm or float("inf")
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert torch.equal(norm, expected)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_sparse_gradients_are_clipped_like_dense_ones():
    words = torch.tensor([1, 1, 4])
    models = [nn.Embedding(5, 3, sparse=sparse) for sparse in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    norms = []
    for model in models:
        model(words).square().sum().backward()
        norms.append(clip_gradients(model.parameters(), 0.5))
    torch.testing.assert_close(norms[0], norms[1])  # sums in another order
    torch.testing.assert_close(models[0].weight.grad.to_dense(), models[1].weight.grad)
    assert models[1].weight.grad.norm() == pytest.approx(0.5, rel=1e-5)


def test_pairs_are_asked_for_in_steps_that_fit_alone():
    model = nn.Linear(2, 1, bias=False)
    fitting = Fitting(gate=Every(3))
    given = PSGD(model.parameters(), criterion=Newton(source=Given()), fitting=fitting)
    assert takes_pairs(given)
    other = PSGD(model.parameters(), criterion=Newton(source=Exact()), fitting=fitting)
    assert not any(map(takes_pairs, (other, torch.optim.SGD(model.parameters()))))
    asked = []

    def pair():
        asked.append(len(steps))
        return [torch.ones(1, 2)], [torch.full((1, 2), 2.0)]

    for optimizer in (given, other):
        steps = []
        for _ in range(6):
            loss = take_step(
                optimizer, model.parameters(), lambda: model.weight.square().sum(), 0.0, pair
            )
            steps.append(loss)
        assert steps[-1] < steps[0]
    assert asked == [0, 3]
