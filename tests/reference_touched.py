"""Slow float64 oracle of sparse rows: explicit covariances of all rows, partial traces.

Written from the formulas, sharing no code with the package.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests import reference


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a fit is: frame "left" (EQ), "right" (Q0.5EQ1.5, rotated) or "both" (QEP)."""

    frame: str = "right"
    exact: bool = False
    damping: float = 0.0
    upper: bool = False
    beta: float = 0.9


def as_matrix(q: Tensor) -> Tensor:
    return q if q.ndim == 2 else q.diag()


def covariances(
    rows: int, h: Tensor, v: Tensor | None, index: Tensor, rules: Rules
) -> tuple[Tensor, Tensor]:
    """Return E[h h^H] and E[v v^H] (I D x I D) over what is not known of untouched rows."""
    n = h.shape[1]
    seen = torch.zeros(rows, n, dtype=torch.bool)
    seen[index] = True
    known = seen.flatten()
    wide = torch.zeros(rows, n, dtype=h.dtype)
    wide[index] = h
    c_h = torch.outer(wide.flatten(), wide.flatten().conj())
    c_h += rules.damping**2 * (~known).to(h.dtype).diag()
    if v is None:
        return c_h, torch.eye(rows * n, dtype=h.dtype)
    wide = torch.zeros(rows, n, dtype=h.dtype)
    wide[index] = v
    c_v = torch.outer(wide.flatten(), wide.flatten().conj()) + (~known).to(h.dtype).diag()
    return c_h, c_v


def partial_traces(m: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the diagonal over rows, and the matrix over columns, of a matrix (I D x I D)."""
    blocks = m.view(rows, m.shape[0] // rows, rows, -1)
    return torch.einsum("idid->i", blocks).real, torch.einsum("idie->de", blocks)


def terms(
    q: Tensor, columns: Tensor, h: Tensor, v: Tensor | None, index: Tensor, rules: Rules
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the (rows, columns) terms T1 and T2, by explicit matrices."""
    full = torch.kron(q.to(h.dtype).diag(), as_matrix(columns).to(h.dtype))
    c_h, c_v = covariances(len(q), h, v, index, rules)
    if rules.frame == "left":
        inverse = torch.linalg.inv(full)
        m1, m2 = full @ c_h @ full.mH, inverse.mH @ c_v @ inverse
    else:
        p = full.mH @ full
        m1, m2 = p @ c_h @ p.mH, c_v
    t1, t2 = partial_traces(m1, len(q)), partial_traces(m2, len(q))
    if rules.frame == "both":
        c = as_matrix(columns).to(h.dtype)
        t1 = (q.abs() ** 2 * t1[0], c @ t1[1] @ c.mH)
        t2 = (q.abs() ** 2 * t2[0], c @ t2[1] @ c.mH)
    return t1, t2


def update(
    q: Tensor,
    columns: Tensor,
    bounds: tuple[float, float],
    sample: tuple[Tensor, Tensor | None],
    index: Tensor,
    rate: float,
    rules: Rules,
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Return both factors and bounds after one update with the samples (t, D) of some rows."""
    h, v = sample
    if not rules.exact:  # as if the touched rows were the whole parameter
        whole = Rules(frame=rules.frame, exact=True, upper=rules.upper, beta=rules.beta)
        every = torch.arange(len(index))
        part, columns, bounds = update(q[index], columns, bounds, sample, every, rate, whole)
        new = q.clone()
        new[index] = part
        return new, columns, bounds
    t1, t2 = terms(q, columns, h, v, index, rules)
    sums = [float((t1[0] + t2[0]).max())]
    both = t1[1] + t2[1]
    if columns.ndim == 1:
        sums.append(float(both.diagonal().real.max()))
    else:
        sums.append(float(torch.linalg.matrix_norm(both, 2)))
    first, second = (
        max(rules.beta * old + (1 - rules.beta) * new, new)
        for old, new in zip(bounds, sums, strict=True)
    )
    q = q * (1 - rate / first * (t1[0] - t2[0]))
    gradient = t1[1] - t2[1]
    if columns.ndim == 1:
        return q, columns * (1 - rate / second * gradient.diagonal().real), (first, second)
    if rules.upper:
        gradient = gradient.triu()
    columns = columns - rate / second * gradient @ columns
    if rules.frame == "right":
        columns = reference.rotate(columns)
    return q, columns, (first, second)


def fold_in(average: Tensor, count: int, x: Tensor, decay: float) -> Tensor:
    """Return the average of `count` values with one more."""
    b = min(count / (count + 1), decay)
    return b * average + (1 - b) * x
