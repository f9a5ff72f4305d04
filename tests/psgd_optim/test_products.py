"""Every form with every criterion and geometry trains a small network, or is refused at once."""

import io
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import PSGD, ClipElement, ClipRMS, Fitting
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
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.block_triangular import BlockTriangular
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.diagonal import Diagonal, Scalar
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.low_rank import LowRank, Order
from psgd_optim.forms.permutation import Permutation
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.geometry import EQ, PRO4P, Q0_5EQ1_5, QEP, QEQ, QUAD, QUAD4P, Geometry
from psgd_optim.permutation_groups import BUTTERFLY, KLEIN, X_MATRIX, AllShifts, Cyclic
from psgd_optim.scope import DirectSum, Joint, Scope, Split, by_axes
from psgd_optim.step_size import MaxEntry

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


CLOSED = (ClosedDiagonal(), Joint(ClosedDiagonal()))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # Sizes that every permutation group accepts: each tensor, and all together, a multiple of 4.
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4, bias=False)).double()


def combinations() -> Iterator[tuple[str, Scope | Preconditioner]]:
    """Yield every form and scope with its name."""
    for name, form in VECTOR_FORMS.items():
        yield name, form
        yield f"joint-{name}", Joint(form)
    for geometry in GEOMETRIES:
        for name, skew in (("dense", math.inf), ("mixed", 1.0), ("diagonal", 0.0)):
            yield f"kron-{name}-{geometry.name}", Kron(max_skew=skew, geometry=geometry)
        yield f"joint-dense-{geometry.name}", Joint(Dense(geometry=geometry))
    yield "joint-dense-triangular", Joint(Dense(geometry=EQ, factor=TRIANGULAR))
    for name, plan in PLANS.items():
        # A plan of two factors is for matrices.
        matrices = (by_axes(2, 2), Kron(plan=plan, geometry=EQ))
        yield name, DirectSum(matrices, otherwise=Diagonal())
    yield "joint-arrow", Joint(BlockTriangular(kinds=(TRIANGULAR, DIAGONAL), splits=(3,)))
    yield "split", Split(Kron(max_skew=math.inf), 4)


def train(form: Scope | Preconditioner, criterion: Criterion) -> tuple[float, float]:
    """Return the loss of a small regression before and after 10 steps."""
    model = network()
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=rng, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(4, 4, generator=rng, dtype=torch.float64))
    newton = isinstance(criterion, Newton)
    # P^2 is without a size of its own, and huge after a first small gradient; and so is the P in
    # closed form from one pair.
    wild = isinstance(criterion, Fisher | UnbiasedFisher) or form in CLOSED
    optimizer = PSGD(
        model.parameters(),
        0.25 if newton else 0.1,
        form=form,
        criterion=criterion,
        momentum=0.5,
        clip=(ClipRMS(1.1), ClipElement(10.0)) if wild else None,
        fitting=Fitting(
            precond_lr=0.7,
            gate=1.0,
            init_scale=0.5 if isinstance(criterion.pairs, GradientDifference) else None,
        ),
    )

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    before = float(loss().detach())
    params = list(model.parameters())
    given = isinstance(criterion.pairs, Given)
    for _ in range(10):
        if optimizer.needs_closure:
            optimizer.step(loss)
            continue
        grads = torch.autograd.grad(loss(), params, create_graph=given)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.detach()
        if given:
            v = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in params]
            optimizer.step(pair=(v, list(torch.autograd.grad(grads, params, v))))
        else:
            optimizer.step()
    return before, float(loss().detach())


FORMS = dict(combinations())


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("form", FORMS)
def test_it_trains(form: str, criterion: str) -> None:
    before, after = train(FORMS[form], CRITERIA[criterion])
    assert after < 0.8 * before


def continued(form: Scope | Preconditioner, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the parameters after a run in one go, and after one that was saved and loaded."""
    gradients = [
        [torch.randn(p.shape, generator=rng) for p in network().parameters()]
        for rng in (torch.Generator().manual_seed(i) for i in range(4))
    ]

    def step(optimizer: PSGD, grads: list[Tensor]) -> None:
        for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
            p.grad = g.to(dtype)
        optimizer.step()

    def build(model: nn.Module) -> PSGD:
        return PSGD(model.parameters(), 1e-2, form=form, fitting=Fitting(gate=0.7, seed=4))

    whole, half = network().to(dtype), network().to(dtype)
    first, second = build(whole), build(half)
    for grads in gradients:
        step(first, grads)
    for grads in gradients[:2]:
        step(second, grads)
    file = io.BytesIO()
    torch.save([half.state_dict(), second.state_dict()], file)
    file.seek(0)
    again = network().to(dtype)
    third = build(again)
    for part, saved in zip((again, third), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(saved)
    for grads in gradients[2:]:
        step(third, grads)
    yield from (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (whole, again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_a_saved_run_goes_on_bit_for_bit(form: str, dtype: torch.dtype) -> None:
    expected, found = continued(FORMS[form], dtype)
    assert bool(expected.isfinite().all())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if g is not EQ], ids=lambda g: g.name)
@pytest.mark.parametrize("plan", [p for p in PLANS if p != "scaling-scaling"])
def test_plans_that_only_one_geometry_keeps_are_refused_with_the_others(
    plan: str, geometry: Geometry
) -> None:
    with pytest.raises(ValueError, match="EQ") as refusal:
        Kron(plan=PLANS[plan], geometry=geometry)
    assert f"geometry {geometry.name}" in str(refusal.value)
    assert any(kind.name in str(refusal.value).lower() for kind in PLANS[plan].kinds)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.name)
def test_a_triangular_dense_form_and_coarse_fits_of_p_are_refused(geometry: Geometry) -> None:
    if geometry is not EQ:
        with pytest.raises(ValueError, match=f"(?i)triangular.*{geometry.name}"):
            Dense(factor=TRIANGULAR, geometry=geometry)
    for form in (Kron, Dense):
        if geometry.fits_p:
            with pytest.raises(ValueError, match=f"(?i){geometry.name}.*bfloat16|bfloat16"):
                form(geometry=geometry, dtype=torch.bfloat16)
        else:
            form(geometry=geometry, dtype=torch.bfloat16)


def test_criteria_are_refused_without_what_they_need() -> None:
    params = list(network().parameters())
    with pytest.raises(ValueError, match=r"MomentumWhitening with momentum = 0"):
        PSGD(params, criterion=MomentumWhitening(), momentum=0.0)
    with pytest.raises(ValueError, match=r"GradientDifference.*init_scale"):
        PSGD(params, criterion=Newton(source=GradientDifference()))
    with pytest.raises(ValueError, match=r"LowRank.*MaxEntry"):
        LowRank(normaliser=MaxEntry())
