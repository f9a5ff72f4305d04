import copy
import math

import pytest
import torch
from torch import Tensor

from psgd_optim.axis_plan import AxisPlan
from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR
from psgd_optim.factors.normalisation import NORMALISATION
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.touched_rows import TouchedRows
from psgd_optim.frames import curvature_terms
from psgd_optim.geometry import EQ, PRO4P, Q0_5EQ1_5, QEP, QUAD, QUAD4P, Geometry
from psgd_optim.row_fit import ExactRows, LazyRows, RowFit
from psgd_optim.types import Probe, State
from tests import reference, reference_touched
from tests.psgd_optim.forms.contract import COMPLEX, REAL, B, FormContract, generator
from tests.reference_touched import Rules

FRAMES = {"EQ": "left", "Q0.5EQ1.5": "right", "QEP": "both"}


class TouchedContract(FormContract):
    """With every row touched, as a dense gradient does."""

    shapes = ((5, 4), (7, 1), (1, 1), (2, 1), (1, 3))
    fit_shapes = ((4, 3),)
    newton_steps = 200
    first_order_steps = 200
    whitening_steps = 300  # measured 5 % at most
    tail_shapes = ((4, 3), (2, 2), (6, 1))
    columns: Factor = GENERAL
    geometry: Geometry = Q0_5EQ1_5

    def make(self, **settings: object) -> Preconditioner:
        return TouchedRows(columns=self.columns, geometry=self.geometry, **settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        q, columns = state["q0"][row], state["q1"][row]
        v = None if probe.v is None else probe.v[row]
        rules = Rules(frame=FRAMES[self.geometry.name], upper=self.columns is TRIANGULAR)
        q, columns, bounds = reference_touched.update(
            q,
            columns,
            (float(state["l0"][row]), float(state["l1"][row])),
            (probe.h[row], v),
            torch.arange(len(q)),
            rate,
            rules,
        )
        dense = torch.kron(q.diag(), reference_touched.as_matrix(columns))
        return {"dense": dense, "l0": bounds[0], "l1": bounds[1]}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return shape[0] + shape[1] ** 2

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        rng = generator(7)
        stack = []
        for _ in range(B):
            rows = (0.3 + torch.rand(shape[0], generator=rng, dtype=REAL)).to(dtype)
            stack.append(torch.kron(rows.diag(), reference.random_spd(shape[1], rng, dtype)))
        return torch.stack(stack)


class TestTouchedRows(TouchedContract):
    """The default: whitening of the columns in the default geometry."""


class TestTouchedRowsTriangular(TouchedContract):
    columns, geometry = TRIANGULAR, EQ
    newton_steps = 800  # measured 1e-8

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return shape[0] + shape[1] * (shape[1] + 1) // 2

    def stored(self, state: State) -> int:
        return state["q0"].shape[1] + int(torch.ones_like(state["q1"][0]).triu().sum())


ROWS, COLUMNS = 6, 3
INDEX = torch.tensor([4, 1])


def moved(form: TouchedRows, dtype: torch.dtype = REAL, times: int = 3) -> State:
    """Return a state off the identity, with rows of different size."""
    rng = generator(0)
    state = form.init((ROWS, COLUMNS), torch.full((1,), 1.5), torch.empty(0, dtype=dtype))
    for _ in range(times):
        h, v = (torch.randn(1, ROWS, COLUMNS, generator=rng, dtype=dtype) for _ in range(2))
        form.update(state, Probe(h=h, v=v), form.draw(state, rng), 0.3)
    return state


def sample(seed: int, dtype: torch.dtype = REAL, v: bool = True) -> Probe:
    rng = generator(seed)
    h, noise = (torch.randn(1, 2, COLUMNS, generator=rng, dtype=dtype) for _ in range(2))
    return Probe(h=h, v=noise if v else None)


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows(damping=0.3)])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize(
    ("columns", "geometry"),
    [(GENERAL, Q0_5EQ1_5), (DIAGONAL, Q0_5EQ1_5), (TRIANGULAR, EQ), (GENERAL, EQ), (GENERAL, QEP)],
)
def test_p21_some_rows_follow_the_dense_formula(
    rows: RowFit,
    dtype: torch.dtype,
    v: bool,
    columns: Factor,
    geometry: Geometry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("psgd_optim.linalg.spectral_norm_bound", reference.exact_norm)
    form = TouchedRows(rows=rows, columns=columns, geometry=geometry)
    state, probe = moved(form, dtype), sample(5, dtype, v or form.needs_v)
    before = copy.deepcopy(state)
    at = form.at((ROWS, COLUMNS), INDEX)
    at.update(state, probe, at.draw(state, generator()), 0.4)
    exact = isinstance(rows, ExactRows)
    rules = Rules(
        frame=FRAMES[geometry.name],
        exact=exact,
        damping=0.3 if exact else 0.0,
        upper=columns is TRIANGULAR,
    )
    q, second, bounds = reference_touched.update(
        before["q0"][0],
        before["q1"][0],
        (float(before["l0"]), float(before["l1"])),
        (probe.h[0], None if probe.v is None else probe.v[0]),
        INDEX,
        0.4,
        rules,
    )
    torch.testing.assert_close(state["q0"][0], q.to(state["q0"].dtype), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state["q1"][0], second.to(dtype), rtol=1e-10, atol=1e-12)
    assert (float(state["l0"]), float(state["l1"])) == pytest.approx(bounds, rel=1e-12)
    untouched = [0, 2, 3, 5]
    kept = torch.equal(state["q0"][0, untouched], before["q0"][0, untouched])
    assert kept == (not exact)


@pytest.mark.parametrize("geometry", [QUAD, QUAD4P, PRO4P])
def test_exact_rows_of_every_geometry_are_those_of_a_sample_with_zeros(geometry: Geometry) -> None:
    form = TouchedRows(rows=ExactRows(damping=0.0), geometry=geometry)
    state, probe = moved(form), sample(5, v=False)
    wide = torch.zeros(1, ROWS, COLUMNS, dtype=REAL)
    wide[:, INDEX] = probe.h
    dense = copy.deepcopy(state)
    at = form.at((ROWS, COLUMNS), INDEX)
    at.update(state, probe, at.draw(state, generator()), 0.4)
    form.update(dense, Probe(h=wide), form.draw(dense, generator()), 0.4)
    torch.testing.assert_close(state, dense, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("geometry", [Q0_5EQ1_5, QEP, QUAD, QUAD4P, EQ])
def test_exact_rows_are_the_mean_over_damped_dense_samples(geometry: Geometry) -> None:
    """The expectations by Monte Carlo: gradients are linear in the terms, and so are steps."""
    damping = 0.7
    form = TouchedRows(rows=ExactRows(damping=damping), geometry=geometry)
    state, probe, rng = moved(form), sample(5), generator(3)
    qs = (state["q0"], state["q1"])
    many = 20_000
    repeated = {name: x.expand(many, *x.shape[1:]).clone() for name, x in state.items()}
    noise_h, noise_v = (
        torch.randn(many, ROWS, COLUMNS, generator=rng, dtype=REAL) for _ in range(2)
    )
    h, v = damping * noise_h, noise_v
    h[:, INDEX], v[:, INDEX] = probe.h, probe.v
    factors = (DIAGONAL, GENERAL)
    seen = curvature_terms(geometry, factors, (qs[0][:, INDEX], qs[1]), probe)
    found = form.rows.terms(geometry, GENERAL, qs, INDEX, seen)
    wide = curvature_terms(geometry, factors, (repeated["q0"], repeated["q1"]), Probe(h=h, v=v))
    for mine, theirs in zip(found, wide, strict=True):
        for x, many_x in zip(mine, theirs, strict=True):
            spread = many_x.std(dim=0) / math.sqrt(many)
            # Five standard errors of each entry's mean.
            assert bool(((x[0] - many_x.mean(dim=0)).abs() <= 5 * spread + 1e-9).all())


def criterion(q: Tensor, columns: Tensor, probe: Probe, rules: Rules) -> Tensor:
    """Return c(P) of the touched rows, or its expectation over all rows."""
    if not rules.exact:
        q, index = q[INDEX], torch.arange(2)
    else:
        index = INDEX
    full = torch.kron(q.diag(), columns)
    assert probe.v is not None
    c_h, c_v = reference_touched.covariances(len(q), probe.h[0], probe.v[0], index, rules)
    p = full.mT @ full
    return (p @ c_h).trace() + (torch.linalg.inv(p) @ c_v).trace()


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows(damping=0.3)])
@pytest.mark.parametrize("columns", [GENERAL, TRIANGULAR])
def test_p1_the_step_is_along_the_gradient_of_the_criterion(rows: RowFit, columns: Factor) -> None:
    """P1: finite differences of c along every allowed direction, with the left gradient of EQ."""
    form = TouchedRows(rows=rows, columns=columns, geometry=EQ)
    state, probe, rate = moved(form), sample(5), 0.4
    before = copy.deepcopy(state)
    at = form.at((ROWS, COLUMNS), INDEX)
    at.update(state, probe, at.draw(state, generator()), rate)
    q, old = before["q0"][0], before["q1"][0]
    rules = Rules(exact=isinstance(rows, ExactRows), damping=0.3)
    # The step is Q - (rate / L) E Q, so that E follows from the factors before and after.
    e_rows = (1 - state["q0"][0] / q) * state["l0"] / rate
    e_columns = (old - state["q1"][0]) @ torch.linalg.inv(old) * state["l1"] / rate
    d = 1e-6
    for i in range(ROWS):
        change = torch.zeros(ROWS, dtype=REAL)
        change[i] = d
        up, down = (criterion(q * (1 + s * change), old, probe, rules) for s in (1, -1))
        assert float((up - down) / (4 * d)) == pytest.approx(float(e_rows[i]), rel=1e-6, abs=1e-6)
    for i in range(COLUMNS):
        for j in range(i if columns is TRIANGULAR else 0, COLUMNS):
            change = torch.eye(COLUMNS, dtype=REAL) * 0
            change[i, j] = d
            up, down = (criterion(q, old + s * change @ old, probe, rules) for s in (1, -1))
            wanted = pytest.approx(float(e_columns[i, j]), rel=1e-6, abs=1e-6)
            assert float((up - down) / (4 * d)) == wanted


