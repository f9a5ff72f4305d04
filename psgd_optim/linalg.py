"""Batched linear algebra on stacks of tensors: mode products, Gram matrices, norms, rotations.

Shapes: `x` is (B, n_1, ..., n_k), `axis` counts the axes after the block axis from 0, and a
matrix stack is (B, n, n). Everything is complex-safe, and no result depends on a branch: `surely`
only leaves out work that would change nothing.
"""

import functools
import math

import torch
from torch import Tensor

from psgd_optim.host import host_values, is_readable

Mask = Tensor | None
"""Which rows of a stack, (B,) and boolean; `None` where it is known on the host to be all."""


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in a dtype, itself when it already is: small steps feel a call of `to`."""
    return x if x.dtype == dtype else x.to(dtype)


def lift(x: Tensor) -> Tensor:
    """Return `x` in at least single precision, itself when it already is."""
    return cast(x, torch.promote_types(x.dtype, torch.float32))


def per_block(values: Tensor, like: Tensor) -> Tensor:
    """Shape one number per block so that it broadcasts over `like`.

    Args:
        values: (B,), or with more of the leading axes of `like`.
        like: (B, ...).

    Returns:
        (B, 1, ..., 1), a view.
    """
    return values.view(*values.shape, *(1,) * (like.ndim - values.ndim))


def mode_product(m: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply one axis of a tensor by a matrix: `x ×_axis m`.

    Args:
        m: (B, n, n).
        x: (B, ..., n, ...), with size n at `axis`.
        axis: The axis, not counting the block axis.

    Returns:
        A tensor of the shape of `x`.
    """
    if x.ndim == 3:
        return m @ x if axis == 0 else x @ m.mT
    blocks, before, n, after = _around(x, axis)
    if after == 1:
        y = x.reshape(blocks, before, n) @ m.mT
    elif before == 1:
        y = m @ x.reshape(blocks, n, after)
    else:
        y = m.unsqueeze(1) @ x.reshape(blocks, before, n, after)
    return y.view(x.shape)


