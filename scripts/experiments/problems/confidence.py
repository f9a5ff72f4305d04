"""How sure a classifier is of examples, and how often it has forgotten them."""

import torch
from torch import Tensor

from psgd_optim.types import InputError


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each softmax in nats, (N,), of logits (N, classes)."""
    logs = logits.double().log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def margin(logits: Tensor) -> Tensor:
    """Return the largest probability less the second largest, (N,), of logits (N, classes)."""
    best = logits.double().softmax(dim=1).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


class Forgetting:
    """Counts how often each example went from right to wrong.

    Args:
        count: Number of examples.

    Source: S2 section 4.4, after Toneva et al. 2019.
    """

    def __init__(self, count: int) -> None:
        self._was_right = torch.zeros(count, dtype=torch.bool)
        self._was_ever_right = torch.zeros(count, dtype=torch.bool)
        self._events = torch.zeros(count, dtype=torch.long)

    def see(self, is_right: Tensor) -> None:
        """Take in which examples, (count,) and boolean, are classified rightly now."""
        self._events += self._was_right & ~is_right
        self._was_right = is_right.clone()
        self._was_ever_right |= is_right

    def events(self) -> Tensor:
        """Return how often each was forgotten, (count,)."""
        return self._events.clone()

    def scores(self) -> Tensor:
        """Return the counts, with one above the largest for those never learned."""
        return torch.where(self._was_ever_right, self._events, self._events.max() + 1)


def spearman(x: Tensor, y: Tensor) -> float:
    """Return the rank correlation of two samples, ties having the mean of their ranks.

    Args:
        x: (N,).
        y: (N,).

    Returns:
        In [-1, 1]; 0 where one of them is constant.

    Raises:
        InputError: If they differ in length, or have none.
    """
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise InputError(f"Got samples of shapes {tuple(x.shape)} and {tuple(y.shape)}; give (N,).")
    a, b = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def _ranks(x: Tensor) -> Tensor:
    """Return ranks from 0 on, (N,) in double precision, shared by equal values."""
    ordered = x.sort().values
    first = torch.searchsorted(ordered, x)
    end = torch.searchsorted(ordered, x, right=True)
    return (first + end - 1).double() / 2
