import math

import pytest
import torch
from torch import Tensor

from psgd_optim.factors.matrix import GENERAL, TRIANGULAR, MatrixFactor
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.dense import Dense
from psgd_optim.geometry import EQ, PRO4P, Q0_5EQ1_5, QEP, QEQ, QUAD, QUAD4P, Geometry
from psgd_optim.step_size import MaxEntry
from psgd_optim.types import Probe, State
from tests import reference
from tests.psgd_optim.forms.contract import COMPLEX, REAL, B, FormContract, generator


def expected(
    geometry: Geometry, pattern: str, q: Tensor, bound: float, h: Tensor, v: Tensor | None
) -> tuple[Tensor, float]:
    """Return `Q` and its divisor after one update with rate 0.4, from explicit matrices."""
    t1, t2 = reference.curvature_terms([q], h.flatten(), v, 0, geometry.name)
    # |a|^2 + |b|^2: the sum of the norms, not the norm of the sum
    size = sum(float(torch.linalg.matrix_norm(t, 2)) for t in (t1, t2))
    bound = max(0.9 * bound + 0.1 * size, size)
    d = torch.where(reference.pattern_mask(pattern, len(q)), t1 - t2, 0)
    q = reference.step(geometry.name, q, d, 0.4 / bound)
    return (reference.root(q) if geometry.name.endswith("4P") else q), bound


class DenseContract(FormContract):
    geometry: Geometry = QUAD
    factor: MatrixFactor = GENERAL
    shapes = ((3, 2), (5,), (1,), (2, 1, 3))
    fit_shapes = ((4, 3),)
    tail_shapes = ((4, 3),)
    newton_steps = 500
    whitening_steps = 400

    def make(self, **settings: object) -> Preconditioner:
        return Dense(geometry=self.geometry, factor=self.factor, **settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        assert rate == 0.4
        v = None if probe.v is None else probe.v[row].flatten()
        args = state["q"][row], float(state["l"][row]), probe.h[row], v
        q, bound = expected(self.geometry, self.factor.name, *args)
        return {"dense": q, "l": bound}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        n = math.prod(shape)
        return n * n if self.factor is GENERAL else n * (n + 1) // 2

    def stored(self, state: State) -> int:
        n = state["q"].shape[-1]
        return int(reference.pattern_mask(self.factor.name, n).sum())

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        rng, n = generator(7), math.prod(shape)
        return torch.stack([reference.random_spd(n, rng, dtype) for _ in range(B)])


class TestDense(DenseContract):
    """QUAD, the default."""


class TestDenseTriangular(DenseContract):
    geometry = EQ
    factor = TRIANGULAR
    newton_steps = 1500
    whitening_steps = 1200  # measured 5 to 7 %
    first_order_steps = 700  # measured 0.24 % at most
    # Slower than a general Q: the order of the axes matters. Measured 5e-4.
    fit_error = 2e-3


class TestDenseEQ(DenseContract):
    """GL(n)."""

    geometry = EQ
    newton_steps = 1500
    whitening_steps = 1200  # measured 5 to 7 %
    fit_error = 1e-5  # measured 2e-6


class TestDenseQEP(DenseContract):
    geometry = QEP
    newton_steps = 1300
    whitening_steps = 1200  # measured 5 to 7 %


@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("geometry", [QEQ, Q0_5EQ1_5, QUAD4P, PRO4P])
@pytest.mark.parametrize("shape", [(3, 2), (), (1,)])
def test_every_geometry_follows_the_slow_reference(
    shape: tuple[int, ...],
    geometry: Geometry,
    dtype: torch.dtype,
    v: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("psgd_optim.linalg.spectral_norm_bound", reference.exact_norm)
    form, rng = Dense(geometry=geometry), generator(0)
    state = form.init(shape, torch.full((2,), 1.5), torch.empty(0, dtype=dtype))
    for _ in range(4):
        h, probe = torch.randn(2, 2, *shape, generator=rng, dtype=dtype)
        before = {name: x.clone() for name, x in state.items()}
        form.update(state, Probe(h=h, v=probe if v else None), form.draw(state, rng), 0.4)
        for row in range(2):
            other = probe[row].flatten() if v else None
            q, bound = expected(
                geometry, "dense", before["q"][row], float(before["l"][row]), h[row], other
            )
            torch.testing.assert_close(form.to_dense(state)[row], q, rtol=1e-9, atol=1e-10)
            assert float(state["l"][row]) == pytest.approx(bound, rel=1e-12)
    x = torch.randn(2, *shape, generator=rng, dtype=dtype)
    q = form.to_dense(state)
    p = (q.mH @ q @ x.reshape(2, -1, 1)).reshape(x.shape)
    torch.testing.assert_close(form.apply(state, x), p)


@pytest.mark.parametrize("geometry", [QUAD, QUAD4P, EQ])
def test_p3_an_indefinite_hessian_is_inverted_in_modulus(geometry: Geometry) -> None:
    """P3: `P = |H|^-1` from normal probes, whose noise is what is left: measured 0.01."""
    form, rng, steps = Dense(geometry=geometry), generator(0), 4000
    state = form.init((4,), torch.ones(1), torch.empty(0, dtype=REAL))
    basis = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=REAL))[0]
    curvatures = torch.tensor([-2.0, -0.5, 1.0, 3.0], dtype=REAL)
    hessian = basis @ curvatures.diag() @ basis.mT
    for t in range(steps):
        v = torch.randn(1, 4, generator=rng, dtype=REAL)
        rate = 0.2 * 0.001 ** (t / steps)
        form.update(state, Probe(h=v @ hessian, v=v), form.draw(state, rng), rate)
    q = form.to_dense(state)[0]
    wanted = basis @ curvatures.abs().reciprocal().diag() @ basis.mT
    assert float((q.mT @ q - wanted).norm() / wanted.norm()) < 0.02


