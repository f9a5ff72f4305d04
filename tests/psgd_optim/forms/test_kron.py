import dataclasses
import math

import pytest
import torch
from torch import Tensor

from psgd_optim.axis_plan import (
    KRONECKER,
    SCALING_AND_SCALING,
    SCAN,
    SCAW,
    WHITENING_AND_SCALING,
    AxisPlan,
    Plan,
    SizePlan,
)
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
from tests.psgd_optim.forms.contract import COMPLEX, REAL, B, FormContract, generator


def matrices(form: Kron, state: State, row: int) -> list[Tensor]:
    """Return the stored factors as matrices, written out by pattern."""
    count = len(state) // 2
    stored = [state[f"q{i}"][row] for i in range(count)]
    full = []
    for factor, q in zip(form._factors(form._sizes(state)), stored, strict=True):
        if factor.name == "normalisation":
            m = q[0].diag()
            m[:, -1] += q[1]
            full.append(m)
        else:
            full.append(q.diag() if q.ndim == 1 else q)
    return full


def random_covariance(pattern: str, n: int, rng: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return `P^-1` for a random `P` that a factor of a pattern can represent."""
    m = reference.random_spd(n, rng, dtype)
    if pattern == "diagonal":
        return m.diagonal().real.diag().to(dtype)
    if pattern == "normalisation":
        q = m.diagonal().diag()
        q[:-1, -1] = 0.5 * torch.randn(n - 1, generator=rng, dtype=dtype)
        return torch.linalg.inv(q.mH @ q)
    return m


class KronContract(FormContract):
    max_skew = 1.0
    plan: Plan | None = None
    geometry: Geometry = Q0_5EQ1_5
    newton_steps = 500
    whitening_steps = 1000

    def make(self, **settings: object) -> Preconditioner:
        size = {"max_skew": self.max_skew} if self.plan is None else {"plan": self.plan}
        return Kron(geometry=self.geometry, **size, **settings)

    def patterns(self, shape: tuple[int, ...]) -> list[str]:
        dense = [n > 1 and n * n <= self.max_skew * math.prod(shape) for n in shape]
        return ["dense" if full else "diagonal" for full in dense]

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        qs = matrices(self.make(), state, row)
        ls = [float(state[f"l{i}"][row]) for i in range(len(qs))]
        v = None if probe.v is None else probe.v[row]
        shape = tuple(probe.h.shape[1:])
        qs, ls = reference.kron_update(
            qs, ls, probe.h[row], v, rate, 0.9, self.geometry.name, self.patterns(shape)
        )
        dense = reference.kron_all(qs)
        if self.geometry.name.endswith("4P"):
            dense = reference.root(reference.kron_all([reference.hermitian(q) for q in qs]))
        return {"dense": dense, **{f"l{i}": bound for i, bound in enumerate(ls)}}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        sizes = {
            "dense": lambda n: n * n,
            "diagonal": lambda n: n,
            "triangular": lambda n: n * (n + 1) // 2,
            "normalisation": lambda n: 2 * n - 1,
        }
        return sum(sizes[p](n) for p, n in zip(self.patterns(shape), shape, strict=True))

    def stored(self, state: State) -> int:
        shape = tuple(len(q) for q in matrices(self.make(), state, 0))
        pairs = zip(self.patterns(shape), shape, strict=True)
        return sum(int(reference.pattern_mask(p, n).sum()) for p, n in pairs)

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        rng, patterns = generator(7), self.patterns(shape)
        return torch.stack([
            reference.kron_all([
                random_covariance(p, n, rng, dtype) for p, n in zip(patterns, shape, strict=True)
            ])
            for _ in range(B)
        ])


class TestKron(KronContract):
    """The default plan: a diagonal factor on the long side."""


class TestKronAllDense(KronContract):
    max_skew = math.inf


class TestKronAllDiagonal(KronContract):
    max_skew = 0.0


class GeometryContract(KronContract):
    max_skew = math.inf
    shapes = ((5, 4), (7,), (3, 2, 2))
    tail_shapes = ((4, 3),)
    whitening_steps = 700
    fit_shapes = ((4, 3),)


class TestKronEQ(GeometryContract):
    """GL(n) on every axis."""

    geometry = EQ


class TestKronQEP(GeometryContract):
    geometry = QEP


class TestKronQEQ(GeometryContract):
    geometry = QEQ


class TestKronQUAD(GeometryContract):
    geometry = QUAD


class FitsPContract(GeometryContract):
    def test_bfloat16_state_stays_bfloat16_and_follows_single_precision(self) -> None:
        with pytest.raises(ValueError, match=f"bfloat16 with geometry {self.geometry.name}"):
            self.make(dtype=torch.bfloat16)


class TestKronQUAD4P(FitsPContract):
    geometry = QUAD4P


class TestKronPRO4P(FitsPContract):
    geometry = PRO4P


class PlanContract(KronContract):
    """The plans for matrices, under the group product."""

    geometry = EQ
    newton_steps = 1000
    shapes = ((5, 4), (2, 3), (2, 1))
    fit_shapes = ((4, 3),)
    tail_shapes = ((4, 3),)

    def patterns(self, shape: tuple[int, ...]) -> list[str]:
        names = {
            id(SCAN): ["diagonal", "normalisation"],
            id(SCAW): ["diagonal", "triangular"],
            id(WHITENING_AND_SCALING): ["triangular", "diagonal"],
            id(KRONECKER): ["triangular", "triangular"],
        }
        return names[id(self.plan)]


class TestScan(PlanContract):
    plan = SCAN
    whitening_steps = 4000  # moments of squared condition

    def moments(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # Roots of these covariances are not of the form's: squares of them have roots that are.
        inverse = self.hessians(shape, dtype)
        return inverse @ inverse


class TestScaw(PlanContract):
    plan = SCAW


class TestWhiteningAndScaling(PlanContract):
    plan = WHITENING_AND_SCALING


class TestKronecker(PlanContract):
    plan = KRONECKER


def test_one_dense_axis_fits_any_covariance() -> None:
    form = Kron(max_skew=math.inf)
    state = form.init((4,), torch.ones(1), torch.empty(0, dtype=REAL))
    rng = generator(0)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=REAL))[0]
    curvatures = torch.tensor([-2.0, -0.5, 1.0, 3.0], dtype=REAL)
    hessian = basis @ curvatures.diag() @ basis.mT  # indefinite: P fits |H|^-1
    steps = 3000
    for t in range(steps):
        v = torch.randn(1, 4, generator=rng, dtype=REAL)
        rate = 0.2 * 0.003 ** (t / steps)
        form.update(state, Probe(h=v @ hessian, v=v), form.draw(state, rng), rate)
    q = form.to_dense(state)[0]
    p = q.mT @ q
    wanted = basis @ curvatures.abs().reciprocal().diag() @ basis.mT
    # P3 of the design; P H v differs from v in sign, so that only the mean of a step vanishes.
    assert float((p - wanted).norm() / wanted.norm()) < 0.02


def test_balancing_equalises_the_factors_and_keeps_p_to_the_bit() -> None:
    form = Kron(max_skew=math.inf)
    state = form.init((8, 4), torch.ones(2), torch.empty(0))
    state["q0"].mul_(2.0**12)
    x = torch.randn(2, 8, 4, generator=generator(0))
    before = form.apply(state, x)
    form.update(state, Probe(h=x), form.draw(state, generator(1)), 0.0)
    peaks = [state[name].abs().amax() for name in ("q0", "q1")]
    assert 0.5 <= float(peaks[0] / peaks[1]) <= 2
    # With rate 0 and factors that are multiples of I, only the powers of two move.
    torch.testing.assert_close(form.apply(state, x), before, rtol=0, atol=0)


def test_balancing_keeps_the_product_at_any_order() -> None:
    form = Kron(max_skew=math.inf)
    state = form.init((2, 3, 2, 3), torch.ones(1), torch.empty(0, dtype=REAL))
    for i, exponent in enumerate((9.3, -4.1, 2.6, 0.2)):
        state[f"q{i}"].mul_(2.0**exponent)
    before = form.to_dense(state)
    x = torch.randn(1, 2, 3, 2, 3, generator=generator(0), dtype=REAL)
    form.update(state, Probe(h=x), form.draw(state, generator(1)), 0.0)
    torch.testing.assert_close(form.to_dense(state), before)
    peaks = [float(state[f"q{i}"].abs().amax()) for i in range(4)]
    # Rounding moves each factor by up to 2^0.5, and the first by all the roundings together.
    assert max(peaks) / min(peaks) < 4


def test_a_shape_without_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"view a scalar as \(1,\)"):
        Kron().init((), torch.ones(1), torch.empty(0))


@pytest.mark.parametrize("field", ["max_size", "max_skew"])
def test_negative_limits_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = -1"):
        Kron(**{field: -1})
    with pytest.raises(ValueError, match=f"{field} = nan"):
        Kron(**{field: math.nan})


def test_describe_names_every_axis() -> None:
    assert Kron().describe((512, 128)) == "Kron(512 diagonal, 128 dense)"


def test_describe_names_every_pattern() -> None:
    assert Kron(plan=SCAN, geometry=EQ).describe((4, 6)) == "Kron(4 diagonal, 6 normalisation)"
    assert Kron(plan=KRONECKER, geometry=EQ).describe((4, 6)) == "Kron(4 triangular, 6 triangular)"


@pytest.mark.parametrize(
    ("plan", "count"), [(SCAN, 15), (SCAW, 25), (WHITENING_AND_SCALING, 16), (KRONECKER, 31)]
)
def test_p16_counts_are_those_of_the_size_table(plan: Plan, count: int) -> None:
    assert Kron(plan=plan, geometry=EQ).numel((4, 6)) == count  # M = 4, N = 6
    assert Kron(plan=SCALING_AND_SCALING).numel((4, 6)) == 10


@pytest.mark.parametrize("geometry", [QEP, QEQ, Q0_5EQ1_5, QUAD, QUAD4P, PRO4P])
@pytest.mark.parametrize(("plan", "name"), [(SCAN, "Normalisation"), (SCAW, "Triangular")])
def test_only_eq_keeps_patterns(geometry: Geometry, plan: Plan, name: str) -> None:
    message = f"got a {name} factor with geometry {geometry.name}; only EQ .* pass geometry=EQ"
    with pytest.raises(ValueError, match=message):
        Kron(plan=plan, geometry=geometry)


def test_a_plan_beside_its_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_skew = 2\.0 and a plan; give either"):
        Kron(plan=SizePlan(), max_skew=2.0)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_a_plan_for_matrices_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"AxisPlan\(diagonal, normalisation\) got .* 2 axes"):
        Kron(plan=SCAN, geometry=EQ).init(shape, torch.ones(1), torch.empty(0))


def test_eq_without_v_is_refused() -> None:
    form = Kron(geometry=EQ)
    assert form.needs_v
    state = form.init((3, 2), torch.ones(1), torch.empty(0))
    with pytest.raises(ValueError, match="without v"):
        form.update(state, Probe(h=torch.ones(1, 3, 2)), form.draw(state, generator()), 0.1)


def test_forms_are_equal_by_value() -> None:
    assert Kron(plan=SCAN, geometry=EQ) == dataclasses.replace(Kron(geometry=EQ), plan=SCAN)
    assert Kron(plan=SCAN, geometry=EQ) != Kron(plan=SCAW, geometry=EQ)


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
    torch.testing.assert_close(form.to_dense(changed), q, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("normaliser", [MaxEntry(), SpectralNorm(), FrobeniusNorm()])
@pytest.mark.parametrize("geometry", [EQ, QEP, QUAD, PRO4P])
def test_first_order_steps_leave_tensors_of_order_three_finite(
    geometry: Geometry, normaliser: MaxEntry | SpectralNorm | FrobeniusNorm
) -> None:
    q = run(Kron(max_skew=math.inf, geometry=geometry, normaliser=normaliser), (2, 3, 2))
    assert bool((torch.linalg.slogdet(q)[0] == 1).all())
