"""Hessian-vector products against explicit Hessians, and what an evaluation leaves behind."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, Diagonal, Fitting
from psgd_optim.criteria import Newton
from psgd_optim.curvature import (
    Exact,
    FiniteDifference,
    Given,
    GradientDifference,
    LossSource,
    given_pairs,
)

Loss = Callable[[list[Tensor]], Tensor]
SOURCES = [Exact(), FiniteDifference(), FiniteDifference(central=True)]
SHAPES = [(3, 2), (3,), (1, 3)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


SQUARE = randn(12, 12, seed=5)
FEATURES, TARGETS = randn(8, 2, seed=6), randn(8, 1, seed=7)


def parameters() -> list[Tensor]:
    return [randn(*s, seed=i).requires_grad_() for i, s in enumerate(SHAPES)]


def probes_of(params: list[Tensor]) -> dict[Tensor, Tensor]:
    return {p: randn(*p.shape, seed=10 + i) for i, p in enumerate(params)}


def quadratic(params: list[Tensor]) -> Tensor:
    x = torch.cat([p.flatten() for p in params])
    return 0.5 * x @ (SQUARE + SQUARE.mT) @ x + x.sum()


def perceptron(params: list[Tensor], rows: slice = slice(None)) -> Tensor:
    x, y = FEATURES[rows], TARGETS[rows]
    w, b, u = params
    return (torch.tanh(x @ w.mT + b) @ u.mT - y).square().sum() / 8


def explicit(loss: Loss, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the gradient and the Hessian of the flattened parameters."""
    sizes = [p.numel() for p in params]

    def flat(x: Tensor) -> Tensor:
        parts = torch.split(x, sizes)
        return loss([part.view(p.shape) for part, p in zip(parts, params, strict=True)])

    x = torch.cat([p.detach().flatten() for p in params])
    return torch.func.grad(flat)(x), hessian_of(flat, x)


def hessian_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch's own forward mode uses what it deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        hessian: Tensor = torch.func.hessian(function)(x)
    return hessian


def flatten(found: Any, params: list[Tensor]) -> Tensor:
    return torch.cat([found[p].flatten() for p in params])


# --- the products --------------------------------------------------------------------------------


# A forward difference in double precision has an error of about sqrt(eps) = 1.5e-8 times the third
# derivatives, and rounding of that size.
@pytest.mark.parametrize(
    ("source", "error"), [(SOURCES[0], 1e-13), (SOURCES[1], 1e-6), (SOURCES[2], 1e-6)]
)
@pytest.mark.parametrize("loss", [quadratic, perceptron])
def test_products_are_those_of_the_explicit_hessian(
    loss: Loss, source: LossSource, error: float
) -> None:
    params = parameters()
    probes = probes_of(params)
    found = source.evaluate(lambda: loss(params), params, probes)
    grad, hessian = explicit(loss, params)
    product = hessian @ flatten(probes, params)
    assert float((flatten(found.products, params) - product).norm() / product.norm()) < error
    torch.testing.assert_close(flatten(found.grads, params), grad)
    torch.testing.assert_close(found.loss, loss(params).detach())


def test_a_central_difference_has_an_error_of_second_order() -> None:
    x = randn(5).requires_grad_()
    probes = {x: randn(5, seed=1)}
    errors = []
    for source in SOURCES[1:]:
        # Third derivatives of 1e9 times d = 1.5e-8 against a Hessian of 1e6.
        found = source.evaluate(lambda: (1e3 * x).sin().sum(), [x], probes)
        exact = -1e6 * (1e3 * x.detach()).sin() * probes[x]
        errors.append(float((found.products[x] - exact).norm() / exact.norm()))
    assert 1e-6 < errors[0] < 1e-4
    assert errors[1] < 0.05 * errors[0]


def test_exact_products_of_complex_parameters_are_real_ones_of_their_parts() -> None:
    z = torch.complex(randn(3), randn(3, seed=1)).requires_grad_()
    v = torch.complex(randn(3, seed=2), randn(3, seed=3))

    def real_loss(xy: Tensor) -> Tensor:
        x, y = xy[:3], xy[3:]
        return ((x**2 + y**2) ** 2).sum() + (x * y.roll(1)).sum()

    def loss() -> Tensor:
        return real_loss(torch.cat([z.real, z.imag]))

    found = Exact().evaluate(loss, [z], {z: v}).products[z]
    parts = torch.cat([z.detach().real, z.detach().imag])
    expected = hessian_of(real_loss, parts) @ torch.cat([v.real, v.imag])
    torch.testing.assert_close(torch.cat([found.real, found.imag]), expected)


@pytest.mark.parametrize("source", SOURCES)
def test_a_loss_in_parts_has_the_derivatives_of_their_sum(source: LossSource) -> None:
    params = parameters()
    probes = probes_of(params)

    def parts() -> Iterator[Tensor]:
        for start in range(0, 8, 2):
            yield perceptron(params, slice(start, start + 2))

    whole = source.evaluate(lambda: perceptron(params), params, probes)
    summed = source.evaluate(parts, params, probes)
    tolerance = 1e-12 if isinstance(source, Exact) else 1e-6
    for mine, theirs in ((whole.grads, summed.grads), (whole.products, summed.products)):
        torch.testing.assert_close(
            flatten(mine, params), flatten(theirs, params), rtol=tolerance, atol=tolerance
        )
    torch.testing.assert_close(whole.loss, summed.loss)


