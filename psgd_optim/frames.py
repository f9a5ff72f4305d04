"""Products of a tensor with one factor per axis, and where a geometry takes its curvature terms."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_optim.factors.base import Factor, SymmetricFactor
from psgd_optim.factors.matrix import GENERAL, General
from psgd_optim.geometry import Frame, Geometry
from psgd_optim.group_gradient import FactorGradient, GramNorm, MatrixGradient, ThinGradient
from psgd_optim.linalg import unfold
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


def operators(
    geometry: Geometry,
    factors: Sequence[Factor],
    qs: Sequence[Tensor],
    shape: Sequence[int],
    uses: float,
) -> list[Tensor | None]:
    """Return the factors of `P` by which `multiply` preconditions, one per axis.

    Args:
        geometry: Says whether the factors are those of `Q` or of `P`.
        factors: One per axis.
        qs: Their numbers, (B, ...) each.
        shape: Of one tensor that they precondition.
        uses: How many of them before the factors change.

    Returns:
        `None` where a product with `Q` and one with `Q^H` cost less.
    """
    elements = math.prod(shape)
    return [_operator(geometry, *pair, elements, uses) for pair in zip(factors, qs, strict=True)]


def _operator(
    geometry: Geometry, factor: Factor, q: Tensor, elements: int, uses: float
) -> Tensor | None:
    if geometry.fits_p and isinstance(factor, SymmetricFactor):
        return factor.hermitian(q)
    return factor.square(q, elements, uses)


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
        x = precondition_axis(geometry, factor, q, x, i)
    return x


def precondition_axis(
    geometry: Geometry, factor: Factor, q: Tensor, x: Tensor, axis: int
) -> Tensor:
    """Return the product of one axis of a tensor with its factor of `P`."""
    if geometry.fits_p and isinstance(factor, SymmetricFactor):
        return factor.multiply(factor.hermitian(q), x, axis)
    return factor.precondition(q, x, axis)


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
        if probe.image is not None:
            return probe.image.to(h.dtype), v
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


def sample_gradients(
    geometry: Geometry,
    factors: Sequence[Factor],
    qs: Sequence[Tensor],
    probe: Probe,
    starts: Sequence[Tensor | None],
) -> list[FactorGradient]:
    """Return the gradients of all factors from one sample.

    Args:
        geometry: Its frame says where the terms are taken.
        factors: One per axis.
        qs: Their numbers, in the dtype to compute in.
        probe: The sample.
        starts: The random rows of each axis, if any.
    """
    if geometry.frame is Frame.RIGHT and probe.v is None:
        x, _ = images(geometry, factors, qs, probe)
        norm = _shared_norm(factors, x, starts)
        return [_mean_gradient(f, x, i, starts[i], norm) for i, f in enumerate(factors)]
    terms = curvature_terms(geometry, factors, qs, probe)
    parts = zip(factors, qs, terms, starts, strict=True)
    return [factor_gradient(geometry, *part) for part in parts]


def _shared_norm(
    factors: Sequence[Factor], x: Tensor, starts: Sequence[Tensor | None]
) -> tuple[int, Tensor, GramNorm] | None:
    """Return the shorter axis of a matrix with two dense factors, its Gram matrix and the norm."""
    if len(factors) != 2 or not all(isinstance(f, General) for f in factors):
        return None
    short = 0 if x.shape[1] < x.shape[2] else 1
    start = starts[short]
    if start is None:
        raise ValueError("A dense factor's update needs the random rows that draw() makes.")
    gram = factors[short].gram(x, short)
    return short, gram, GramNorm(gram, start)


def _mean_gradient(
    factor: Factor,
    x: Tensor,
    axis: int,
    start: Tensor | None,
    shared: tuple[int, Tensor, GramNorm] | None,
) -> FactorGradient:
    """Return the gradient of one factor from `P h` alone, `v` being integrated out."""
    n = x.shape[axis + 1]
    columns = x[0].numel() // n
    t = float(columns)
    if not isinstance(factor, General) or start is None:
        return factor.gradient(factor.gram(x, axis), t, start)
    if shared is not None and axis == shared[0]:
        return MatrixGradient(shared[1], t, start, shared[2])
    if 2 * columns > n:  # two products with the columns cost more than one with their Gram matrix
        return MatrixGradient(factor.gram(x, axis), t, start, shared and shared[2])
    thin = unfold(x, axis)
    norm = GramNorm(thin.mH @ thin, start[:, :, :columns]) if shared is None else shared[2]
    return ThinGradient(thin, t, norm, start)
