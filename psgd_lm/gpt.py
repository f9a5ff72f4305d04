"""A GPT: a decoder-only transformer with learned positions and a head tied to the embedding.

Shapes: `B` windows of `T` tokens, `D` the width of the residual stream, `H` heads, `V` tokens in
the vocabulary. Pre-LayerNorm blocks, GELU, and the initial sizes of GPT-2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.language_model import LanguageModel, Memory, Output
from psgd_optim.types import InputError

INITIAL_STD = 0.02  # GPT-2's


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes of a GPT; its vocabulary comes from the tokenizer."""

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

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions up to each one.

        Args:
            x: (B, T, D).

        Returns:
            (B, T, D).
        """
        heads = self.query_key_value(x).unflatten(-1, (3 * self.heads, -1))  # (B, T, 3H, D/H)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=1)  # (B, H, T, D/H) each
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )  # (B, H, T, D/H)
        projected: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return projected


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

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, T, D).

        Returns:
            (B, T, D).
        """
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        hidden = F.gelu(self.expand(self.perceptron_norm(x)))  # (B, T, 4D)
        out: Tensor = x + self.dropout(self.project(hidden))
        return out


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
        """Return the memory of texts that begin."""
        raise NotImplementedError("keys and values are not kept yet")

    def forward(self, tokens: Tensor, memory: Memory | None = None) -> Output:
        """Predict the token after every position.

        Args:
            tokens: (B, T) int64, T up to the context.
            memory: Keys and values of the tokens before.

        Returns:
            The logits.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, D)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return Output(F.linear(self.norm(x), self.token_embedding.weight), memory)
