"""The preconditioned gradients of a step, as clips see them: stacks of rows and their norms."""

import math
from typing import final

import torch
from torch import Tensor

from psgd_optim.host import host_values
from psgd_optim.linalg import per_block, row_norms, row_peaks


@final
class Update:
    """The preconditioned gradients of one block.

    Attributes:
        rows: (B, *shape).
    """

    def __init__(
        self, rows: Tensor, plain_norms: Tensor | None = None, lengths: Tensor | None = None
    ) -> None:
        """Take a stack, which is changed in place, and its norms where they are known.

        Args:
            rows: (B, *shape).
            plain_norms: (B,), what `row_norms` makes of them: its squares may have left the range.
            lengths: (B,), `sqrt(m^T u)` for updates `u = P m`, if a clip needs them.
        """
        self.rows = rows
        self._plain_norms = plain_norms
        self._norms: Tensor | None = None
        self._lengths = lengths

    def norms(self) -> Tensor:
        """Return the 2-norm of each row, (B,), of any size that the dtype holds."""
        if self._norms is None:
            norms = row_norms(self.rows) if self._plain_norms is None else self._plain_norms
            self._norms = norms if are_exact(norms) else _scaled_norms(self.rows)
        return self._norms

    def lengths(self) -> Tensor:
        """Return the length of each row in the metric `P^-1` of its preconditioner, (B,).

        Limits of single elements are not accounted for.

        Raises:
            ValueError: If no clip has said that it needs them.
        """
        if self._lengths is None:
            raise ValueError("An Update has no lengths; give the clip needs_lengths = True.")
        return self._lengths

    def surely_within(self, limit: float) -> bool:
        """Return whether no row's root mean square is known to be above a limit."""
        values = host_values(self.norms())
        most = limit * math.prod(self.rows.shape[1:]) ** 0.5
        return values is not None and all(norm <= most for norm in values)

    def rms(self) -> Tensor:
        """Return the root mean square of each row, (B,)."""
        rms: Tensor = self.norms() / math.prod(self.rows.shape[1:]) ** 0.5
        return rms

    def scale_(self, factors: Tensor) -> None:
        """Multiply the rows by one factor for all, or for each (B,)."""
        self.rows.mul_(per_block(factors.to(self.rows.real.dtype), self.rows))
        self._norms = None if self._norms is None else self._norms * factors
        self._lengths = None if self._lengths is None else self._lengths * factors
        self._plain_norms = None

    def limit_(self, limit: float) -> None:
        """Limit the modulus of every element, keeping its sign or phase."""
        if self.rows.is_complex():
            self.rows.mul_((limit / self.rows.abs()).clamp(max=1.0))
        else:
            self.rows.clamp_(-limit, limit)
        self._norms = self._plain_norms = None


def are_exact(norms: Tensor) -> bool:
    """Return whether norms are known to come from squares that kept their digits."""
    values = host_values(norms)
    least = math.sqrt(torch.finfo(norms.dtype).tiny) * 1e8
    return values is not None and all(least < norm < math.inf for norm in values)


def _scaled_norms(rows: Tensor) -> Tensor:
    """Return norms computed relative to the largest modulus, so that no square leaves the range."""
    peaks = row_peaks(rows).clamp(min=torch.finfo(rows.dtype).tiny)
    return peaks * row_norms(rows / per_block(peaks, rows))
