"""Products of a tensor with one factor per axis, and where a geometry takes its curvature terms."""

from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_optim.factors.base import Factor, SymmetricFactor
from psgd_optim.factors.matrix import GENERAL
from psgd_optim.geometry import Frame, Geometry
from psgd_optim.group_gradient import FactorGradient
from psgd_optim.step_size import MaxEntry, Normaliser
from psgd_optim.types import Probe, expect

Terms = tuple[Tensor, Tensor | float]
"""The curvature terms `T1` and `T2` of one axis, in the layout of `Factor.gram`."""


def check_factors(
    owner: str,
    geometry: Geometry,
    factors: Sequence[Factor],
    normaliser: Normaliser,
    dtype: torch.dtype | None,
) -> None:
    """Refuse factors, normalisers and dtypes that do not go together.

    Args:
        owner: The form, for the message.
        geometry: The geometry.
        factors: Every factor that the form may use.
        normaliser: What divides their steps.
        dtype: The wanted dtype of the factors' numbers.

    Raises:
        TypeError: If one is not what it should be.
        ValueError: If only the group product of EQ keeps a factor's pattern, if the largest entry
            does not bound a dense factor's step, or if `P` itself is to be stored in half
            precision.
    """
    expect(owner, "geometry", geometry, Geometry, "a value of psgd_optim.geometry, like EQ")
    for factor in factors:
        expect(owner, "a factor", factor, Factor, "one of psgd_optim.factors, like DIAGONAL")
        if geometry.frame is not Frame.LEFT and not isinstance(factor, SymmetricFactor):
            raise ValueError(
                f"{owner} got a {type(factor).__name__} factor with geometry {geometry.name}; "
                "only EQ keeps its structure: pass geometry=EQ."
            )
        if factor == GENERAL and isinstance(normaliser, MaxEntry):
            raise ValueError(
                f"{owner} got normaliser MaxEntry with a dense factor, whose norm can be n times "
                "its largest entry, so that Q gets singular; give SpectralNorm, FrobeniusNorm or "
                "LipschitzEMA, or a TRIANGULAR factor with geometry EQ."
            )
    if geometry.fits_p and dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"{owner} got dtype {dtype} with geometry {geometry.name}, which stores P; "
            "leave dtype out, or choose a geometry that stores Q."
        )


def as_matrix(geometry: Geometry, factor: Factor, q: Tensor) -> Tensor:
    """Return a factor of `Q` as full matrices, (B, n, n); a Hermitian root where `P` is stored."""
    if geometry.fits_p and isinstance(factor, SymmetricFactor):
        return factor.root(q)
    return factor.matrix(q)


def precondition(
    geometry: Geometry, factors: Sequence[Factor], qs: Sequence[Tensor], x: Tensor
) -> Tensor:
    """Return `P x`, one axis after the other.

    Args:
        geometry: Says whether the factors are those of `Q` or of `P`.
        factors: One per axis.
        qs: Their numbers, (B, ...) each.
        x: (B, n_1, ..., n_k), in the dtype of the numbers.

    Returns:
        A tensor of the shape of `x`.
    """
    for i, (factor, q) in enumerate(zip(factors, qs, strict=True)):
        if geometry.fits_p and isinstance(factor, SymmetricFactor):
            x = factor.multiply(factor.hermitian(q), x, i)
        else:
            x = factor.precondition(q, x, i)
    return x


def images(
    geometry: Geometry,
    factors: Sequence[Factor],
    qs: Sequence[Tensor],
    probe: Probe,
) -> tuple[Tensor, Tensor | None]:
    """Return the two tensors whose Gram matrices are the curvature terms.

    Args:
        geometry: Its frame says which.
        factors: One per axis.
        qs: Their numbers, in the dtype to compute in.
        probe: The sample.

    Returns:
        `Q h` and `Q^-H v` in the left frame, else `P h` and `v`, the latter `None` where it is
        integrated out.

    Raises:
        ValueError: If the left frame gets no `v`.
    """
    h, v = probe.h.to(qs[0].dtype), None if probe.v is None else probe.v.to(qs[0].dtype)
    if geometry.frame is not Frame.LEFT:
        return precondition(geometry, factors, qs, h), v
    if v is None:
        raise ValueError(f"Geometry {geometry.name} got a sample without v; give Probe both.")
    for i, (factor, q) in enumerate(zip(factors, qs, strict=True)):
        h, v = factor.multiply(q, h, i), factor.solve_adjoint(q, v, i)
    return h, v


def curvature_terms(
    geometry: Geometry, factors: Sequence[Factor], qs: Sequence[Tensor], probe: Probe
) -> list[Terms]:
    """Return the curvature terms of every axis, as `images` has them.

    Args:
        geometry: Its frame says where they are taken.
        factors: One per axis.
        qs: Their numbers, in the dtype to compute in.
        probe: The sample.

    Returns:
        One pair per axis; `T2` is a number, for that multiple of `I`, where `v` is integrated out.
    """
    x, y = images(geometry, factors, qs, probe)
    return [
        (f.gram(x, i), x[0].numel() / x.shape[i + 1] if y is None else f.gram(y, i))
        for i, f in enumerate(factors)
    ]


def factor_gradient(
    geometry: Geometry, factor: Factor, q: Tensor, terms: Terms, start: Tensor | None
) -> FactorGradient:
    """Return the gradient of one factor with the terms of its axis.

    Args:
        geometry: Its frame says whether they belong between `Q` and `Q^H`.
        factor: The factor.
        q: Its numbers.
        terms: From `curvature_terms`.
        start: The rows that norm estimates start from, if any.
    """
    t1, t2 = terms
    if geometry.frame is Frame.BOTH and isinstance(factor, SymmetricFactor):
        t1, t2 = factor.congruence(q, t1), factor.congruence(q, t2)
    return factor.gradient(t1, t2, start)
