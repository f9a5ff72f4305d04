import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.types import Probe, State
from tests import reference
from tests.psgd_optim.forms.contract import B, FormContract, generator


class TestDiagonal(FormContract):
    def make(self, **settings: object) -> Preconditioner:
        return Diagonal(**settings)

    def expected_update(
        self, state: State, row: int, probe: Probe, rate: float
    ) -> dict[str, Tensor | float]:
        v = None if probe.v is None else probe.v[row]
        q, bound = reference.diagonal_update(
            state["q"][row], float(state["l"][row]), probe.h[row], v, rate, beta=0.9
        )
        return {"dense": q.flatten().diag(), "l": bound}

    def expected_numel(self, shape: tuple[int, ...]) -> int:
        return torch.Size(shape).numel()

    def hessians(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n = torch.Size(shape).numel()
        values = 0.3 + torch.rand(B, n, generator=generator(7), dtype=torch.float64)
        return torch.diag_embed(values).to(dtype)

    def test_describe(self) -> None:
        assert Diagonal().describe((5, 4)) == "Diagonal(5, 4)"
