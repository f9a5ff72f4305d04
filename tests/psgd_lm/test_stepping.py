from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psgd_lm.stepping import FiniteGuard, is_finite, lr_factor, second_derivatives


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


def test_second_derivatives_are_taken_with_the_kernel_that_has_them():
    class Newton(torch.optim.SGD):
        needs_closure = True

    query = torch.randn(1, 1, 4, 8, requires_grad=True)
    for kind, has_them in ((torch.optim.SGD, False), (Newton, True)):
        with second_derivatives(kind([query])):
            loss = F.scaled_dot_product_attention(query, query, query, is_causal=True).sum()
        (grad,) = torch.autograd.grad(loss, query, create_graph=True)
        with nullcontext() if has_them else pytest.raises(RuntimeError, match="not implemented"):
            torch.autograd.grad(grad.sum(), query)


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
