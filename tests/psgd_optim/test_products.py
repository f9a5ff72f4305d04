"""Every form with every criterion and geometry trains a small network, or is refused at once."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, Fitting
from psgd_optim.axis_plan import KRONECKER, SCALING_AND_SCALING, SCAN, SCAW, WHITENING_AND_SCALING
from psgd_optim.criteria import (
    Criterion,
    Fisher,
    GradientWhitening,
    MomentumWhitening,
    Newton,
    UnbiasedFisher,
)
from psgd_optim.curvature import FiniteDifference, Given, GradientDifference
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.block_triangular import BlockTriangular
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.diagonal import Diagonal, Scalar
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.low_rank import LowRank, Order
from psgd_optim.forms.permutation import Permutation
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.geometry import EQ, PRO4P, Q0_5EQ1_5, QEP, QEQ, QUAD, QUAD4P
from psgd_optim.permutation_groups import BUTTERFLY, KLEIN, X_MATRIX, AllShifts, Cyclic
from psgd_optim.scope import DirectSum, Joint, Scope, Split, by_axes

GEOMETRIES = (EQ, QEP, QEQ, Q0_5EQ1_5, QUAD, QUAD4P, PRO4P)
PLANS = {
    "scan": SCAN,
    "scaw": SCAW,
    "whitening-scaling": WHITENING_AND_SCALING,
    "scaling-scaling": SCALING_AND_SCALING,
    "triangular": KRONECKER,
}
VECTOR_FORMS: dict[str, Preconditioner] = {
    "diagonal": Diagonal(),
    "diagonal-joint": Diagonal(elementwise=False),
    "closed-diagonal": ClosedDiagonal(),
    "scalar": Scalar(),
    "sparse-lu": SparseLU(rank=3),
    "low-rank": LowRank(rank=3),
    "low-rank-scale-last": LowRank(rank=3, order=Order.SCALE_LAST),
    "x-matrix": Permutation(group=X_MATRIX),
    "butterfly": Permutation(group=BUTTERFLY),
    "klein": Permutation(group=KLEIN),
    "cyclic-4": Permutation(group=Cyclic(size=4)),
    "all-shifts": Permutation(group=AllShifts()),
}
CRITERIA: dict[str, Criterion] = {
    "gradient": GradientWhitening(),
    "momentum": MomentumWhitening(),
    "fisher": Fisher(damping=0.01),
    "unbiased-fisher": UnbiasedFisher(batch_size=16, damping=0.01),
    "newton": Newton(),
    "newton-difference": Newton(source=FiniteDifference()),
    "newton-steps": Newton(source=GradientDifference()),
    "newton-given": Newton(source=Given()),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # Sizes that every permutation group accepts: each tensor, and all together, a multiple of 4.
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def combinations() -> Iterator[tuple[str, Scope | Preconditioner | None, tuple[object, ...]]]:
    """Yield a name, the form, and what it is made of where it is refused."""
    for name, form in VECTOR_FORMS.items():
        yield name, form, ()
        yield f"joint-{name}", Joint(form), ()
    for geometry in GEOMETRIES:
        for name, skew in (("dense", math.inf), ("mixed", 1.0), ("diagonal", 0.0)):
            yield f"kron-{name}-{geometry.name}", Kron(max_skew=skew, geometry=geometry), ()
        yield f"joint-dense-{geometry.name}", Joint(Dense(geometry=geometry)), ()
    yield "split", Split(Kron(max_skew=math.inf), 4), ()


def train(form: Scope | Preconditioner, criterion: Criterion) -> tuple[float, float]:
    """Return the loss of a small regression before and after 100 steps."""
    model = network()
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=rng, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(4, 4, generator=rng, dtype=torch.float64))
    newton = isinstance(criterion, Newton)
    squared = isinstance(criterion, Fisher | UnbiasedFisher)
    optimizer = PSGD(
        model.parameters(),
        0.1 if newton else 1e-3 if squared else 1e-2,
        form=form,
        criterion=criterion,
        momentum=0.5,
        fitting=Fitting(
            precond_lr=0.3,
            gate=1.0,
            init_scale=0.5 if isinstance(criterion.pairs, GradientDifference) else None,
        ),
    )

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    before = float(loss().detach())
    for _ in range(100):
        if optimizer.needs_closure:
            optimizer.step(loss)
            continue
        optimizer.zero_grad()
        params = list(model.parameters())
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.detach()
        if isinstance(criterion.pairs, Given):
            v = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in params]
            optimizer.step(pair=(v, list(torch.autograd.grad(grads, params, v))))
        else:
            optimizer.step()
    return before, float(loss().detach())


FORMS = {name: form for name, form, _ in combinations()}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("form", FORMS)
def test_it_trains(form: str, criterion: str) -> None:
    before, after = train(FORMS[form], CRITERIA[criterion])
    assert after < 0.8 * before
