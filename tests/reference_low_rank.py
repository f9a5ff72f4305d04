"""Slow oracles of the sparse LU and low-rank forms: one parameter, explicit N x N matrices.

Written from the formulas, sharing no code with the package.
"""

import torch
from torch import Tensor


def arrow(columns: Tensor, tail: Tensor) -> Tensor:
    """Return the arrow matrix with these first columns and this rest of the diagonal."""
    n, r = columns.shape
    matrix = torch.zeros(n, n, dtype=columns.dtype)
    matrix[:, :r] = columns
    for i in range(r, n):
        matrix[i, i] = tail[i - r]
    return matrix


def arrow_mask(n: int, rank: int) -> Tensor:
    """Return where an arrow matrix may have entries."""
    return torch.tensor([[(j < rank and j <= i) or i == j for j in range(n)] for i in range(n)])


def cut(matrix: Tensor, mask: Tensor) -> Tensor:
    """Return the matrix on the mask, with a real diagonal."""
    matrix = torch.where(mask, matrix, 0)
    return matrix - matrix.diag().diag() + matrix.diag().real.to(matrix.dtype).diag()


def pairs(q: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the terms of the gradients, `a a^H, b b^H` and `p h^H, v w^H`."""
    inverse = torch.linalg.inv(q)
    a, b = q @ h, inverse.mH @ v
    p, w = q.mH @ a, inverse @ b
    return outer(a, a), outer(b, b), outer(p, h), outer(v, w)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """Return `x y^H`."""
    return x[:, None] * y[None].conj()


def criterion(q: Tensor, h: Tensor, v: Tensor) -> float:
    """Return `h^H P h + v^H P^-1 v`, up to rounding."""
    return float((q @ h).abs().square().sum() + (torch.linalg.inv(q).mH @ v).abs().square().sum())


def follow(bound: Tensor | float, size: float, beta: float = 0.9) -> float:
    """Return the divisor after one more size."""
    return max(beta * float(bound) + (1 - beta) * size, size, torch.finfo(torch.float64).tiny)


def sparse_lu_update(
    lower: Tensor,
    upper: Tensor,
    bounds: tuple[Tensor, Tensor],
    h: Tensor,
    v: Tensor,
    rate: float,
    rank: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `Q = L U` and the bounds of both, of columns and of tail, after one update."""
    aa, bb, ph, vw = pairs(lower @ upper, h, v)
    mask, eye = arrow_mask(len(h), rank), torch.eye(len(h), dtype=h.dtype)
    grown = []
    for bound, first, second in zip(bounds, (aa, ph.mH), (bb, vw.mH), strict=True):
        columns = float(first[:, :rank].norm() + second[:, :rank].norm())
        rest = (first.diag().real.abs() + second.diag().real.abs())[rank:]
        tail = float(rest.max()) if len(rest) else 0.0
        grown.append([follow(bound[0], columns), follow(bound[1], tail)])
    # Columns of L and rows of U move by the first bound, the rest of the diagonals by the second.
    steps = [
        torch.tensor([rate / (c if j < rank else t) for j in range(len(h))], dtype=torch.float64)
        for c, t in grown
    ]
    lower = (eye - cut(aa - bb, mask) * steps[0]) @ lower
    upper = upper @ (eye - cut(ph - vw, mask.mT) * steps[1][:, None])
    return lower @ upper, *(torch.tensor(x, dtype=torch.float64) for x in grown)


def balance(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return `U` and `V` with Gram matrices closer to each other."""
    if u.shape[1] == 0 or u.norm() == 0 or v.norm() == 0:
        return u, v
    rho = (u.norm() / v.norm()).sqrt()
    u, v = u / rho, v * rho
    uu, vv = u.mH @ u, v.mH @ v
    e = 0.1 * (uu - vv) / (uu.trace() + vv.trace())
    eye = torch.eye(len(e), dtype=e.dtype)
    return u @ (eye - e + e @ e / 2), v @ (eye + e + e @ e / 2)


def low_rank_update(
    d: Tensor,
    u: Tensor,
    v: Tensor,
    bounds: tuple[float, float],
    sample: tuple[Tensor, Tensor],
    rate: float,
    *,
    coin: int,
    scale_first: bool,
) -> tuple[Tensor, float, float]:
    """Return `Q`, and the bounds of `d` and of the matrix that the coin names, after one update."""
    u, v = balance(u, v)
    eye = torch.eye(len(d), dtype=u.dtype)
    middle, scales = eye + u @ v.mH, d.to(u.dtype).diag()
    q = middle @ scales if scale_first else scales @ middle
    aa, bb, ph, vw = pairs(q, *sample)
    for_d, for_m = ((ph, vw), (aa, bb)) if scale_first else ((aa, bb), (ph, vw))
    t1, t2 = (t.diag().real for t in for_d)
    bound_d = follow(bounds[0], float((t1.abs() + t2.abs()).max()))
    d = d * (1 - rate / bound_d * (t1 - t2))
    wall = (u if coin else v) @ (u if coin else v).mH
    moves = [wall @ t if coin else t @ wall for t in for_m]
    bound_m = follow(bounds[1], sum(float(torch.linalg.matrix_norm(m, 2)) for m in moves))
    move = rate / bound_m * (moves[0] - moves[1])
    middle = (eye - move) @ middle if scale_first else middle @ (eye - move)
    scales = d.to(u.dtype).diag()
    return (middle @ scales if scale_first else scales @ middle), bound_d, bound_m
