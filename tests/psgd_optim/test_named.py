"""The named constructors, and the classic problem that they must solve."""

import inspect
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, Dense, Fitting, named
from psgd_optim.criteria import Newton
from psgd_optim.curvature import FiniteDifference, Given
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.geometry import EQ
from psgd_optim.step_size import MaxEntry

NAMES = sorted(
    name
    for name, f in inspect.getmembers(named, inspect.isfunction)
    if not name.startswith("_") and name.endswith(("_newton", "_whitening"))
)


def rosenbrock(p: Tensor) -> Tensor:
    return 100 * (p[1] - p[0] ** 2) ** 2 + (1 - p[0]) ** 2


def start() -> Tensor:
    return torch.tensor([-1.0, 1.0], dtype=torch.float64, requires_grad=True)


def iterations(make: Callable[[list[Tensor]], PSGD], limit: int, below: float) -> int:
    """Return how many steps it takes until the Rosenbrock function is below a value."""
    p = start()
    optimizer = make([p])
    for step in range(limit):
        if float(optimizer.step(lambda: rosenbrock(p))) < below:
            return step
    return limit


@pytest.mark.parametrize("seed", range(4))
def test_p17_rosenbrock_in_at_most_300_iterations(seed: int) -> None:
    """P17, S1 figure 1: the settings of its Newton-type run."""

    def make(params: list[Tensor]) -> PSGD:
        return named.dense_newton(params, lr=0.5, precond_lr=0.2, init_scale=0.1, seed=seed)

    assert iterations(make, limit=300, below=1e-10) < 300


def runs(seeds: Iterable[int]) -> tuple[list[int], Tensor]:
    """Return the steps that runs with these probes take until 1e-10, and all their points.

    Every run is a row of one stack, and has a stream of probes of its own. The optimizer is that of
    `dense_newton`, but for its pairs, which are given: a joint form would mix the runs.
    """
    params = [start() for _ in seeds]
    optimizer = PSGD(
        params,
        0.5,
        form=Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry()),
        criterion=Newton(damping=0.0, source=Given()),
        momentum=0.0,
        clip=(),
        fitting=Fitting(precond_lr=0.2, gate=1.0, init_scale=0.1),
    )
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    values, points = [], []
    for _ in range(300):
        points.append(torch.stack([p.detach() for p in params]))
        v = [torch.randn(2, generator=stream, dtype=torch.float64) for stream in streams]
        x = points[-1].requires_grad_()
        loss = rosenbrock(x.mT)  # the sum of functions of one run each
        (grads,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(grads, x, torch.stack(v))
        for p, g in zip(params, grads.detach(), strict=True):
            p.grad = g
        values.append(loss.detach())
        optimizer.step(pair=(v, list(h)))
    below = torch.stack(values) < 1e-10
    taken = torch.where(below.any(dim=0), below.int().argmax(dim=0), 300)
    return taken.tolist(), torch.stack(points, dim=1).detach()


def test_p17_rosenbrock_in_at_most_300_iterations_from_95_percent_of_seeds() -> None:
    taken, points = runs(range(40))
    assert sum(t < 300 for t in taken) >= 38
    assert 180 <= sorted(taken)[20] <= 230  # measured 201; the design has 207
    # A run of the stack is the run of an optimizer that has this parameter alone.
    for seed in (3, 11):
        alone, path = runs([seed])
        assert alone == [taken[seed]]
        torch.testing.assert_close(path[0], points[seed], rtol=1e-9, atol=1e-9)


def test_p17_finite_differences_and_the_last_q_do_as_well() -> None:
    def differences(ps: list[Tensor]) -> PSGD:
        optimizer = named.dense_newton(ps, lr=0.5, precond_lr=0.2, init_scale=0.1)
        return PSGD(
            ps,
            0.5,
            form=optimizer.form,
            criterion=Newton(damping=0.0, source=FiniteDifference()),
            momentum=0.0,
            clip=(),
            fitting=optimizer.fitting,
        )

    assert iterations(differences, limit=300, below=1e-10) < 300


def trajectory(scale: float) -> Tensor:
    p = start()
    optimizer = named.dense_newton([p], lr=0.5, precond_lr=0.2, init_scale=0.1 / scale**0.5, seed=3)
    points = []
    for _ in range(100):
        optimizer.step(lambda: scale * rosenbrock(p))
        points.append(p.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("scale", [1e-4, 7.3, 1e6])
def test_p10_scaling_the_loss_does_not_change_the_trajectory(scale: float) -> None:
    torch.testing.assert_close(trajectory(scale), trajectory(1.0), rtol=1e-10, atol=1e-10)


def network() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(32, 4, dtype=torch.float64)
    y = torch.sin(x[:, :2] * 2)
    return model, lambda: (model(x) - y).square().mean()


def take(optimizer: PSGD, loss: Callable[[], Tensor], steps: int) -> None:
    for _ in range(steps):
        if optimizer.needs_closure:
            optimizer.step(loss)
        else:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_trains_with_its_own_settings(name: str) -> None:
    model, loss = network()
    optimizer = getattr(named, name)(model.parameters())
    before = float(loss().detach())
    take(optimizer, loss, 100)
    assert float(loss().detach()) < 0.9 * before


def test_the_shared_arguments_come_in_one_order() -> None:
    for name in NAMES:
        shared = list(inspect.signature(getattr(named, name)).parameters)[:6]
        assert shared == ["params", "lr", "precond_lr", "init_scale", "seed", "momentum"]
