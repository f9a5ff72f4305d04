import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.types import Probe, State
from tests import reference
from tests.psgd_optim.forms.contract import REAL, B, FormContract, generator


class TestDiagonal(FormContract):
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

    def test_describe(self) -> None:
        assert Diagonal().describe((5, 4)) == "Diagonal(5, 4)"
