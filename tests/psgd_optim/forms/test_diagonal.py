import pytest
import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.diagonal import Diagonal, Scalar
from psgd_optim.step_size import FrobeniusNorm, LipschitzEMA, MaxEntry, Normaliser, SpectralNorm
from psgd_optim.types import Probe, State
from tests import reference, reference_group
from tests.psgd_optim.forms.contract import REAL, B, FormContract, generator


def grown(old: Tensor, size: Tensor) -> Tensor:
    """Return the divisor of the default normaliser of both forms."""
    return torch.maximum(0.99 * old + 0.01 * size, size)


class TestDiagonal(FormContract):
    newton_steps = 300
    first_order_steps = 200
    whitening_steps = 300

    def make(self, **settings: object) -> Preconditioner:
        return Diagonal(**settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        v = None if probe.v is None else probe.v[row]
        q, bound = reference.diagonal_update(
            state["q"][row], state["l"][row], probe.h[row], v, rate, beta=0.99
        )
        return {"dense": q.flatten().diag(), "l": bound}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return torch.Size(shape).numel()

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n = torch.Size(shape).numel()
        values = 0.3 + torch.rand(B, n, generator=generator(7), dtype=torch.float64)
        return torch.diag_embed(values).to(dtype)

    def test_elements_of_very_different_scale_are_all_whitened(self) -> None:
        scales = torch.logspace(-3, 3, 7, dtype=REAL)
        form, rng = self.make(), generator(5)
        state = form.init((7,), torch.ones(1), torch.empty(0, dtype=REAL))
        for step in range(2000):
            h = scales * torch.randn(1, 7, generator=rng, dtype=REAL)
            form.update(state, Probe(h=h), form.draw(state, rng), 0.2 * 0.01 ** (step / 2000))
        whitened = state["q"][0].square() * scales  # P rms(h), 1 where the fit is done
        torch.testing.assert_close(whitened, torch.ones_like(whitened), rtol=0.1, atol=0)


class TestDiagonalWithOneStep(TestDiagonal):
    newton_steps = 500

    def make(self, **settings: object) -> Preconditioner:
        return Diagonal(elementwise=False, **settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        q, h = state["q"][row].flatten(), probe.h[row].flatten()
        a = (q * h).abs() ** 2
        b = q**-2 if probe.v is None else (probe.v[row].flatten() / q).abs() ** 2
        bound = grown(state["l"][row], (a + b).max())
        e = torch.diag(a - b)
        return {"dense": q.diag() - rate / bound * e @ q.diag(), "l": bound}

    def test_elements_of_very_different_scale_are_all_whitened(self) -> None:
        """One step cannot serve six orders of magnitude: the small ones hardly move."""
        form = self.make()
        state = form.init((2,), torch.ones(1), torch.empty(0, dtype=REAL))
        h = torch.tensor([[1e3, 1e-3]], dtype=REAL)
        form.update(state, Probe(h=h), {}, 0.2)
        fast, slow = (state["q"][0] - 1).abs().tolist()
        assert fast > 0.1 and slow < 1e-6


class TestScalar(FormContract):
    newton_steps = 200
    first_order_steps = 200
    whitening_steps = 300

    def make(self, **settings: object) -> Preconditioner:
        return Scalar(**settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        n = probe.h[row].numel()
        q = state["q"][row] * torch.eye(n, dtype=REAL)
        t1 = ((q.to(probe.h.dtype) @ probe.h[row].flatten()).abs() ** 2).sum()
        inverse = torch.linalg.inv(q)
        if probe.v is None:
            t2 = (inverse.mT @ inverse).trace()
        else:
            t2 = ((inverse.to(probe.v.dtype) @ probe.v[row].flatten()).abs() ** 2).sum()
        bound = grown(state["l"][row], t1 + t2)
        return {"dense": q * (1 - rate / bound * (t1 - t2)), "l": bound}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return 1

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n = torch.Size(shape).numel()
        values = 0.3 + torch.rand(B, 1, 1, generator=generator(7), dtype=REAL)
        return (values * torch.eye(n, dtype=REAL)).to(dtype)

    def test_p1_the_gradient_is_the_slope_along_the_identity(self) -> None:
        form = Scalar(normaliser=LipschitzEMA(beta=0.0))
        for v in (False, True):
            state, probe = self.moved((4, 3)), self.probe((4, 3), REAL, 5, v)
            q = form.to_dense(state)
            state["l"].zero_()
            form.update(state, probe, {}, 0.1)
            change = 1 - form.to_dense(state)[0, 0, 0] / q[0, 0, 0]
            found = change * state["l"][0] / 0.1
            eye, own = torch.eye(12, dtype=REAL), None if probe.v is None else probe.v[0].flatten()
            slope = reference_group.slope(q[0], probe.h[0].flatten(), own, eye)
            torch.testing.assert_close(found, slope, rtol=1e-6, atol=0)

    def test_the_empty_tensor_remembers_the_shape(self) -> None:
        state = self.fresh((4, 3))
        assert state["shape"].shape == (B, 0, 4, 3)


@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize("elementwise", [False, True])
def test_p1_the_gradient_is_the_slope_along_every_element(elementwise: bool, v: bool) -> None:
    form = Diagonal(elementwise=elementwise, normaliser=LipschitzEMA(beta=0.0))
    state = form.init((4,), torch.full((1,), 1.4), torch.empty(0, dtype=REAL))
    rng = generator(3)
    h, noise = torch.randn(2, 1, 4, generator=rng, dtype=REAL)
    for _ in range(2):  # the second update is not at a multiple of the identity
        q = form.to_dense(state)[0]
        form.update(state, Probe(h=h, v=noise if v else None), {}, 0.1)
    found = (1 - form.to_dense(state)[0].diagonal() / q.diagonal()) * state["l"][0] / 0.1
    for i in range(4):
        direction = torch.zeros(4, 4, dtype=REAL)
        direction[i, i] = 1.0
        slope = reference_group.slope(q, h[0], noise[0] if v else None, direction)
        torch.testing.assert_close(found[i], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("normaliser", "size"),
    [
        (MaxEntry(), lambda e: e.abs().max()),
        (SpectralNorm(), lambda e: e.abs().max()),
        (FrobeniusNorm(), lambda e: (e**2).sum().sqrt()),
    ],
)
def test_one_step_is_divided_by_a_size_of_the_whole_gradient(
    normaliser: Normaliser, size: object
) -> None:
    """Algorithms 4.3: q (1 - mu grad), mu = mu0 / max |grad|."""
    form = Diagonal(elementwise=False, normaliser=normaliser)
    state = form.init((6,), torch.full((1,), 1.4), torch.empty(0, dtype=REAL))
    h, v = torch.randn(2, 1, 6, generator=generator(3), dtype=REAL)
    q = state["q"][0].clone()
    form.update(state, Probe(h=h, v=v), {}, 0.3)
    e = (q * h[0]) ** 2 - (v[0] / q) ** 2
    assert callable(size)
    torch.testing.assert_close(state["q"][0], q * (1 - 0.3 / size(e) * e))


def test_the_largest_entry_of_one_element_gives_the_sign_rule() -> None:
    form = Diagonal(normaliser=MaxEntry())
    state = form.init((6,), torch.full((1,), 1.4), torch.empty(0, dtype=REAL))
    h, v = torch.randn(2, 1, 6, generator=generator(3), dtype=REAL)
    q = state["q"][0].clone()
    form.update(state, Probe(h=h, v=v), {}, 0.3)
    expected = q * (1 - 0.3 * torch.sign((q * h[0]).abs() - (v[0] / q).abs()))
    torch.testing.assert_close(state["q"][0], expected)


def test_p9_heavy_tailed_pairs_keep_q_positive() -> None:
    for form in (
        Diagonal(normaliser=MaxEntry()),
        Diagonal(elementwise=False, normaliser=MaxEntry()),
        Scalar(normaliser=MaxEntry()),
    ):
        rng = generator(4)
        state = form.init((5,), torch.ones(10), torch.empty(0, dtype=REAL))
        for _ in range(500):
            z = torch.randn(2, 10, 5, generator=rng, dtype=REAL)
            chi = -2 * torch.rand(2, 10, 5, generator=rng, dtype=REAL).clamp(min=1e-12).log()
            power = 10 ** (4 * torch.rand(2, 10, 1, generator=rng, dtype=REAL) - 2)
            h, v = power * z / (chi / 2).sqrt()  # Student t, two degrees of freedom
            form.update(state, Probe(h=h, v=v), {}, 0.9)
        assert bool((state["q"] > 0).all()) and bool(state["q"].isfinite().all())


def test_describe() -> None:
    assert Diagonal().describe((5, 4)) == "Diagonal(5, 4)"
    assert Scalar().describe((5, 4)) == "Scalar(5, 4)"