def fitted(rows: RowFit, steps: int, sign: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whiten rows of different size and chance; return P, sizes, chances and the columns' P."""
    rng = generator(1)
    chances = torch.tensor([1.0, 0.7, 0.5, 0.3], dtype=REAL)
    sizes = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=REAL)
    moment = reference.random_spd(2, rng, REAL)
    root = torch.linalg.cholesky(moment)
    form = TouchedRows(rows=rows)
    state = form.init((4, 2), torch.ones(1), torch.empty(0, dtype=REAL))
    for t in range(steps):
        index = (torch.rand(4, generator=rng, dtype=REAL) < chances).nonzero()[:, 0]
        z = torch.randn(1, len(index), 2, generator=rng, dtype=REAL) @ root.mT
        at = form.at((4, 2), index)
        rate = sign * 0.2 * 0.005 ** (t / steps)
        at.update(state, Probe(h=sizes[index, None] * z), at.draw(state, rng), rate)
    q = form.to_dense(state)[0]
    return q.mT @ q, sizes, chances, reference.inverse_square_root(moment)


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows()])
def test_p5_each_fit_finds_its_own_minimiser(rows: RowFit) -> None:
    """Exact: (E[h h^T])^-1/2 over all mini-batches. Lazy: over those that touch the row."""
    p, sizes, chances, columns = fitted(rows, 800)
    if isinstance(rows, ExactRows):
        sizes = sizes * chances.sqrt()
    wanted = torch.kron(sizes.reciprocal().diag(), columns)
    assert float((p - wanted).norm() / wanted.norm()) < 0.08  # the bound of P5


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows()])
def test_a_fit_to_some_rows_fails_with_the_wrong_sign(rows: RowFit) -> None:
    p, sizes, _, columns = fitted(rows, 200, sign=-1.0)
    wanted = torch.kron(sizes.reciprocal().diag(), columns)
    assert not float((p - wanted).norm() / wanted.norm()) < 0.5


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows()])
@pytest.mark.parametrize(
    ("columns", "geometry"), [(GENERAL, Q0_5EQ1_5), (TRIANGULAR, EQ), (NORMALISATION, EQ)]
)
def test_p9_heavy_tails_keep_q_in_its_group(
    rows: RowFit, columns: Factor, geometry: Geometry
) -> None:
    form, rng = TouchedRows(rows=rows, columns=columns, geometry=geometry), generator(4)
    state = form.init((ROWS, COLUMNS), torch.ones(1), torch.empty(0, dtype=REAL))
    for _ in range(600):
        index = torch.randperm(ROWS, generator=rng)[: 1 + int(torch.randint(3, (), generator=rng))]
        z, v, tail = (
            torch.randn(1, len(index), COLUMNS, generator=rng, dtype=REAL) for _ in range(3)
        )
        power = 10 ** (4 * torch.rand((), generator=rng, dtype=REAL) - 2)
        probe = Probe(h=power * z / (tail.abs() + 1e-3), v=v if form.needs_v else None)
        at = form.at((ROWS, COLUMNS), index)
        at.update(state, probe, at.draw(state, rng), 0.87)
    dense = form.to_dense(state)
    assert bool(dense.isfinite().all())
    assert bool((torch.linalg.slogdet(dense).sign > 0).all())


