"""Quasi-Newton approximations of an inverse Hessian: double damping, BFGS, limited memory.

An approximation is a frozen value with `initial`, `apply` and `update`; its state is a flat dict of
tensors whose shapes never change. No function reads a number on the host: a pair that a gate
refuses is an update that selects the old state.

Shape legend: `n` is the size of the space, `q` the number of remembered pairs.
"""

import abc
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.peers.arguments import check_integer, check_number
from psgd_optim.types import State

_LEAST_SLOPE = 1e-4  # S4's released code: the curvature that a pair must show, relative to |g|


class SecantPair(NamedTuple):
    """A step `s` and the change `y` of the gradient along it, (n,) each."""

    s: Tensor
    y: Tensor


@final
@dataclass(frozen=True)
class DoubleDamping:
    """Changes a pair so that an update limits the growth of `H` and of its inverse.

    Args:
        inverse_ratio: `mu_1` in (0, 1): the damped pair has `s^T y >= mu_1 y^T H y`, before the
            second damping.
        step_ratio: `mu_2` in (0, 1]: the damped pair has `s^T y >= mu_2 s^T s`. Above 1, the
            second damping would divide by `s^T s - s^T y` where that is zero or negative.

    Raises:
        InputError: If a ratio is outside its range.
    """

    inverse_ratio: float = 0.2
    step_ratio: float = 1.0

    def __post_init__(self) -> None:
        inverse, step = self.inverse_ratio, self.step_ratio
        check_number("inverse_ratio", inverse, "a number in (0, 1)", lambda x: 0 < x < 1)
        check_number("step_ratio", step, "a number in (0, 1]", lambda x: 0 < x <= 1)

    def damp(self, s: Tensor, y: Tensor, hy: Tensor) -> SecantPair:
        """Return the damped pair; one that needs no damping comes back as it is.

        Args:
            s: (n,), the step.
            y: (n,), the change of the gradient.
            hy: (n,), `H y`.

        Returns:
            The pair.

        Source: S4 Algorithm 3: Powell's damping with `H`, then with the identity.
        """
        sy, yhy = s @ y, y @ hy
        least = self.inverse_ratio * yhy
        theta = torch.where(sy < least, (yhy - least) / (yhy - sy), 1.0)
        s = theta * s + (1 - theta) * hy
        sy, ss = s @ y, s @ s
        least = self.step_ratio * ss
        theta = torch.where(sy < least, (ss - least) / (ss - sy), 1.0)
        return SecantPair(s, theta * y + (1 - theta) * s)


def bfgs_inverse(h: Tensor, s: Tensor, y: Tensor, hy: Tensor) -> Tensor:
    """Return the BFGS update `(I - rho s y^T) H (I - rho y s^T) + rho s s^T`, `rho = 1 / s^T y`.

    Args:
        h: (n, n), symmetric.
        s: (n,), the step.
        y: (n,), the change of the gradient.
        hy: (n,), `H y`.

    Returns:
        (n, n), exactly symmetric; `H+ y = s`, and positive definite if `H` is and `s^T y > 0`.

    Source: S4 equation 6, multiplied out: `H + w s^T + s w^T`.
    """
    rho = 1 / (s @ y)
    half = 0.5 * (rho * rho * (y @ hy) + rho)
    outer = torch.outer(half * s - rho * hy, s)
    return h + (outer + outer.mT)


def shows_curvature(s: Tensor, y: Tensor, gradient_norm: Tensor) -> Tensor:
    """Return whether a pair shows enough curvature for an update, 0-D and boolean.

    Args:
        s: (n,), the step.
        y: (n,), the change of the gradient.
        gradient_norm: 0-D, the norm of the gradient.

    Returns:
        `s^T y > 0` and `s^T y > 1e-4 |s|^2 |g|`; false for pairs that are not finite.
    """
    sy = s @ y
    return (sy > 0) & (sy > _LEAST_SLOPE * (s @ s) * gradient_norm) & sy.isfinite()


def update_inverse(h: Tensor, pair: SecantPair, hy: Tensor, gradient_norm: Tensor) -> Tensor:
    """Return the BFGS update where the gates let the pair through, else `H`.

    Args:
        h: (n, n), symmetric.
        pair: The pair.
        hy: (n,), `H y`.
        gradient_norm: 0-D, for the gate.

    Returns:
        (n, n).
    """
    new = bfgs_inverse(h, pair.s, pair.y, hy)
    accepted = shows_curvature(*pair, gradient_norm) & new.isfinite().all()
    return torch.where(accepted, new, h)


