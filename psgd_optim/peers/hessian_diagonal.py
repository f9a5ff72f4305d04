"""Diagonals of a Hessian that is never formed, from Hessian-vector products with random signs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from psgd_optim.curvature import Exact
from psgd_optim.derivatives import Closure
from psgd_optim.linalg import lift
from psgd_optim.noise import noise_generator, signs_like
from psgd_optim.types import InputError

_SOURCE = Exact()


@final
@dataclass(frozen=True, kw_only=True)
class HessianDiagonal:
    """Estimates from a few probes, by parameter where they are vectors.

    Args:
        row_squares: Of `diag(H^2)`, whose root is the equilibration preconditioner.
        diagonal: Of `diag(H)`, with its signs; its modulus is Jacobi's preconditioner.
        gradient_squares: Of `E[g^2]`, whose root RMSProp divides by.
        probes: How many.
    """

    row_squares: Mapping[Tensor, Tensor]
    diagonal: Mapping[Tensor, Tensor]
    gradient_squares: Mapping[Tensor, Tensor]
    probes: int

    def dominance(self) -> float:
        """Return the diagonal dominance in per cent, `100 sqrt(sum_i H_ii^2) / ||H||_F`.

        It is 100 for a diagonal `H` and about `100 / sqrt(N)` for one of independent entries.

        Source: S3, section 8. Deviation: the squares of the estimated diagonal also hold the noise
        of `n` probes, `(||H||_F^2 - sum_i H_ii^2) / n`, which alone would read as 10 % with 100
        of them. It is taken off, so that `sum_i H_ii^2` is unbiased, and at least 0.
        """
        n = self.probes
        squared_norm = sum(float(x.sum()) for x in self.row_squares.values())
        noisy = sum(float(x.square().sum()) for x in self.diagonal.values())
        squared_diagonal = max(0.0, (n * noisy - squared_norm) / (n - 1))
        return 100 * (squared_diagonal / squared_norm) ** 0.5 if squared_norm else 0.0


def estimate_hessian_diagonal(
    closure: Closure, params: Sequence[Tensor], *, probes: int = 100, seed: int = 0
) -> HessianDiagonal:
    """Estimate the diagonals of `H` and `H^2` by `E[v * H v]` and `E[(H v)^2]`.

    Both come from the same probes, signs `v` in {-1, 1}, one evaluation of the loss each. What is
    not finite makes the estimates not finite.

    Args:
        closure: Returns the loss, or yields its parts, without `backward`; if it returns another
            mini-batch in every call, `row_squares` also holds the mini-batches' variance.
        params: What to differentiate by; those that the loss does not depend on are left out.
        probes: How many; at least 2, as `dominance` takes off the noise of the estimate.
        seed: Of the probes.

    Returns:
        The estimates, in single precision or better.

    Raises:
        InputError: If there are too few probes, or the loss cannot be differentiated twice.

    Source: S3 (1), and section 7 for `E[v * H v]`. Deviation: S3's `v` are normal for the first.
    """
    if not isinstance(probes, int) or probes < 2:
        raise InputError(f"Got probes = {probes!r}; give an integer of at least 2.")
    sums: tuple[dict[Tensor, Tensor], ...] = ({}, {}, {})
    for number in range(probes):
        v = {
            p: signs_like(p, noise_generator(p.device, seed, number, place))
            for place, p in enumerate(params)
        }
        found = _SOURCE.evaluate(closure, params, v)
        for p, hv in found.products.items():
            wide = lift(hv)
            terms = (wide.square(), lift(v[p]) * wide, lift(found.grads[p]).square())
            for total, term in zip(sums, terms, strict=True):
                total[p] = total[p] + term if p in total else term
    row_squares, diagonal, gradient_squares = (
        {p: total / probes for p, total in each.items()} for each in sums
    )
    return HessianDiagonal(
        row_squares=row_squares,
        diagonal=diagonal,
        gradient_squares=gradient_squares,
        probes=probes,
    )


def cosine_distance(a: Mapping[Tensor, Tensor], b: Mapping[Tensor, Tensor]) -> float:
    """Return `1 - a . b / (|a| |b|)` of two vectors that lie in pieces, one per parameter.

    Args:
        a: By parameter; not all zero.
        b: Of the same parameters and shapes.

    Raises:
        InputError: If they are of other parameters.

    Source: S3, figure 4, which compares the roots of the preconditioners' estimates.
    """
    if a.keys() != b.keys():
        raise InputError(f"Got {len(a)} and {len(b)} parameters; give those of one model twice.")
    x, y = (torch.cat([each[p].flatten().double() for p in a]) for each in (a, b))
    return float(1 - torch.dot(x, y) / (x.norm() * y.norm()))