def test_exact_rows_bound_the_preconditioner_of_a_row_that_never_comes() -> None:
    damping = 0.01
    form, rng = TouchedRows(rows=ExactRows(damping=damping)), generator(2)
    state = form.init((3, 2), torch.ones(1), torch.empty(0, dtype=REAL))
    at = form.at((3, 2), torch.tensor([0, 2]))
    for _ in range(1500):
        h = torch.randn(1, 2, 2, generator=rng, dtype=REAL)
        at.update(state, Probe(h=h), at.draw(state, rng), 0.1)
    q = form.to_dense(state)[0]
    p = (q.mT @ q)[2:4, 2:4]
    # The row's P tends to I / damping and stays near it.
    assert float(torch.linalg.matrix_norm(p, 2)) < 1.5 / damping
    assert float(p.trace() / 2) > 0.5 / damping


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows()])
def test_p14_all_rows_touched_is_kron_with_that_plan(rows: RowFit) -> None:
    form, kron = TouchedRows(rows=rows), Kron(plan=AxisPlan((DIAGONAL, GENERAL)))
    states = [
        f.init((ROWS, COLUMNS), torch.full((1,), 1.5), torch.empty(0, dtype=REAL))
        for f in (form, form, kron)
    ]
    order = torch.randperm(ROWS, generator=generator(8))
    at = form.at((ROWS, COLUMNS), order)
    for t in range(5):
        h = torch.randn(1, ROWS, COLUMNS, generator=generator(t), dtype=REAL)
        draws = form.draw(states[0], generator(t))
        form.update(states[0], Probe(h=h), draws, 0.3)
        at.update(states[1], Probe(h=h[:, order]), draws, 0.3)
        kron.update(states[2], Probe(h=h), draws, 0.3)
    x = torch.randn(1, ROWS, COLUMNS, generator=generator(9), dtype=REAL)
    wanted = kron.apply(states[2], x)
    torch.testing.assert_close(form.apply(states[0], x), wanted)
    torch.testing.assert_close(at.apply(states[1], x[:, order]), wanted[:, order])


