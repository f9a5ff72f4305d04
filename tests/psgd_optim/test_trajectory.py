"""Fifty steps of the fast optimizer against a slow one, written from the formulas.

The slow one knows one parameter, full matrices and no stack, no cached product, no short cut: every
optimisation has to leave its trajectory alone.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from psgd_optim import PSGD, Fitting, Kron, MomentumWhitening, Split
from psgd_optim.geometry import PRO4P, Q0_5EQ1_5, QEQ, QUAD, QUAD4P, Geometry
from psgd_optim.scope import Scope
from tests import reference

STEPS, LR, DECAY, RATE, BETA = 50, 0.05, 0.9, 0.3, 0.9
SHAPES = ((4, 12), (12, 4), (4, 4), (9,), (2, 6, 3))


@dataclass
class SlowPSGD:
    """One parameter's optimizer, in float64, with explicit matrices."""

    param: Tensor
    geometry: str
    max_skew: float
    average: Tensor = field(init=False)
    qs: list[Tensor] = field(default_factory=list)
    ls: list[float] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.average = torch.zeros_like(self.param)

    def patterns(self) -> list[str]:
        full = [n > 1 and n * n <= self.max_skew * self.param.numel() for n in self.param.shape]
        return ["dense" if dense else "diagonal" for dense in full]

    def start(self, grad: Tensor) -> None:
        scale = float(grad.pow(4).mean() ** -0.125)
        power = (2 if self.geometry.endswith("4P") else 1) / grad.ndim
        self.qs = [scale**power * torch.eye(n, dtype=torch.float64) for n in self.param.shape]
        self.ls = [0.0] * grad.ndim

    def precondition(self, x: Tensor) -> Tensor:
        if self.geometry.endswith("4P"):
            p = reference.kron_all([reference.hermitian(q) for q in self.qs])
        else:
            q = reference.kron_all(self.qs)
            p = q.mH @ q
        return (p @ x.flatten()).view(x.shape)

    def step(self, grad: Tensor, rate: float) -> None:
        if self.steps == 0:
            self.start(grad)
        # The counts, and so the weights of the ramp, are in single precision.
        steps = torch.tensor(float(self.steps))
        weight = float(1 - (steps / (steps + 1)).clamp(max=DECAY))
        self.average = (1 - weight) * self.average + weight * grad
        self.steps += 1
        if rate:
            self.qs, self.ls = reference.kron_update(
                self.qs, self.ls, self.average, None, rate, BETA, self.geometry, self.patterns()
            )
        update = self.precondition(self.average)
        update = update * min(1.0, 1.1 / float(update.square().mean().sqrt()))
        self.param -= LR * update.clamp(-10, 10)


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    """Return correlated gradients whose sizes differ between parameters and change."""
    rng = torch.Generator().manual_seed(step)
    size = 10 ** math.sin(step / 5)
    grads = []
    for i, p in enumerate(params):
        mix = torch.linspace(0.2, 3, p.shape[-1], dtype=torch.float64)
        noise = torch.randn(p.shape, generator=rng, dtype=torch.float64)
        grads.append(size * 10.0**-i * (noise * mix + noise.mean()))
    return grads


def fast(params: list[Tensor], form: Kron | Scope, gate: float) -> tuple[PSGD, Fitting]:
    fitting = Fitting(precond_lr=RATE, gate=gate)
    # Damping draws noise, which the slow optimizer knows nothing of.
    criterion = MomentumWhitening(damping=0.0)
    return PSGD(params, LR, form=form, criterion=criterion, fitting=fitting), fitting


def compare(
    fast_params: list[Tensor], slow: list[SlowPSGD], form: Kron | Scope, gate: float
) -> None:
    optimizer, fitting = fast(fast_params, form, gate)
    fits = 0
    for step in range(STEPS):
        rate = fitting.rate(0, step)
        fits += rate > 0
        grads = gradients([one.param for one in slow], step)
        assign(fast_params, grads)
        optimizer.step()
        for one, grad in zip(slow, grads, strict=True):
            one.step(grad, rate)
    assert fits == STEPS if gate == 1 else 5 < fits < STEPS


def assign(params: list[Tensor], grads: list[Tensor]) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psgd_optim.linalg.spectral_norm_bound", reference.exact_norm)


@pytest.mark.parametrize("gate", [0.3, 1.0])
@pytest.mark.parametrize("max_skew", [1.0, math.inf])
@pytest.mark.parametrize("geometry", [Q0_5EQ1_5, QUAD, QEQ, QUAD4P, PRO4P])
def test_fifty_steps_follow_the_formulas(geometry: Geometry, max_skew: float, gate: float) -> None:
    rng = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=rng, dtype=torch.float64) for s in SHAPES]
    slow = [SlowPSGD(p.clone(), geometry.name, max_skew) for p in params]
    for p in params:
        p.requires_grad_()
    compare(params, slow, Kron(max_skew=max_skew, geometry=geometry), gate)
    for p, one in zip(params, slow, strict=True):
        torch.testing.assert_close(p.detach(), one.param, rtol=1e-9, atol=1e-9)


def test_fifty_steps_of_pieces_follow_the_formulas() -> None:
    rng = torch.Generator().manual_seed(0)
    whole = torch.randn(8, 4, generator=rng, dtype=torch.float64)
    slow = [SlowPSGD(whole[a : a + 4].clone(), "Q0.5EQ1.5", math.inf) for a in (0, 4)]
    whole.requires_grad_()
    optimizer, fitting = fast([whole], Split(Kron(max_skew=math.inf), 4), 0.3)
    for step in range(STEPS):
        (grad,) = gradients([whole.detach()], step)
        assign([whole], [grad])
        optimizer.step()
        for one, part in zip(slow, (grad[:4], grad[4:]), strict=True):
            one.step(part, fitting.rate(0, step))
    expected = torch.cat([one.param for one in slow])
    torch.testing.assert_close(whole.detach(), expected, rtol=1e-9, atol=1e-9)