def mode_scale(d: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply one axis of a tensor by a diagonal matrix.

    Args:
        d: (B, n), the diagonal.
        x: (B, ..., n, ...), with size n at `axis`.
        axis: The axis, not counting the block axis.

    Returns:
        A tensor of the shape of `x`.
    """
    return x * d.view(len(x), *(1,) * axis, -1, *(1,) * (x.ndim - axis - 2))


def unfold(x: Tensor, axis: int) -> Tensor:
    """Return the unfolding of a tensor along one axis, (B, n, N / n)."""
    blocks, before, n, after = _around(x, axis)
    return x.reshape(blocks, before, n, after).transpose(1, 2).reshape(blocks, n, -1)


def fold(columns: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Return the tensor of a shape, block axis included, that `unfold` makes columns of."""
    before = shape[1 : axis + 1].numel()
    n = shape[axis + 1]
    return columns.reshape(shape[0], n, before, -1).transpose(1, 2).reshape(shape)


def mode_gram(x: Tensor, axis: int) -> Tensor:
    """Return `X X^H` for the unfolding `X` of a tensor along one axis.

    Args:
        x: (B, ..., n, ...), with size n at `axis`.
        axis: The axis, not counting the block axis.

    Returns:
        (B, n, n), Hermitian and positive semi-definite.
    """
    blocks, before, n, after = _around(x, axis)
    if after == 1:
        rows = x.reshape(blocks, before, n)
        return rows.mT @ rows.conj()
    columns = unfold(x, axis)
    return columns @ columns.mH


def mode_gram_diagonal(x: Tensor, axis: int) -> Tensor:
    """Return the diagonal of `mode_gram(x, axis)` without forming the matrix.

    Args:
        x: (B, ..., n, ...), with size n at `axis`.
        axis: The axis, not counting the block axis.

    Returns:
        (B, n), real.
    """
    blocks, before, n, after = _around(x, axis)
    # No tensor of squares: the norm reads each element once.
    norms: Tensor = torch.linalg.vector_norm(x.reshape(blocks, before, n, after), dim=(1, 3))
    return norms.square()


def surely(condition: Tensor) -> bool:
    """Return whether a condition is known to hold everywhere without waiting for a device.

    Never where the answer lies on an accelerator, or in a compiled graph: what a caller leaves out
    if it holds must change nothing then.
    """
    values = host_values(condition)
    return values is not None and all(values)


def row_peaks(x: Tensor) -> Tensor:
    """Return the largest modulus of each row, (B, ...) to (B,); not finite where an entry is not.

    Two plain reductions: the maximum norm and `isfinite` take ten times as long on a CPU.
    """
    rows = x.abs().flatten(1) if x.is_complex() else x.flatten(1)
    largest = rows.amax(dim=1)
    return largest if x.is_complex() else torch.maximum(largest, -rows.amin(dim=1))


def finite_rows(x: Tensor) -> Mask:
    """Return which rows of a stack (B, ...) are finite throughout."""
    # Finite squares have finite roots: on a CPU, one fast pass settles all but huge numbers.
    if is_readable(x):
        norms: list[float] = row_norms(x).tolist()
        if all(norm < math.inf for norm in norms):
            return None
    return known(row_peaks(x).isfinite())


def known(mask: Tensor) -> Mask:
    """Return `None` for a mask (B,) that is known to hold everywhere, else the mask."""
    return None if surely(mask) else mask


def both(*masks: Mask) -> Mask:
    """Return the rows that are in all masks."""
    some = [mask for mask in masks if mask is not None]
    return functools.reduce(torch.logical_and, some) if some else None


def keep_rows(chosen: Mask, x: Tensor, other: Tensor | float = 0) -> Tensor:
    """Return rows of `x` where chosen, elsewhere those of another tensor, or a number.

    Args:
        chosen: (B,), boolean; `x` itself is returned where it is all.
        x: (B, ...).
        other: Of the shape of `x`, or a number.
    """
    return x if chosen is None else torch.where(per_block(chosen, x), x, other)


def abs_square(x: Tensor) -> Tensor:
    """Return the squared modulus of every element, real."""
    return (x * x.conj()).real if x.is_complex() else x.square()


def real_product(x: Tensor, y: Tensor) -> Tensor:
    """Return the real part of `x conj(y)`, element by element."""
    return (x * y.conj()).real if x.is_complex() else x * y


def row_norms(x: Tensor) -> Tensor:
    """Return the 2-norm of all entries of every block, real; (B, ...) to (B,)."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms


def matvec(m: Tensor, x: Tensor) -> Tensor:
    """Return `M x` of every block, for `m` of shape (B, m, n) and `x` of (B, n): (B, m)."""
    return (m @ x.unsqueeze(2)).squeeze(2)


def _around(x: Tensor, axis: int) -> tuple[int, int, int, int]:
    """Return the number of blocks and the sizes before, at and after an axis."""
    before = x.shape[1 : axis + 1].numel()
    after = x.shape[axis + 2 :].numel()
    return x.shape[0], before, x.shape[axis + 1], after


def spectral_norm_bound(
    a: Tensor, start: Tensor, peak: Tensor | None = None, pairs: int | None = None
) -> Tensor:
    """Bound the spectral norm of Hermitian or skew-Hermitian matrices from below.

    A block power iteration from `k` random rows, each first turned towards the row of `a` with
    the largest norm; never below the largest entry. With 32 rows, the bound is at least 0.84 of the
    norm up to n = 2048: measured on the worst case that is known, one eigenvalue of 1.15 to 4 with
    a spread eigenvector among ones. It is 0.87 of it up to n = 512.

    Args:
        a: (B, n, n), Hermitian or skew-Hermitian.
        start: (B, k, n), standard normal.
        peak: (B,), the largest modulus of an entry, where the caller has it.
        pairs: How many pairs of products to take, if not those that the size asks for.

    Returns:
        (B,), real; 0 for a zero matrix.

    Source: design formulas 8.3. Deviations: the largest entry is a bound too; the row and the noise
    have equal norms; large matrices take more products; not the matrix but the rows are scaled.
    """
    peak = row_peaks(a) if peak is None else peak
    scale = peak + torch.finfo(a.dtype).tiny
    inverse = scale.reciprocal()
    peaks = host_values(peak)
    is_safe = peaks is not None and all(1e-15 < x < 1e15 for x in peaks)  # so are the squares
    longest = (a if is_safe else a * per_block(inverse, a)).norm(dim=2).argmax(dim=1)  # (B,)
    row = a.take_along_dim(per_block(longest, a), dim=1)  # (B, 1, n)
    row = _unit(row * per_block(inverse, row))
    noise = _unit(start)
    v = row + torch.sgn(noise.to(a.dtype) @ row.mH).conj() * noise  # (B, k, n)
    inverse = per_block(inverse, v)
    for _ in range(_product_pairs(a.shape[-1]) if pairs is None else pairs):
        v = _unit((v @ a).mul_(inverse)) @ a * inverse
    bound: Tensor = torch.maximum(scale * v.norm(dim=2).amax(dim=1), peak)
    return bound


def trace_peak(a: Tensor) -> Tensor:
    """Return the largest diagonal entry, (B,): of a positive semi-definite matrix, the largest."""
    return a.diagonal(dim1=1, dim2=2).real.amax(dim=1)


def _product_pairs(n: int) -> int:
    """Return how many pairs of products keep the bound tight for n x n matrices."""
    # A random row has 1 / sqrt(n) of its norm along any one vector: more of them must make up.
    return 2 if n <= 64 else 3 if n <= 256 else 4


def _unit(rows: Tensor) -> Tensor:
    """Return rows (B, k, n) of norm 1; zeros stay."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    return rows / (norms + torch.finfo(rows.dtype).tiny)


def hermitian_part(a: Tensor) -> Tensor:
    """Return `(A + A^H) / 2` for every matrix of a stack."""
    return 0.5 * (a + a.mH)


def hermitian_root(a: Tensor) -> Tensor:
    """Return the root of the nearest Hermitian positive semi-definite matrices.

    Args:
        a: (B, n, n), near to Hermitian.

    Returns:
        (B, n, n), Hermitian; eigenvalues of `a` below 0 count as 0. Not finite where `a` is not.
    """
    finite = a.isfinite().flatten(1).all(dim=1)
    values, vectors = torch.linalg.eigh(
        torch.where(per_block(finite, a), hermitian_part(a), 0)  # eigh refuses other numbers
    )
    roots = torch.where(finite.unsqueeze(1), values.clamp(min=0).sqrt(), torch.nan)
    root: Tensor = (vectors * roots.unsqueeze(1)) @ vectors.mH
    return root


def rotate_towards_psd_(q: Tensor, start: Tensor, max_angle: float = 0.125) -> Tensor:
    """Rotate matrices one step towards the Hermitian positive semi-definite cone, in place.

    One ascent step on `Re tr(U Q)` over unitary `U = exp(a R)`, with `R = Q^H - Q` scaled to unit
    norm and the exponential cut after the second order. `Q^H Q` changes by at most `a^4 / 4`.

    Args:
        q: (B, n, n).
        start: (B, k, n), standard normal, for the norm of `R`.
        max_angle: Largest `a`; at most 1/4.

    Returns:
        (B, n, n), `q` itself.

    Source: design formulas 8.2, step 2.
    """
    s, norm = _skew_part(q, start)
    s.div_(per_block(norm, s))  # S = -R
    sq = s @ q
    # S^H = -S: tr(R Q) is the inner product of S with Q, which is half the square of the Frobenius
    # norm of S, and tr(R R Q) is minus the inner product of S with S Q.
    slope = 0.5 * row_norms(s).square() * norm  # (B,)
    bend = -_inner(s, sq)  # (B,)
    angle = torch.where(bend < 0, -slope / bend, max_angle).clamp(max=max_angle)
    # Q + a R Q + a^2 / 2 R R Q
    factor = per_block(-angle, q)
    arq = sq.mul_(factor)
    return q.add_(arq).baddbmm_(s.mul_(factor), arq, alpha=0.5)


def rotate_onto_psd_(q: Tensor, start: Tensor, turns: int = 2, max_angle: float = 1 / 3) -> Tensor:
    """Rotate matrices by a few third-order steps towards being Hermitian to 0.1 %, in place.

    Args:
        q: (B, n, n).
        start: (B, k, n), standard normal, for norms.
        turns: Number of steps; a matrix that is Hermitian enough takes part with angle 0.
        max_angle: Largest angle of one step; at most 5/8.

    Returns:
        (B, n, n), `q` itself; `Q^H Q` changes by at most `a^6 / 64` in a step.

    Source: design formulas 8.2, step 3. Deviation: the number of steps is fixed, not up to 10 until
    the matrix is Hermitian enough, so that no branch looks at a tensor; in fits and under heavy
    tails two did as well as ten.
    """
    for _ in range(turns):
        s, norm = _skew_part(q, start)
        _turn_(q, s.div_(per_block(-norm, s)), max_angle)
    return q


def _turn_(q: Tensor, r: Tensor, max_angle: float) -> None:
    """Take one third-order step along `R`; none where `Q` is Hermitian to 0.1 %."""
    rq = r @ q
    rrq = r @ rq
    rrrq = r @ rrq
    slope, bend, twist = _real_trace(rq), _real_trace(rrq), _real_trace(rrrq)
    root = (bend.square() - 1.5 * slope * twist).clamp(min=0).sqrt()
    angle = ((-bend - root) / (0.75 * twist)).clamp(max=max_angle)
    skewness = (q - q.mH).abs().amax(dim=(1, 2))
    turns = (slope > 0) & (twist < 0) & (skewness >= 1e-3 * q.abs().amax(dim=(1, 2)))
    angle = per_block(torch.where(turns, angle, 0), q)
    # 1/8, not 1/6: it keeps the step unitary to one order more.
    q.addcmul_(angle, rq).addcmul_(0.5 * angle.square(), rrq).addcmul_(0.125 * angle**3, rrrq)


def _skew_part(q: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return `S = Q - Q^H`, and its norm (B,), at least the smallest normal number."""
    s = q - q.mH  # in this order, the result lies in memory as Q does
    # Few rows and products: the norm only limits an angle that leaves room for its error. With 8
    # rows it was 0.85 of the true one or more, up to n = 1024, on matrices with a spread or a small
    # gap of eigenvalues and on random ones.
    norm = spectral_norm_bound(s, start[:, :8], pairs=2)
    return s, norm + torch.finfo(norm.dtype).tiny


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the real part of the inner product of every two matrices, (B,)."""
    is_large = a[0].numel() >= 1 << 12
    if is_large and is_readable(a):
        # Row by row, because there is no batched one that makes no tensor of products.
        pairs = zip(a.flatten(1).unbind(), b.flatten(1).unbind(), strict=True)
        product = torch.stack([torch.vdot(x, y) for x, y in pairs])
    else:
        product = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product.real if product.is_complex() else product


def _real_trace(a: Tensor) -> Tensor:
    """Return the real part of the trace of every matrix, (B,)."""
    trace = a.diagonal(dim1=1, dim2=2).sum(dim=1)
    return trace.real if trace.is_complex() else trace