def test_p15_some_rows_are_those_of_the_dense_product() -> None:
    form = TouchedRows()
    state, x = moved(form), sample(1).h
    wide = torch.zeros(1, ROWS, COLUMNS, dtype=REAL)
    wide[:, INDEX] = x
    q = form.to_dense(state)[0]
    wanted = (q.mT @ q @ wide.flatten()).view(ROWS, COLUMNS)
    at = form.at((ROWS, COLUMNS), INDEX)
    torch.testing.assert_close(at.apply(state, x)[0], wanted[INDEX])
    part = at.to_dense(state)[0]
    torch.testing.assert_close((part.mT @ part @ x.flatten()).view(2, COLUMNS), wanted[INDEX])


@pytest.mark.parametrize("rows", [LazyRows(), ExactRows()])
def test_a_sample_of_some_rows_too_large_to_square_changes_nothing(rows: RowFit) -> None:
    form = TouchedRows(rows=rows)
    state = moved(form, torch.float32)
    before = copy.deepcopy(state)
    at = form.at((ROWS, COLUMNS), INDEX)
    h = torch.full((1, 2, COLUMNS), 1e30)
    at.update(state, Probe(h=h), at.draw(state, generator()), 0.3)
    torch.testing.assert_close(state, before, rtol=0, atol=0)


def test_the_form_of_some_rows_keeps_the_facts_of_the_whole() -> None:
    form = TouchedRows(columns=TRIANGULAR, geometry=EQ)
    at = form.at((50, 4), INDEX)
    assert at.needs_v and at.numel((2, 4)) == form.numel((50, 4)) == 50 + 10
    assert (
        at.describe((2, 4)) == form.describe((50, 4)) == ("TouchedRows(50 diagonal, 4 triangular)")
    )
    assert at.init((2, 4), torch.ones(1), torch.empty(0))["q0"].shape == (1, 50)


def test_the_form_is_a_value() -> None:
    assert TouchedRows() == TouchedRows() != TouchedRows(rows=ExactRows())
    assert hash(TouchedRows()) == hash(copy.deepcopy(TouchedRows()))
    assert "_kron" not in repr(TouchedRows())


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(7,\); give it matrices with a row per token"):
        TouchedRows().init((7,), torch.ones(1), torch.empty(0))
    with pytest.raises(ValueError, match=r"TouchedRows got a Triangular factor .* geometry=EQ"):
        TouchedRows(columns=TRIANGULAR)
    for damping in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"damping = .* at least 0"):
            ExactRows(damping=damping)
