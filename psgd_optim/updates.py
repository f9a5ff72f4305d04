"""The preconditioned gradients of a step, as clips see them: stacks of rows and their norms."""

import math
from typing import final

import torch
from torch import Tensor

from psgd_optim.linalg import Mask, host_values, known, per_block, row_norms, row_peaks


@final
class Update:
    """The preconditioned gradients of one block.

    Attributes:
        rows: (B, *shape).
    """

    def __init__(self, rows: Tensor) -> None:
        """Take a stack (B, *shape), which is changed in place."""
        self.rows = rows
        self._norms: Tensor | None = None

    def finite(self) -> Mask:
        """Return which rows are finite throughout."""
        norms = row_norms(self.rows)
        if _are_exact(norms):
            self._norms = norms
            return None
        # Squares may overflow where the numbers do not.
        return known(row_peaks(self.rows).isfinite())

    def norms(self) -> Tensor:
        """Return the 2-norm of each row, (B,), of any size that the dtype holds."""
        if self._norms is None:
            norms = row_norms(self.rows)
            self._norms = norms if _are_exact(norms) else _scaled_norms(self.rows)
        return self._norms

    def rms(self) -> Tensor:
        """Return the root mean square of each row, (B,)."""
        rms: Tensor = self.norms() / math.prod(self.rows.shape[1:]) ** 0.5
        return rms

    def scale_(self, factors: Tensor) -> None:
        """Multiply the rows by one factor for all, or for each (B,)."""
        self.rows.mul_(per_block(factors.to(self.rows.real.dtype), self.rows))
        self._norms = None if self._norms is None else self._norms * factors

    def limit_(self, limit: float) -> None:
        """Limit the modulus of every element, keeping its sign or phase."""
        if self.rows.is_complex():
            self.rows.mul_((limit / self.rows.abs()).clamp(max=1.0))
        else:
            self.rows.clamp_(-limit, limit)
        self._norms = None


def _are_exact(norms: Tensor) -> bool:
    """Return whether norms are known to come from squares that kept their digits."""
    values = host_values(norms)
    least = math.sqrt(torch.finfo(norms.dtype).tiny) * 1e8
    return values is not None and all(least < norm < math.inf for norm in values)


def _scaled_norms(rows: Tensor) -> Tensor:
    """Return norms computed relative to the largest modulus, so that no square leaves the range."""
    peaks = row_peaks(rows).clamp(min=torch.finfo(rows.dtype).tiny)
    return peaks * row_norms(rows / per_block(peaks, rows))