@pytest.mark.parametrize("source", SOURCES)
def test_without_probes_there_are_gradients_only(
    source: LossSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters()
    calls: list[int] = []
    monkeypatch.setattr("psgd_optim.curvature.products", None)  # would raise if called

    def closure() -> Tensor:
        calls.append(1)
        return perceptron(params)

    found = source.evaluate(closure, params, None)
    assert not found.products
    assert len(calls) == 1
    torch.testing.assert_close(flatten(found.grads, params), explicit(perceptron, params)[0])


# --- what a finite difference leaves behind ------------------------------------------------------


@pytest.mark.parametrize("central", [False, True])
def test_p32_differences_put_parameters_back_bit_for_bit(central: bool) -> None:
    params = [p.detach().float().requires_grad_() for p in parameters()]
    source = FiniteDifference(central=central)
    before = [p.detach().clone() for p in params]
    fitting = Fitting(gate=1.0)
    optimizer = PSGD(params, 0.0, criterion=Newton(source=source), fitting=fitting)
    for _ in range(3):
        optimizer.step(lambda: torch.stack([(p**4).sum() for p in params]).sum())
    assert all(torch.equal(x, p.detach()) for x, p in zip(before, params, strict=True))
    assert float(optimizer.state[params[0]]["step"]) == 3


def test_parameters_are_put_back_when_an_evaluation_fails() -> None:
    params, calls = parameters(), []
    before = [p.detach().clone() for p in params]

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return perceptron(params)

    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        FiniteDifference().evaluate(closure, params, probes_of(params))
    assert all(torch.equal(x, p.detach()) for x, p in zip(before, params, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("source", SOURCES)
def test_an_evaluation_uses_random_numbers_once(source: LossSource) -> None:
    params = parameters()
    probes = probes_of(params)

    def closure() -> Tensor:
        masked = [nn.functional.dropout(p, 0.5) for p in params]
        return perceptron(masked)

    torch.manual_seed(3)
    closure()
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    found = source.evaluate(closure, params, probes)
    assert torch.equal(torch.get_rng_state(), expected)
    # The same masks in all evaluations: else the difference is of two functions, about 1e8.
    torch.manual_seed(3)
    exact = Exact().evaluate(closure, params, probes)
    torch.testing.assert_close(
        flatten(found.products, params), flatten(exact.products, params), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("central", [False, True])
def test_running_statistics_are_those_after_one_evaluation(central: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    twin = copy.deepcopy(net)
    x = randn(6, 3)
    twin(x)
    params = list(net.parameters())
    source = FiniteDifference(central=central, module=net)
    source.evaluate(lambda: net(x).square().mean(), params, probes_of(params))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
    assert int(net[1].num_batches_tracked) == 1  # type: ignore[arg-type]


# --- differences from step to step, and given pairs ----------------------------------------------


def test_the_pair_of_a_step_is_its_differences_in_units_of_the_probe() -> None:
    memory = {"last_param": randn(3, 2, 4), "last_grad": randn(3, 2, 4, seed=1)}
    param, grad = randn(3, 2, 4, seed=2), randn(3, 2, 4, seed=3)
    pair = GradientDifference().observe(param, grad, memory)
    assert pair is not None
    for row in range(3):
        moved = param[row] - memory["last_param"][row]
        unit = moved.square().mean().sqrt()
        torch.testing.assert_close(pair[0][row], moved / unit)
        change = (grad[row] - memory["last_grad"][row]) / unit
        torch.testing.assert_close(pair[1][row], change)
    GradientDifference().remember(param, grad, memory, torch.tensor([True, False, True]))
    assert torch.equal(memory["last_param"][[0, 2]], param[[0, 2]])
    assert torch.equal(memory["last_grad"][1], randn(3, 2, 4, seed=1)[1])


def test_a_row_that_did_not_move_has_no_finite_pair() -> None:
    memory = {"last_param": torch.ones(2, 3), "last_grad": torch.zeros(2, 3)}
    pair = GradientDifference().observe(torch.ones(2, 3), torch.ones(2, 3), memory)
    assert pair is not None
    assert not pair[0].isfinite().any()


def test_a_given_pair_must_be_two_lists_of_the_parameters_shapes() -> None:
    params = parameters()
    v = [torch.ones_like(p) for p in params]
    probes, products = given_pairs((v, v), params)
    assert all(probes[p] is not p and not probes[p].requires_grad for p in params)
    assert list(products) == params or len(products) == 3
    with pytest.raises(ValueError, match="got a pair of 3"):
        given_pairs((v, v, v), params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got hv of shapes \[\(3, 2\), \(3,\)\]; give the"):
        given_pairs((v, v[:2]), params)
    with pytest.raises(ValueError, match="got v of shapes"):
        given_pairs((v[::-1], v), params)


def test_sources_that_are_given_their_pairs_observe_nothing() -> None:
    nothing: dict[str, Tensor] = {}
    x = torch.ones(1, 2)
    for source in (Given(), Exact(), FiniteDifference()):
        assert source.observe(x, x, nothing) is None
        source.remember(x, x, nothing, None)
        assert not source.memory
    assert not Diagonal().needs_v
