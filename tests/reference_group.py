"""Slow oracles of one-step group rules: explicit matrices and masks, written from formulas."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[int, int], int]

# Index maps of algorithms 4.12: entry i of the permuted vector is taken from the returned index.
MAPS: dict[str, list[Map]] = {
    "identity": [lambda i, n: i],
    "flip": [lambda i, n: i, lambda i, n: n - 1 - i],
    "butterfly": [lambda i, n: i, lambda i, n: (i + n // 2) % n],
    "klein": [
        lambda i, n: i,
        lambda i, n: n - 1 - i,
        lambda i, n: (i + n // 2) % n,
        lambda i, n: (n // 2 - 1 - i) % n,
    ],
    "cyclic3": [lambda i, n, k=k: (i + k * n // 3) % n for k in range(3)],
    "cyclic4": [lambda i, n, k=k: (i + k * n // 4) % n for k in range(4)],
}


def index_maps(name: str, n: int) -> Tensor:
    """Return the maps of a group, (m, n)."""
    if name == "all":
        return torch.stack([torch.arange(n).roll(-k) for k in range(n)])
    return torch.tensor([[f(i, n) for i in range(n)] for f in MAPS[name]])


def pattern(maps: Tensor) -> Tensor:
    """Return where `sum_k diag(a_k) S_k` may have entries, (n, n)."""
    n = maps.shape[1]
    mask = torch.zeros(n, n, dtype=torch.bool)
    for one in maps:
        mask[torch.arange(n), one] = True
    return mask


def vectors(q: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return `a = Q h` and `b = Q^-H v` for flat vectors."""
    return q @ h, torch.linalg.inv(q).mH @ v


def group_gradient(q: Tensor, h: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Return `a a^H - b b^H` where the group has entries."""
    a, b = vectors(q, h, v)
    return torch.where(mask, torch.outer(a, a.conj()) - torch.outer(b, b.conj()), 0)


def block_curvature(q: Tensor, h: Tensor, v: Tensor, mask: Tensor) -> float:
    """Return the largest `|a_o|^2 + |b_o|^2` over the orbits, found from the mask's rows."""
    a, b = vectors(q, h, v)
    weight = a.abs() ** 2 + b.abs() ** 2
    return max(float(weight[row].sum()) for row in mask)


def criterion(q: Tensor, h: Tensor, v: Tensor | None) -> Tensor:
    """Return `h^H P h + v^H P^-1 v`, or its mean over a standard normal `v`."""
    p = q.mH @ q
    inverse = torch.linalg.inv(p)
    second = inverse.trace() if v is None else v.conj() @ inverse @ v
    return (h.conj() @ p @ h + second).real


def slope(q: Tensor, h: Tensor, v: Tensor | None, direction: Tensor, eps: float = 1e-5) -> Tensor:
    """Return half the derivative of the criterion along `dQ = direction Q`, by differences."""
    up, down = (criterion(q + s * eps * direction @ q, h, v) for s in (1, -1))
    return (up - down) / (4 * eps)


def involution_update(
    alpha: Tensor, beta: Tensor, h: Tensor, v: Tensor, other: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """Return the coefficients of X-matrix (or butterfly) after one step with the largest entry.

    `other` is the index map of the group's second element. Source: algorithms 4.12.
    """
    a = alpha * h + beta * h[other]
    c = alpha * alpha[other] - beta * beta[other]
    b = (alpha[other] * v - beta[other] * v[other]) / c
    first, second = a**2 - b**2, a * a[other] - b * b[other]
    second = torch.where(other == torch.arange(len(other)), 0, second)
    step = rate / max(float(first.abs().max()), float(second.abs().max()))
    return (
        alpha - step * (first * alpha + second * beta[other]),
        beta - step * (first * beta + second * alpha[other]),
    )


def coefficient_update(
    coefficients: Tensor, h: Tensor, v: Tensor, maps: Tensor, rate: float
) -> Tensor:
    """Return the coefficients a_k (m, n) after one step with the largest entry, for any group.

    Coefficient k of a product sums `a_i * a_j[pi_i]` over the pairs with `pi_j(pi_i) = pi_k`.
    Source: algorithms 4.12 and 8.6 of the design.
    """
    a = sum(c * h[one] for c, one in zip(coefficients, maps, strict=True))
    n = len(h)
    q = torch.zeros(n, n, dtype=h.dtype)
    for c, one in zip(coefficients, maps, strict=True):
        q[torch.arange(n), one] += c
    b = torch.linalg.solve(q.mT, v)
    gradient = torch.stack([a * a[one] - b * b[one] for one in maps])
    step = rate / float(gradient.abs().max())
    names = {tuple(one.tolist()): k for k, one in enumerate(maps)}
    moved = coefficients.clone()
    for e, one in zip(gradient, maps, strict=True):
        for c, other in zip(coefficients, maps, strict=True):
            moved[names[tuple(other[one].tolist())]] -= step * e * c[one]
    return moved
