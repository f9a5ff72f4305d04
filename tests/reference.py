"""Slow float64 oracles: one parameter at a time, explicit N x N matrices, exact norms.

Written from the formulas, sharing no code with the package.
"""

import torch
from torch import Tensor


def kron_all(matrices: list[Tensor]) -> Tensor:
    """Return the Kronecker product of matrices, for row-major flattened tensors."""
    product = torch.ones(1, 1, dtype=matrices[0].dtype)
    for m in matrices:
        product = torch.kron(product, m)
    return product


def unfold(x: Tensor, axis: int) -> Tensor:
    """Return the n x (N / n) unfolding along an axis."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def rotate(q: Tensor, max_angle: float = 0.125) -> Tensor:
    """Return `Q` after the second-order Procrustes step, with the exact norm."""
    r = q.mH - q
    norm = torch.linalg.matrix_norm(r, 2)
    if norm == 0:
        return q
    r = r / norm
    slope, bend = (r @ q).trace().real, (r @ r @ q).trace().real
    a = min(-slope / bend, max_angle) if bend < 0 else max_angle
    return q + a * r @ q + a * a / 2 * r @ r @ q


def kron_update(
    qs: list[Tensor], ls: list[float], h: Tensor, v: Tensor | None, rate: float, beta: float
) -> tuple[list[Tensor], list[float]]:
    """Return the factors (matrices or diagonals) and bounds after one Q0.5EQ1.5 update."""
    q = kron_all([f if f.ndim == 2 else f.diag() for f in qs])
    image = (q.mH @ q @ h.flatten()).view(h.shape)
    new_qs, new_ls = [], []
    for axis, (factor, lipschitz) in enumerate(zip(qs, ls, strict=True)):
        n = h.shape[axis]
        t1 = unfold(image, axis) @ unfold(image, axis).mH
        if v is None:
            t2 = (h.numel() / n) * torch.eye(n, dtype=h.dtype)
        else:
            t2 = unfold(v, axis) @ unfold(v, axis).mH
        if factor.ndim == 1:
            t1, t2 = t1.diagonal().real, t2.diagonal().real
            bound = float((t1 + t2).max())
        else:
            bound = float(torch.linalg.matrix_norm(t1 + t2, 2))
        lipschitz = max(beta * lipschitz + (1 - beta) * bound, bound)
        if factor.ndim == 1:
            new_qs.append(factor * (1 - rate / lipschitz * (t1 - t2)))
        else:
            new_qs.append(rotate(factor - rate / lipschitz * (t1 - t2) @ factor))
        new_ls.append(lipschitz)
    return new_qs, new_ls


def diagonal_update(
    q: Tensor, lipschitz: Tensor, h: Tensor, v: Tensor | None, rate: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the diagonal and its bounds after one update of the group rule."""
    a = (q * h).abs() ** 2
    b = q**-2 if v is None else (v / q).abs() ** 2
    bound = a + b
    lipschitz = torch.maximum(beta * lipschitz + (1 - beta) * bound, bound)
    return q * (1 - rate / lipschitz * (a - b)), lipschitz


def inverse_square_root(a: Tensor) -> Tensor:
    """Return `A^(-1/2)` of a Hermitian positive definite matrix."""
    values, vectors = torch.linalg.eigh(a)
    return vectors @ (values.rsqrt().to(a.dtype)[:, None] * vectors.mH)


def random_spd(n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return a Hermitian positive definite matrix with condition number about 10."""
    x = torch.randn(n, 2 * n, generator=generator, dtype=dtype)
    return x @ x.mH / (2 * n) + 0.1 * torch.eye(n, dtype=dtype)


def exact_norm(a: Tensor, start: Tensor) -> Tensor:
    """Stand in for the estimated norm of a stack of matrices."""
    return torch.linalg.matrix_norm(a, 2)
