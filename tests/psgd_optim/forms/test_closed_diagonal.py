import copy
import math

import pytest
import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.types import Probe, State
from tests.psgd_optim.forms.contract import REAL, B, FormContract, generator


class TestClosedDiagonal(FormContract):
    newton_steps = 200

    def make(self, **settings: object) -> Preconditioner:
        return ClosedDiagonal(**settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        t = float(state["updates"][row])
        keep = 0.0
        for _ in range(round(t)):  # the recursion of algorithms 4.3
            keep = min(0.99, 1 / (2 - keep))
        h2 = keep * state["h2"][row] + (1 - keep) * probe.h[row].abs() ** 2
        v2 = torch.ones_like(h2) if probe.v is None else probe.v[row].abs() ** 2
        v2 = keep * state["v2"][row] + (1 - keep) * v2
        root = (v2 / (h2 + 1e-18)).sqrt().sqrt()
        return {"dense": root.flatten().diag(), "updates": t + 1}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return 2 * torch.Size(shape).numel() + 1

    # Far from the start, which a rate below 0 must leave as it is.
    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n = torch.Size(shape).numel()
        values = 3.0 + torch.rand(B, n, generator=generator(7), dtype=REAL)
        return torch.diag_embed(values).to(dtype)

    def test_first_order_normalisers_fit_too(self) -> None:  # type: ignore[override]
        """There is no step to divide."""
        assert not hasattr(self.make(), "normaliser")

    def test_bfloat16_state_stays_bfloat16_and_follows_single_precision(self) -> None:
        """Averages are kept in single precision, whatever the parameters' dtype."""
        form = self.make()
        states = [
            form.init((5, 4), torch.ones(B), torch.empty(0, dtype=dtype))
            for dtype in (torch.bfloat16, torch.float32)
        ]
        for seed in range(300):
            probe = Probe(h=self.probe((5, 4), torch.float32, seed).h.bfloat16())
            for state in states:
                form.update(state, probe, {}, 0.1)
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
        x = torch.ones(B, 5, 4, dtype=torch.bfloat16)
        assert form.apply(states[0], x).dtype == torch.bfloat16

    def test_whitening_fits_the_inverse_root_of_the_second_moment(self) -> None:
        """P5, in closed form: the error of 2000 samples is 1 / (2 sqrt(1000)) = 1.6 %."""
        form, rng = ClosedDiagonal(beta=1.0), generator(2)
        state = form.init((7,), torch.ones(1), torch.empty(0, dtype=REAL))
        scales = torch.logspace(-2, 2, 7, dtype=REAL)
        samples = scales * torch.randn(2000, 1, 7, generator=rng, dtype=REAL)
        for h in samples:
            form.update(state, Probe(h=h), {}, 0.1)
        p = form.to_dense(state)[0].diagonal().square()
        wanted = samples[:, 0].square().mean(dim=0).rsqrt()
        torch.testing.assert_close(p, wanted)
        torch.testing.assert_close(p * scales, torch.ones_like(p), rtol=0.08, atol=0)


def test_a_uniform_average_of_pairs_is_equilibration() -> None:
    """S3, algorithm 1: the running sum of (H v)^2 over its count."""
    form, rng = ClosedDiagonal(beta=1.0), generator(2)
    hessian = torch.randn(5, 5, generator=rng, dtype=REAL)
    state = form.init((5,), torch.ones(1), torch.empty(0, dtype=REAL))
    total = torch.zeros(5, dtype=REAL)
    for k in range(1, 51):
        v = torch.randn(5, generator=rng, dtype=REAL)
        total += (hessian @ v) ** 2
        form.update(state, Probe(h=(hessian @ v)[None]), {}, 0.1)
        torch.testing.assert_close(state["h2"][0], total / k)


def test_it_forgets_at_the_rate_of_beta() -> None:
    form = ClosedDiagonal(beta=0.5)
    state = form.init((1,), torch.ones(1), torch.empty(0, dtype=REAL))
    for h in (1.0, 3.0, 5.0):
        form.update(state, Probe(h=torch.full((1, 1), h, dtype=REAL)), {}, 0.1)
    # keeps 0, then 1/2, then 1/2 instead of 2/3
    assert math.isclose(float(state["h2"]), ((1 + 9) / 2 + 25) / 2)


@pytest.mark.parametrize("rate", [0.0, -0.1])
def test_a_rate_that_is_not_positive_keeps_everything(rate: float) -> None:
    form = ClosedDiagonal()
    state = form.init((3,), torch.ones(2), torch.empty(0))
    before = copy.deepcopy(state)
    form.update(state, Probe(h=torch.ones(2, 3)), {}, rate)
    torch.testing.assert_close(state, before, rtol=0, atol=0)


def test_eps_bounds_p_where_gradients_vanish() -> None:
    form = ClosedDiagonal(eps=1e-4)
    state = form.init((3,), torch.ones(1), torch.empty(0, dtype=REAL))
    form.update(state, Probe(h=torch.zeros(1, 3, dtype=REAL)), {}, 0.1)
    x = torch.ones(1, 3, dtype=REAL)
    torch.testing.assert_close(form.apply(state, x), 100 * x)


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_gradients_of_any_usual_size_are_whitened(size: float) -> None:
    form, h = ClosedDiagonal(), torch.full((1, 3), size)
    state = form.init((3,), torch.ones(1), torch.empty(0))
    form.update(state, Probe(h=h), {}, 0.1)
    torch.testing.assert_close(form.apply(state, h), torch.ones(1, 3))


@pytest.mark.parametrize("settings", [{"beta": -0.1}, {"beta": 1.1}, {"eps": 0.0}, {"eps": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give a"):
        ClosedDiagonal(**settings)


def test_describe() -> None:
    assert ClosedDiagonal().describe((5, 4)) == "ClosedDiagonal(5, 4)"
