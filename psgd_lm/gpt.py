"""A GPT: a decoder-only transformer with learned positions and a head tied to the embedding.

Shapes: `B` windows of `T` tokens, `D` the width of the residual stream, `H` heads, `V` tokens in
the vocabulary. Pre-LayerNorm blocks, GELU, and the initial sizes of GPT-2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.language_model import LanguageModel, Memory, Output
from psgd_optim.types import InputError

INITIAL_STD = 0.02  # GPT-2's


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes of a GPT; its vocabulary comes from the tokenizer."""

    name: ClassVar[str] = "gpt"

    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads per block; divides the width."""
    width: int = 128
    """Size of the residual stream."""
    context: int = 64
    """Tokens that the model sees at once."""
    dropout: float = 0.0
    """Part of the activations that is dropped in training, in [0, 1)."""
    bias: bool = False
    """Whether linear layers and normalisations have a bias."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "context"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"Got {name} {getattr(self, name)}; give --model.{name} 1 or more."
                )
        if self.width % self.heads:
            raise InputError(
                f"Got width {self.width} and heads {self.heads}; the width must be a multiple of "
                "the heads: change --model.width or --model.heads."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"Got dropout {self.dropout}; give --model.dropout in [0, 1).")


class Attention(nn.Module):
    """Causal self-attention with several heads.

    Args:
        config: The model's sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.project = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, past: Memory = ()) -> tuple[Tensor, Memory]:
        """Mix the positions up to each one.

        Args:
            x: (B, T, D).
            past: Keys and values of the P positions before, (B, H, P, D/H) each, if there are any.

        Returns:
            (B, T, D), and keys and values of all positions, (B, H, P + T, D/H) each.
        """
        heads = self.query_key_value(x).unflatten(-1, (3 * self.heads, -1))  # (B, T, 3H, D/H)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=1)  # (B, H, T, D/H) each
        if past:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        new, seen = query.shape[2], key.shape[2]
        is_first = new == seen
        # torch's own causal mask would let the first new position see the first old one only.
        mask = None if is_first or new == 1 else _causal_mask(new, seen, x.device)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_first,
        )  # (B, H, T, D/H)
        return self.project(mixed.transpose(1, 2).flatten(2)), (key, value)


def _causal_mask(new: int, seen: int, device: torch.device) -> Tensor:
    """Return which of all positions each of the last ones may see, (new, seen) bool."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


class Block(nn.Module):
    """One layer: attention, then a two-layer perceptron, each added to its input.

    Args:
        config: The model's sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width, bias=config.bias)
        self.attention = Attention(config)
        self.perceptron_norm = nn.LayerNorm(width, bias=config.bias)
        self.expand = nn.Linear(width, 4 * width, bias=config.bias)
        self.project = nn.Linear(4 * width, width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, past: Memory = ()) -> tuple[Tensor, Memory]:
        """Apply the layer.

        Args:
            x: (B, T, D).
            past: As of `Attention`.

        Returns:
            (B, T, D), and keys and values as of `Attention`.
        """
        mixed, kept = self.attention(self.attention_norm(x), past)
        x = x + self.dropout(mixed)
        hidden = F.gelu(self.expand(self.perceptron_norm(x)))  # (B, T, 4D)
        return x + self.dropout(self.project(hidden)), kept


class GPT(LanguageModel):
    """The language model: token ids in, logits of the next token out.

    Args:
        config: The sizes.
        vocab_size: Tokens in the vocabulary.
    """

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__(vocab_size, config.context)
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.width)  # also the head
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim >= 2:
                # 2 * layers projections add up in the residual stream; this keeps its variance.
                depth = 2 * self.config.layers if name.endswith("project.weight") else 1
                parameter.normal_(std=INITIAL_STD / math.sqrt(depth))

    def empty_memory(self, rows: int) -> Memory:
        """Return the memory of texts that begin: keys and values of no token, layer by layer."""
        heads, weight = self.config.heads, self.token_embedding.weight
        shape = (rows, heads, 0, self.config.width // heads)
        return tuple(weight.new_empty(shape) for _ in range(2 * self.config.layers))

    def forward(self, tokens: Tensor, memory: Memory | None = None) -> Output:
        """Predict the token after every position.

        Args:
            tokens: (B, T) int64; T, and the tokens in the memory, up to the context.
            memory: Keys and values of the P tokens before, (B, H, P, D/H) each, layer by layer.

        Returns:
            The logits, and the memory with these tokens in it if one was given.

        Raises:
            ValueError: If the tokens and those in the memory are more than the context.
        """
        before = memory[0].shape[2] if memory else 0
        after = before + tokens.shape[1]
        if after > self.context:
            raise ValueError(
                f"GPT got {tokens.shape[1]} tokens after {before}; the context holds "
                f"{self.context}: begin again with an empty memory and the last tokens."
            )
        positions = torch.arange(before, after, device=tokens.device)  # (T,)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, D)
        x = self.dropout(x)
        kept: Memory = ()
        for i, block in enumerate(self.blocks):
            x, pair = block(x, memory[2 * i : 2 * i + 2] if memory else ())
            if memory:
                kept += pair
        logits = F.linear(self.norm(x), self.token_embedding.weight)
        return Output(logits, kept if memory else None)