class InverseHessian(abc.ABC):
    """How an inverse Hessian is kept; concrete ones are final."""

    @abc.abstractmethod
    def initial(self, like: Tensor) -> State:
        """Return the state that stands for the identity of the space of a vector (n,)."""

    @abc.abstractmethod
    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `H x` for x (n,) or (n, k)."""

    @abc.abstractmethod
    def update(self, state: State, pair: SecantPair, hy: Tensor, gradient_norm: Tensor) -> State:
        """Return the state after a pair, or the one before if a gate refuses it.

        Args:
            state: The state.
            pair: The pair.
            hy: (n,), `H y`.
            gradient_norm: 0-D, for the gate.
        """


@final
@dataclass(frozen=True)
class DenseBFGS(InverseHessian):
    """The matrix itself, (n, n)."""

    def initial(self, like: Tensor) -> State:
        """Return the identity."""
        return {"output_inverse": torch.eye(len(like), dtype=like.dtype, device=like.device)}

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `H x`."""
        return state["output_inverse"] @ x

    def update(self, state: State, pair: SecantPair, hy: Tensor, gradient_norm: Tensor) -> State:
        """Return the updated matrix."""
        h = state["output_inverse"]
        return {"output_inverse": update_inverse(h, pair, hy, gradient_norm)}


@final
@dataclass(frozen=True)
class LimitedMemory(InverseHessian):
    """The last pairs, in the compact form that takes matrix products only.

    `H = I + [S, Y] [[R^-T (D + Y^T Y) R^-1, -R^-T], [-R^-1, 0]] [S, Y]^T` with the pairs as columns
    of S and Y, oldest first, `R = triu(S^T Y)` and D its diagonal: what `q` BFGS updates make of
    the identity. There are always `q` columns. Those of pairs that have not come yet are zero, as
    are their rows and columns of `R^-1`, so that they add nothing.

    Args:
        memory: `q`, how many pairs are remembered; the oldest is forgotten first.

    Raises:
        InputError: If it is no positive number.

    Source: S4 section 3 (after Byrd, Nocedal and Schnabel 1994), with the identity to start from.
    """

    memory: int = 100

    def __post_init__(self) -> None:
        check_integer("memory", self.memory, 1)

    def initial(self, like: Tensor) -> State:
        """Return an empty memory."""
        q = self.memory
        return {
            "steps": like.new_zeros(len(like), q),  # S
            "changes": like.new_zeros(len(like), q),  # Y
            "triangle_inverse": like.new_zeros(q, q),  # R^-1
            "change_products": like.new_zeros(q, q),  # Y^T Y
            "pair_products": like.new_zeros(q),  # D
        }

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `H x`, two products of width 2 q."""
        s, y, r_inverse, yy, d = (state[name] for name in _MEMORY)
        rx = r_inverse @ (s.mT @ x)
        middle = yy + torch.diag(d)
        top = r_inverse.mT @ (middle @ rx - y.mT @ x)
        return x + s @ top - y @ rx

    def update(self, state: State, pair: SecantPair, hy: Tensor, gradient_norm: Tensor) -> State:
        """Return the memory with a pair at its end, and without the oldest one.

        `R` is upper triangular: without its first row and column its inverse loses those too, and
        a new column of `R` adds one to the inverse.

        Args:
            state: The memory.
            pair: The pair.
            hy: Of no use here.
            gradient_norm: 0-D, for the gate.

        Returns:
            The memory.
        """
        s, y, r_inverse, yy, d = (state[name] for name in _MEMORY)
        s_old, y_old, kept = s[:, 1:], y[:, 1:], r_inverse[1:, 1:]
        sy = pair.s @ pair.y
        column = torch.cat([-(kept @ (s_old.mT @ pair.y)) / sy, (1 / sy).reshape(1)])
        products = torch.cat([y_old.mT @ pair.y, (pair.y @ pair.y).reshape(1)])
        new = {
            "steps": torch.cat([s_old, pair.s.unsqueeze(1)], dim=1),
            "changes": torch.cat([y_old, pair.y.unsqueeze(1)], dim=1),
            "triangle_inverse": _bordered(kept, torch.zeros_like(column), column),
            "change_products": _bordered(yy[1:, 1:], products, products),
            "pair_products": torch.cat([d[1:], sy.reshape(1)]),
        }
        finite = column.isfinite().all() & products.isfinite().all()
        accepted = shows_curvature(*pair, gradient_norm) & finite
        return {name: torch.where(accepted, x, state[name]) for name, x in new.items()}


_MEMORY = ("steps", "changes", "triangle_inverse", "change_products", "pair_products")


def _bordered(a: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return a matrix (q - 1, q - 1) with a last row and column (q,), which share their end."""
    return torch.cat([torch.cat([a, row[:-1].unsqueeze(0)]), column.unsqueeze(1)], dim=1)
