import math

import pytest
import torch
from torch import Tensor

from psgd_optim.axis_plan import plan_by_size
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.kron import Kron
from psgd_optim.types import Probe, State
from tests import reference
from tests.psgd_optim.forms.contract import REAL, B, FormContract, generator


class KronContract(FormContract):
    max_skew = 1.0

    def make(self, **settings: object) -> Preconditioner:
        return Kron(max_skew=self.max_skew, **settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        axes = range(probe.h.ndim - 1)
        qs = [state[f"q{i}"][row] for i in axes]
        ls = [float(state[f"l{i}"][row]) for i in axes]
        v = None if probe.v is None else probe.v[row]
        qs, ls = reference.kron_update(qs, ls, probe.h[row], v, rate, beta=0.9)
        dense = reference.kron_all([q if q.ndim == 2 else q.diag() for q in qs])
        return {"dense": dense, **{f"l{i}": bound for i, bound in enumerate(ls)}}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        dense = [n > 1 and n * n <= self.max_skew * math.prod(shape) for n in shape]
        return sum(n * n if full else n for n, full in zip(shape, dense, strict=True))

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        rng = generator(7)
        plan = plan_by_size(shape, math.inf, self.max_skew)
        stack = []
        for _ in range(B):
            factors = []
            for factor, n in zip(plan, shape, strict=True):
                m = reference.random_spd(n, rng, dtype)
                factors.append(m if factor.name == "dense" else m.diagonal().real.diag().to(dtype))
            stack.append(reference.kron_all(factors))
        return torch.stack(stack)


class TestKron(KronContract):
    """The default plan: a diagonal factor on the long side."""


class TestKronAllDense(KronContract):
    max_skew = math.inf


class TestKronAllDiagonal(KronContract):
    max_skew = 0.0


def test_one_dense_axis_fits_any_covariance() -> None:
    form = Kron(max_skew=math.inf)
    state = form.init((4,), torch.ones(1), torch.empty(0, dtype=REAL))
    rng = generator(0)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=REAL))[0]
    curvatures = torch.tensor([-2.0, -0.5, 1.0, 3.0], dtype=REAL)
    hessian = basis @ curvatures.diag() @ basis.mT  # indefinite: P fits |H|^-1
    steps = 8000
    for t in range(steps):
        v = torch.randn(1, 4, generator=rng, dtype=REAL)
        rate = 0.2 * 0.005 ** (t / steps)
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