def left_gradient(q: Tensor, h: Tensor, v: Tensor) -> Tensor:
    a, b = q @ h, torch.linalg.inv(q).mH @ v
    return torch.outer(a, a.conj()) - torch.outer(b, b.conj())


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("geometry", [QEP, QEQ, Q0_5EQ1_5])
def test_p1_each_name_is_the_metric_of_its_gradient(geometry: Geometry, dtype: torch.dtype) -> None:
    """P1: `T1 - T2` is the gradient over `E` in `dQ = Q^x E Q^y`, between powers of `Q`."""
    rng, n = generator(1), 4
    q = reference.random_spd(n, rng, dtype)
    h, v = torch.randn(2, n, generator=rng, dtype=dtype)
    root, p = reference.root(q), q @ q
    left, right, undo = {
        "QEP": (q, p, (torch.linalg.inv(q), torch.linalg.inv(q).mH)),
        "QEQ": (q, q, (torch.eye(n, dtype=dtype), torch.linalg.inv(q))),
        "Q0.5EQ1.5": (root, root @ q, (torch.linalg.inv(root), torch.linalg.inv(root))),
    }[geometry.name]
    t1, t2 = reference.curvature_terms([q], h, v, 0, geometry.name)
    gradient = undo[0] @ (t1 - t2) @ undo[1]

    def criterion(q: Tensor) -> float:
        return float((q @ h).norm() ** 2 + (torch.linalg.inv(q).mH @ v).norm() ** 2)

    for _ in range(6):
        e = torch.randn(n, n, generator=rng, dtype=dtype)
        dq = 1e-6 * left @ e @ right
        difference = (criterion(q + dq) - criterion(q - dq)) / 2e-6
        slope = float(2 * (e.conj() * gradient).sum().real)
        scale = float(e.norm() * gradient.norm())
        assert difference == pytest.approx(slope, rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("geometry", [EQ, QEP, QEQ, Q0_5EQ1_5, QUAD, QUAD4P, PRO4P])
def test_p1_a_small_step_falls_by_the_slope_of_the_criterion(
    geometry: Geometry, dtype: torch.dtype
) -> None:
    """P1: `c` falls along every geometry's own step, as its left gradient says."""
    form, rng = Dense(geometry=geometry), generator(2)
    state = form.init((4,), torch.ones(1), torch.empty(0, dtype=dtype))
    own = reference.random_spd(4, rng, dtype)
    state["q"].copy_(own[None])
    for _ in range(5):
        h, v = torch.randn(2, 4, generator=rng, dtype=dtype)
        trial = {name: x.clone() for name, x in state.items()}
        probe = Probe(h=h[None], v=v[None])
        form.update(trial, probe, form.draw(trial, rng), 3e-8)
        old, new = form.to_dense(state)[0], form.to_dense(trial)[0]
        change = [
            float((q @ h).norm() ** 2 + (torch.linalg.inv(q).mH @ v).norm() ** 2)
            for q in (old, new)
        ]
        e = (new - old) @ torch.linalg.inv(old)
        slope = float(2 * (e.conj() * left_gradient(old, h, v)).sum().real)
        assert change[1] - change[0] == pytest.approx(slope, rel=1e-6)
        assert slope < 0


@pytest.mark.parametrize("geometry", [EQ, QUAD])
def test_a_full_matrix_is_not_stepped_by_its_largest_entry(geometry: Geometry) -> None:
    with pytest.raises(ValueError, match="MaxEntry with a dense factor, whose norm"):
        Dense(geometry=geometry, normaliser=MaxEntry())


def test_a_triangle_has_no_other_geometry() -> None:
    message = "Dense got a Triangular factor with geometry QUAD; only EQ keeps its structure"
    with pytest.raises(ValueError, match=message):
        Dense(factor=TRIANGULAR)


@pytest.mark.parametrize("geometry", [QUAD4P, PRO4P])
def test_p_is_not_stored_in_half_precision(geometry: Geometry) -> None:
    with pytest.raises(ValueError, match=f"bfloat16 with geometry {geometry.name}"):
        Dense(geometry=geometry, dtype=torch.bfloat16)


@pytest.mark.parametrize("geometry", [EQ, QEP])
def test_a_sample_without_v_is_refused_where_it_is_needed(geometry: Geometry) -> None:
    form = Dense(geometry=geometry)
    assert form.needs_v
    state = form.init((3,), torch.ones(1), torch.empty(0))
    with pytest.raises(ValueError, match="without v"):
        form.update(state, Probe(h=torch.ones(1, 3)), {}, 0.1)


def test_describe() -> None:
    assert Dense().describe((3, 4)) == "Dense(12 dense)"
    assert Dense(geometry=EQ, factor=TRIANGULAR).describe((5,)) == "Dense(5 triangular)"
