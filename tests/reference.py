"""Slow float64 oracles: one parameter at a time, explicit N x N matrices, exact norms.

Written from the formulas, sharing no code with the package.
"""

import torch
from torch import Tensor


def kron_all(matrices: list[Tensor]) -> Tensor:
    """Return the Kronecker product of matrices, for row-major flattened tensors."""
    product = torch.ones(1, 1, dtype=matrices[0].dtype)
    for m in matrices:
        product = torch.kron(product, m.contiguous())
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


def rotate_further(p: Tensor, turns: int = 2, max_angle: float = 1 / 3) -> Tensor:
    """Return `P` after up to some third-order Procrustes steps, with the exact norm."""
    for _ in range(turns):
        r = p.mH - p
        if r.abs().max() < 1e-3 * p.abs().max():
            break
        r = r / torch.linalg.matrix_norm(r, 2)
        t1, t2, t3 = (float((torch.linalg.matrix_power(r, k) @ p).trace().real) for k in (1, 2, 3))
        if t1 > 0 and t3 < 0:
            a = min((-t2 - (t2 * t2 - 1.5 * t1 * t3) ** 0.5) / (0.75 * t3), max_angle)
            p = p + a * r @ p + a**2 / 2 * r @ r @ p + a**3 / 8 * r @ r @ r @ p
    return p


def hermitian(x: Tensor) -> Tensor:
    """Return the Hermitian part."""
    return (x + x.mH) / 2


def step(geometry: str, q: Tensor, d: Tensor, mu: float) -> Tensor:
    """Return a dense factor after a step along `D`, for the geometries of the table in 8.1."""
    eye = torch.eye(len(q), dtype=q.dtype)
    if geometry in ("EQ", "QEP"):
        return q - mu * d @ q
    if geometry == "QEQ":
        return q - mu * q @ d
    if geometry == "Q0.5EQ1.5":
        return rotate(q - mu * d @ q)
    if geometry == "PRO4P":
        return rotate_further(q - mu * d @ q)
    m = eye - (mu / 2 if geometry == "QUAD" else mu) * d
    return hermitian(m @ q @ m)


def pattern_mask(pattern: str, n: int) -> Tensor:
    """Return which entries of a factor's gradient are free."""
    if pattern == "diagonal":
        return torch.eye(n, dtype=torch.bool)
    if pattern == "triangular":
        return torch.ones(n, n, dtype=torch.bool).triu()
    mask = torch.full((n, n), pattern == "dense")
    if pattern == "normalisation":
        mask = torch.eye(n, dtype=torch.bool)
        mask[:, -1] = True
    return mask


def curvature(pattern: str, s: Tensor) -> float:
    """Return the bound of `S = T1 + T2` that divides a second-order step."""
    values = s.diagonal().real
    if pattern == "diagonal":
        return float(values.max())
    if pattern == "normalisation":
        return float(values[-1] + (values[:-1].max() if len(s) > 1 else 0))
    return float(torch.linalg.matrix_norm(s, 2))


def curvature_terms(
    qs: list[Tensor], h: Tensor, v: Tensor | None, axis: int, geometry: str
) -> tuple[Tensor, Tensor]:
    """Return T1 and T2 of one axis, n x n, from matrices over the whole parameter."""
    n, q = h.shape[axis], kron_all(qs)
    p = kron_all([hermitian(f) for f in qs]) if geometry.endswith("4P") else q.mH @ q
    if geometry == "EQ":
        assert v is not None
        x, y = q @ h.flatten(), torch.linalg.inv(q).mH @ v.flatten()
    else:
        x, y = p @ h.flatten(), None if v is None else v.flatten()
    t1 = unfold(x.view(h.shape), axis)
    t1 = t1 @ t1.mH
    if y is None:
        t2 = (h.numel() / n) * torch.eye(n, dtype=h.dtype)
    else:
        t2 = unfold(y.view(h.shape), axis)
        t2 = t2 @ t2.mH
    if geometry == "QEP":
        return qs[axis] @ t1 @ qs[axis].mH, qs[axis] @ t2 @ qs[axis].mH
    return t1, t2


def kron_update(
    qs: list[Tensor],
    ls: list[float],
    h: Tensor,
    v: Tensor | None,
    rate: float,
    beta: float,
    geometry: str = "Q0.5EQ1.5",
    patterns: list[str] | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Return the factors, as matrices, and their divisors after one second-order update."""
    patterns = patterns or ["dense"] * len(qs)
    new_qs, new_ls = [], []
    for axis, (q, lipschitz, pattern) in enumerate(zip(qs, ls, patterns, strict=True)):
        t1, t2 = curvature_terms(qs, h, v, axis, geometry)
        bound = curvature(pattern, t1 + t2)
        lipschitz = max(beta * lipschitz + (1 - beta) * bound, bound)
        d = torch.where(pattern_mask(pattern, len(q)), t1 - t2, 0)
        new_qs.append(step(geometry, q, d, rate / lipschitz))
        new_ls.append(lipschitz)
    return new_qs, new_ls


def root(p: Tensor) -> Tensor:
    """Return the Hermitian root of the Hermitian part."""
    values, vectors = torch.linalg.eigh(hermitian(p))
    return vectors @ values.to(p.dtype).sqrt().diag() @ vectors.mH


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


def exact_norm(
    a: Tensor, start: Tensor, peak: Tensor | None = None, pairs: int | None = None
) -> Tensor:
    """Stand in for the estimated norm of a stack of matrices."""
    return torch.linalg.matrix_norm(a, 2)
