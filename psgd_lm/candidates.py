"""Which tokens may come next, and with what probability: what sampling makes of the logits.

Applied in this order: repetition penalty, temperature, top-k, top-p, min-p; each filter works on
the probabilities that the one before left, which then sum to one again.

Shapes: `B` rows, `V` tokens in the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """How the next token's probabilities are made; the defaults leave the model's."""

    temperature: float = 1.0
    """Below 1 prefers likely tokens, 1 follows the model, 0 always takes the likeliest."""
    top_k: int = 0
    """Choose among this many likeliest tokens only; 0 among all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that together have this probability; 1 among all."""
    min_p: float = 0.0
    """Choose among tokens with at least this part of the likeliest one's probability; 0 among
    all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that were there; 1 for none."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and up to 1")
        self._require("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._require("repetition_penalty", self.repetition_penalty > 0, "above 0")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            flag = name.replace("_", "-")
            raise InputError(f"Got {name} {getattr(self, name)}; give --{flag} {allowed}.")

    def probabilities(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Return what the next token is drawn from.

        Args:
            logits: (B, V).
            seen: (B, V) bool, the tokens that were there.

        Returns:
            (B, V) float64; every row sums to one.

        Source: top-p, Holtzman et al. (2020); min-p, Nguyen et al. (2024); the penalty, Keskar et
        al. (2019), section 4.1, with multiplication where a logit is negative.
        """
        logits = logits.double()
        if self.repetition_penalty != 1:
            factor = self.repetition_penalty
            penalised = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(seen, penalised, logits)
        if self.temperature == 0:
            return one_hot_of_largest(logits)
        # With the largest logit at 0, even a tiny temperature overflows to -inf only, never to NaN.
        scaled = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        p = scaled.nan_to_num(nan=0.0).softmax(-1)
        if 0 < self.top_k < p.shape[-1]:
            p = keep(p, p >= p.topk(self.top_k).values[:, -1:])
        if self.top_p < 1:
            p = keep(p, nucleus(p, self.top_p))
        return keep(p, p >= self.min_p * p.amax(-1, keepdim=True)) if self.min_p else p


def one_hot_of_largest(logits: Tensor) -> Tensor:
    """Return probability one for the first largest logit of every row, (B, V)."""
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Return which tokens are the likeliest that together reach a probability.

    Args:
        p: (B, V), sums to one.
        top_p: In (0, 1).

    Returns:
        (B, V) bool; of equal probabilities the lower ids come first.
    """
    largest, order = p.sort(dim=-1, descending=True, stable=True)
    before = largest.cumsum(-1) - largest
    return torch.zeros_like(p, dtype=torch.bool).scatter_(-1, order, before < top_p)


def keep(p: Tensor, kept: Tensor) -> Tensor:
    """Return the probabilities of the tokens that are kept, summing to one again, (B, V)."""
    left = p.masked_fill(~kept, 0.0)
    return left / left.sum(-1, keepdim=True)


def draw(p: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Draw a token for every row.

    Args:
        p: (B, V).
        generators: One per row, so that a row does not depend on the others.

    Returns:
        (B,) int64.
    """
    rows = zip(p, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows])
