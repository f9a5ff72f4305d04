"""Causal self-attention that can remember: keys and values of the tokens before, rotary positions.

Shapes: `B` rows of `T` new and `P` old tokens, `D` the width, `H` heads, `E = D / H`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.dropouts import element_dropout
from psgd_lm.language_model import Memory

ROTARY_BASE = 10_000.0  # RoFormer's
NORM_EPSILON = 1e-5  # GPT-2's; torch's default for RMSNorm is 65 000 times as large in bfloat16


class Attention(nn.Module):
    """Causal self-attention with several heads.

    Args:
        width: Of the residual stream.
        heads: How many; divides the width.
        bias: Whether the linear layers have one.
        dropout: Part of the attention weights that is dropped in training.
        qk_norm: Whether queries and keys are scaled to a root mean square of 1.
    """

    def __init__(
        self, width: int, heads: int, *, bias: bool, dropout: float, qk_norm: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qk_norm = qk_norm
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.project = nn.Linear(width, width, bias=bias)

    def forward(
        self, x: Tensor, past: Memory = (), rotation: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Memory]:
        """Mix the positions up to each one.

        Args:
            x: (B, T, D).
            past: Keys and values of the P positions before, (B, H, P, E) each, if there are any.
            rotation: Of the new positions, from `rotation_of`; None where positions are added.

        Returns:
            (B, T, D), and keys and values of all positions, (B, H, P + T, E) each.
        """
        heads = self.query_key_value(x).unflatten(-1, (3 * self.heads, -1))  # (B, T, 3H, E)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=1)  # (B, H, T, E) each
        if self.qk_norm:
            query, key = (F.rms_norm(q, q.shape[-1:], eps=NORM_EPSILON) for q in (query, key))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if past:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        new, seen = query.shape[2], key.shape[2]
        is_first = new == seen
        dropout = self.dropout if self.training else 0.0
        if dropout and x.device.type == "cpu" and not torch.compiler.is_compiling():
            mixed = _mix_and_drop(query, key, value, dropout)
        else:
            # torch's own causal mask would let the first new position see the first old one only.
            mask = None if is_first or new == 1 else _causal_mask(new, seen, x.device)
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_first
            )  # (B, H, T, E)
        return self.project(mixed.transpose(1, 2).flatten(2)), (key, value)


def _mix_and_drop(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Return what torch's attention returns, with a dropout that is faster on a CPU.

    Args:
        query: (B, H, T, E).
        key: (B, H, P + T, E).
        value: (B, H, P + T, E).
        dropout: Part of the attention weights that is dropped.

    Returns:
        (B, H, T, E).
    """
    hidden = ~_causal_mask(query.shape[2], key.shape[2], query.device)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT  # (B, H, T, P + T)
    weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
    return element_dropout(weights, dropout, training=True) @ value


def _causal_mask(new: int, seen: int, device: torch.device) -> Tensor:
    """Return which of all positions each of the last ones may see, (new, seen) bool."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


def rotation_of(positions: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return by how much every pair of coordinates is turned.

    Args:
        positions: (T,), counted from the beginning of the text.
        size: E, of a head; even.
        dtype: Of the activations; angles are in single precision or better.

    Returns:
        Cosines and sines, (T, E / 2) each.

    Source: RoFormer, equations 13 to 15 of section 3.2; coordinates i and i + E / 2 are a pair.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, size, 2, dtype=dtype, device=positions.device) / size  # (E / 2,)
    angles = positions[:, None] * ROTARY_BASE**-exponents  # (T, E / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys, so that their products depend on differences of positions only.

    Args:
        x: (B, H, T, E).
        rotation: From `rotation_of`.

    Returns:
        (B, H, T, E), in the dtype of `x`; every pair of coordinates keeps its length.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    return torch.cat(turned, dim=-1).to(x.dtype)
