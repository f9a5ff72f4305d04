"""Properties of the design, by number: gradients, groups, coordinates and special cases."""

import math

import pytest
import torch
from torch import Tensor

from psgd_optim.axis_plan import KRONECKER, SCAN, SCAW, WHITENING_AND_SCALING, AxisPlan, Plan
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR, MatrixFactor
from psgd_optim.factors.normalisation import NORMALISATION
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.kron import Kron
from psgd_optim.geometry import EQ, PRO4P, Q0_5EQ1_5, QEP, QEQ, QUAD, QUAD4P, Geometry
from psgd_optim.step_size import FrobeniusNorm, MaxEntry, SpectralNorm
from psgd_optim.types import Probe, State
from tests import reference
from tests.psgd_optim.forms.contract import COMPLEX, REAL, generator
from tests.psgd_optim.forms.test_kron import matrices


def random_state(form: Kron, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> State:
    """Return a state away from the identity, by updates with independent samples."""
    state, rng = form.init(shape, torch.ones(2), torch.empty(0, dtype=dtype)), generator(seed)
    for _ in range(8):
        h, v = torch.randn(2, 2, *shape, generator=rng, dtype=dtype)
        form.update(state, Probe(h=h, v=v), form.draw(state, rng), 0.5)
    return state


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("plan", [SCAN, SCAW, WHITENING_AND_SCALING, AxisPlan((GENERAL, GENERAL))])
def test_p1_gradient_is_the_finite_difference(plan: Plan, dtype: torch.dtype) -> None:
    """P1: along every allowed direction `E` of each axis, `dc = 2 Re tr(E^H (T1 - T2))`."""
    shape, form = (3, 4), Kron(plan=plan, geometry=EQ)
    state, rng = random_state(form, shape, dtype, 0), generator(1)
    h, v = torch.randn(2, 12, generator=rng, dtype=dtype)
    qs = matrices(form, state, 0)

    def criterion(qs: list[Tensor]) -> float:
        q = reference.kron_all(qs)
        return float((q @ h).norm() ** 2 + (torch.linalg.inv(q).mH @ v).norm() ** 2)

    whole = reference.kron_all(qs)
    a, b = whole @ h, torch.linalg.inv(whole).mH @ v
    for axis, (factor, n) in enumerate(zip(plan.factors(shape), shape, strict=True)):
        one = factor.init(n, torch.ones(1, dtype=dtype))
        start = factor.start(one, 4, rng)
        terms = [factor.gram(x.view(1, *shape), axis) for x in (a, b)]
        gradient = factor.matrix(factor.gradient(*terms, start).left(one))[0]
        units = [1, 1j] if dtype.is_complex else [1]
        for j, k in reference.pattern_mask(factor.name, n).nonzero().tolist():
            for unit in units:
                if unit == 1j and j == k and factor.name != "dense":
                    continue  # diagonals of these groups are real
                e = torch.zeros(n, n, dtype=dtype)
                e[j, k] = unit
                ends = []
                for sign in (1, -1):
                    moved = list(qs)
                    moved[axis] = qs[axis] + sign * 1e-6 * e @ qs[axis]
                    ends.append(criterion(moved))
                difference = (ends[0] - ends[1]) / 2e-6
                expected = 2 * (e.conj() * gradient).sum().real
                scale = float(gradient.norm())
                assert difference == pytest.approx(float(expected), rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_p8_normalisation_is_closed_under_products_and_inverses(dtype: torch.dtype) -> None:
    """P8: the pattern, and `Q Q^-1 = I`, with both read off the package's own products."""
    rng, n = generator(2), 5
    q = torch.rand(2, 2, n, generator=rng, dtype=REAL).to(dtype) + 0.5
    q[:, 1] = torch.randn(2, n, generator=rng, dtype=dtype)
    q[:, 1, -1] = 0
    x, y = NORMALISATION.matrix(q)
    free = reference.pattern_mask("normalisation", n)
    for member in (x @ y, torch.linalg.inv(x)):
        assert float(member[~free].abs().max()) < 1e-12
    eye = torch.eye(n, dtype=dtype).expand(2, n, n)
    adjoint = NORMALISATION.multiply_adjoint(q, eye, 0)
    torch.testing.assert_close(NORMALISATION.solve_adjoint(q, adjoint, 0), eye, atol=1e-12, rtol=0)


@pytest.mark.parametrize("plan", [KRONECKER, SCAN])
def test_p9_heavy_tails_keep_triangles_invertible_under_the_largest_entry(plan: Plan) -> None:
    """P9: Student-t(2) samples of scale 10^U(-2, 2), max norm, rate 0.9."""
    form, rng, rows = Kron(plan=plan, geometry=EQ, normaliser=MaxEntry()), generator(3), 10
    state = form.init((4, 3), torch.ones(rows), torch.empty(0, dtype=REAL))

    def sample() -> Tensor:
        z = torch.randn(rows, 4, 3, generator=rng, dtype=REAL)
        chi = torch.randn(rows, 4, 3, 2, generator=rng, dtype=REAL).square().sum(dim=3)
        power = 4 * torch.rand(rows, 1, 1, generator=rng, dtype=REAL) - 2
        return 10**power * z / (chi / 2).sqrt()

    for _ in range(1000):
        form.update(state, Probe(h=sample(), v=sample()), form.draw(state, rng), 0.9)
    for row in range(rows):
        for q in matrices(form, state, row):
            assert bool(q.isfinite().all())
            assert bool((q.diagonal() > 0).all())
            assert bool((q.tril(-1) == 0).all())


@pytest.mark.parametrize("plan", [SCAN, SCAW, KRONECKER, AxisPlan((GENERAL, GENERAL))])
def test_p11_eq_does_not_depend_on_the_coordinates(plan: Plan) -> None:
    """P11: with `h' = S^T h`, `v' = S^-1 v` and `Q0' = Q0 S^-T`, always `Q' = Q S^-T`."""
    # Not the second-order normaliser's estimate of a norm, which a scale of a factor would round.
    form, rng = Kron(plan=plan, geometry=EQ, normaliser=FrobeniusNorm()), generator(4)
    shape = (3, 4)
    state = form.init(shape, torch.ones(2), torch.empty(0, dtype=REAL))
    changed = random_state(form, shape, REAL, 5)
    change = form.to_dense(changed).clone()  # S^-T, a member of the group
    for _ in range(20):
        h, v = torch.randn(2, 2, 12, 1, generator=rng, dtype=REAL)
        draws = form.draw(state, rng)
        form.update(state, Probe(h=h.view(2, *shape), v=v.view(2, *shape)), draws, 0.3)
        h, v = torch.linalg.solve(change, h), change.mT @ v
        form.update(changed, Probe(h=h.view(2, *shape), v=v.view(2, *shape)), draws, 0.3)
    q = form.to_dense(state) @ change
    torch.testing.assert_close(form.to_dense(changed), q, rtol=1e-12, atol=1e-12)


def test_p12_a_step_is_gradient_descent_on_transformed_features() -> None:
    """P12: S0 (17) to (19), for an affine map `y = Theta x` and the loss `|y - t|^2 / 2`."""
    form, rng = Kron(plan=KRONECKER, geometry=EQ), generator(6)
    state = random_state(form, (3, 4), REAL, 7)
    left, right = matrices(form, state, 0)
    theta, x = torch.randn(3, 4, generator=rng, dtype=REAL), torch.randn(4, generator=rng).double()
    target = torch.randn(3, generator=rng).double()
    inner = (torch.linalg.inv(left).mT @ theta @ torch.linalg.inv(right)).requires_grad_()
    y = left.mT @ (inner @ (right @ x))
    (0.5 * (y - target).square().sum()).backward()
    assert inner.grad is not None
    expected = left.mT @ (inner.detach() - 0.1 * inner.grad) @ right
    gradient = torch.outer(theta @ x - target, x)
    actual = theta - 0.1 * form.apply(state, gradient.expand(2, 3, 4))[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_p13_feature_normalisation_is_a_member() -> None:
    """P13: `d = 1 / sigma` and `m = -nu / sigma` map features to zero mean and unit deviation."""
    rng = generator(8)
    nu, sigma = torch.randn(4, generator=rng), torch.rand(4, generator=rng) + 0.5
    d = torch.cat((1 / sigma, torch.ones(1)))
    m = torch.cat((-nu / sigma, torch.zeros(1)))
    x = torch.randn(1, 4, generator=rng)
    features = torch.cat((x, torch.ones(1, 1)), dim=1)
    mapped = NORMALISATION.multiply(torch.stack((d, m))[None], features, 0)
    torch.testing.assert_close(mapped[:, :4], (x - nu) / sigma)
    assert float(mapped[0, 4]) == 1


def run(form: Preconditioner, shape: tuple[int, ...], v: bool = True) -> Tensor:
    state, rng = form.init(shape, torch.ones(2), torch.empty(0, dtype=REAL)), generator(9)
    for seed in range(20):
        h, probe = torch.randn(2, 2, *shape, generator=rng, dtype=REAL)
        draws = form.draw(state, generator(seed))
        form.update(state, Probe(h=h, v=probe if v else None), draws, 0.3)
    return form.to_dense(state)


@pytest.mark.parametrize(
    ("factor", "normaliser"),
    [(TRIANGULAR, MaxEntry()), (TRIANGULAR, FrobeniusNorm()), (GENERAL, FrobeniusNorm())],
)
def test_p14_one_axis_is_the_dense_form(
    factor: MatrixFactor, normaliser: MaxEntry | FrobeniusNorm
) -> None:
    """P14: identical trajectories of `Kron` on a vector and `Dense`."""
    one = Kron(plan=AxisPlan((factor,)), geometry=EQ, normaliser=normaliser)
    torch.testing.assert_close(
        run(one, (5,)), run(Dense(factor=factor, geometry=EQ, normaliser=normaliser), (5,))
    )


@pytest.mark.parametrize("geometry", [QEQ, Q0_5EQ1_5, QUAD, QUAD4P, PRO4P])
def test_p14_one_axis_is_the_dense_form_without_v(geometry: Geometry) -> None:
    """P14: the second-order divisors agree too, where `T2 = I`."""
    one = Kron(max_skew=math.inf, geometry=geometry)
    torch.testing.assert_close(
        run(one, (5,), v=False), run(Dense(geometry=geometry), (5,), v=False)
    )


def test_p14_normalisation_of_two_features_is_the_triangle() -> None:
    """P14: a block-triangular composition is the triangular group where its blocks are numbers."""
    forms = [
        Kron(plan=AxisPlan((DIAGONAL, second)), geometry=EQ, normaliser=MaxEntry())
        for second in (NORMALISATION, TRIANGULAR)
    ]
    torch.testing.assert_close(run(forms[0], (3, 2)), run(forms[1], (3, 2)))


@pytest.mark.parametrize("normaliser", [SpectralNorm(), FrobeniusNorm()])
@pytest.mark.parametrize("geometry", [EQ, QEP, QUAD, PRO4P])
def test_first_order_steps_leave_tensors_of_order_three_finite(
    geometry: Geometry, normaliser: SpectralNorm | FrobeniusNorm
) -> None:
    q = run(Kron(max_skew=math.inf, geometry=geometry, normaliser=normaliser), (2, 3, 2))
    assert bool((torch.linalg.slogdet(q)[0] == 1).all())
