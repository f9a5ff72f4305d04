"""A GPT: a decoder-only transformer, by default GPT-2's without biases.

Shapes: `B` windows of `T` tokens, `D` the width of the residual stream, `V` tokens in the
vocabulary. Pre-normalised blocks, and the initial sizes of GPT-2.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from psgd_lm.attention import NORM_EPSILON, Attention, rotation_of
from psgd_lm.dropouts import element_dropout
from psgd_lm.language_model import LanguageModel, Memory, Output
from psgd_optim.types import InputError

INITIAL_STD = 0.02  # GPT-2's


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes and parts of a GPT; its vocabulary comes from the tokenizer."""

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
    activation: Literal["gelu", "gelu-tanh", "relu2"] = "gelu"
    """Of the perceptrons: GELU, its approximation by tanh that GPT-2 has, or the squared ReLU."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation: by mean and variance, or by the root mean square alone."""
    positions: Literal["learned", "rotary"] = "learned"
    """An embedding per position, or queries and keys turned by their positions."""
    qk_norm: bool = False
    """Whether queries and keys are scaled to a root mean square of 1."""
    tied: bool = True
    """Whether the head's matrix is that of the token embedding."""
    softcap: float = 0.0
    """Bound that tanh keeps the logits within; 0 for none."""
    zero_projections: bool = False
    """Whether the blocks start as the identity, their output projections at zero."""
    vocab_multiple: int = 1
    """Rows of the embedding are rounded up to a multiple of this; GPUs like 64. No token has the
    rows added, and they get no logits."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "context", "vocab_multiple"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("activation", "norm", "positions"):
            allowed = get_args(get_type_hints(type(self))[name])
            self._require(name, getattr(self, name) in allowed, " or ".join(allowed))
        if self.width % self.heads:
            raise InputError(
                f"Got width {self.width} and heads {self.heads}; the width must be a multiple of "
                "the heads: change --model.width or --model.heads."
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise InputError(
                f"Got rotary positions with width {self.width} and heads {self.heads}; each head "
                "must have an even width: change --model.width or --model.heads."
            )
        self._require("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self._require("softcap", 0 <= self.softcap < math.inf, "0 or more")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            flag = f"--model.{name.replace('_', '-')}"
            raise InputError(f"Got {name} {getattr(self, name)}; give {flag} {allowed}.")

    @property
    def head_size(self) -> int:
        """The width of a head."""
        return self.width // self.heads


SIZES: Mapping[str, GPTConfig] = {
    "0.8m": GPTConfig(layers=4, heads=4, width=128, context=64),
    "1.6m": GPTConfig(layers=8, heads=4, width=128, context=64),
    "6.4m": GPTConfig(layers=8, heads=8, width=256, context=256),
    "10m": GPTConfig(layers=6, heads=6, width=384, context=256),
    "124m": GPTConfig(layers=12, heads=12, width=768, context=1024),
    "355m": GPTConfig(layers=24, heads=16, width=1024, context=1024),
    "774m": GPTConfig(layers=36, heads=20, width=1280, context=1024),
    "1558m": GPTConfig(layers=48, heads=25, width=1600, context=1024),
}
"""Usual sizes by their parameters: below 100 million with some 65 characters, from there on
GPT-2's, which count its biases and its 50 257 tokens."""


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
    "relu2": _relu_squared,
}


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.width, eps=NORM_EPSILON)
    return nn.LayerNorm(config.width, eps=NORM_EPSILON, bias=config.bias)


class Block(nn.Module):
    """One layer: attention, then a two-layer perceptron, each added to its input.

    Args:
        config: The model's sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = _norm(config)
        self.attention = Attention(
            width,
            config.heads,
            bias=config.bias,
            dropout=config.dropout,
            qk_norm=config.qk_norm,
        )
        self.perceptron_norm = _norm(config)
        self.expand = nn.Linear(width, 4 * width, bias=config.bias)
        self.project = nn.Linear(4 * width, width, bias=config.bias)
        self.dropout = config.dropout
        self.activation = _ACTIVATIONS[config.activation]

    def forward(
        self, x: Tensor, past: Memory = (), rotation: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Memory]:
        """Apply the layer.

        Args:
            x: (B, T, D).
            past: As of `Attention`.
            rotation: As of `Attention`.

        Returns:
            (B, T, D), and keys and values as of `Attention`.
        """
        mixed, kept = self.attention(self.attention_norm(x), past, rotation)
        x = x + element_dropout(mixed, self.dropout, training=self.training)
        hidden = self.activation(self.expand(self.perceptron_norm(x)))  # (B, T, 4D)
        hidden = element_dropout(self.project(hidden), self.dropout, training=self.training)
        return x + hidden, kept


class GPT(LanguageModel):
    """The language model: token ids in, logits of the next token out.

    Args:
        config: The sizes.
        vocab_size: Tokens in the vocabulary.
    """

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__(vocab_size, config.context)
        self.config = config
        rows = math.ceil(vocab_size / config.vocab_multiple) * config.vocab_multiple
        self.token_embedding = nn.Embedding(rows, config.width)  # also the head if tied
        self.position_embedding = (
            nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        )
        self.dropout = config.dropout
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = _norm(config)
        self.head = None if config.tied else nn.Linear(config.width, rows, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            is_projection = name.endswith("project.weight")
            if name.endswith("bias") or (is_projection and self.config.zero_projections):
                parameter.zero_()
            elif parameter.ndim >= 2:
                # 2 * layers projections add up in the residual stream; this keeps its variance.
                depth = 2 * self.config.layers if is_projection else 1
                parameter.normal_(std=INITIAL_STD / math.sqrt(depth))

    def empty_memory(self, rows: int) -> Memory:
        """Return the memory of texts that begin: keys and values of no token, layer by layer."""
        shape = (rows, self.config.heads, 0, self.config.head_size)
        new = self.token_embedding.weight.new_empty
        return tuple(new(shape) for _ in range(2 * self.config.layers))

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
        x = self.token_embedding(tokens)  # (B, T, D)
        rotation = None
        if self.position_embedding is None:
            rotation = rotation_of(positions, self.config.head_size, x.dtype)
        else:
            x = x + self.position_embedding(positions)
        x = element_dropout(x, self.dropout, training=self.training)
        kept: Memory = ()
        for i, block in enumerate(self.blocks):
            x, pair = block(x, memory[2 * i : 2 * i + 2] if memory else (), rotation)
            if memory:
                kept += pair
        return Output(self._logits(self.norm(x)), kept if memory else None)

    def _logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the final activations (B, T, D)."""
        # The head is called as a module, so that it may be replaced by one.
        tied = self.token_embedding.weight
        logits: Tensor = F.linear(x, tied) if self.head is None else self.head(x)
        if self.config.vocab_multiple > 1:
            logits = logits[..., : self.vocab_size]
        if cap := self.config.softcap:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def twice_differentiable(self) -> AbstractContextManager[None]:
        """Return a context in which attention has second derivatives: torch's plain kernel."""
        # The other kernels' backward passes have no derivative.
        return sdpa_kernel(SDPBackend.MATH)

    def flops_per_token(self) -> float:
        """Return the operations of a forward and a backward pass over whole windows, per token.

        Returns:
            6 for every number of a matrix that multiplies activations, and the products of
            attention, of which the causal mask spares none.

        Source: PaLM, appendix B.
        """
        lookups = [self.position_embedding, None if self.head is None else self.token_embedding]
        unused = sum(table.weight.numel() for table in lookups if table is not None)
        used = sum(p.numel() for p in self.parameters() if p.ndim >= 2) - unused
        return 6.0 * used + 12.0 * self.config.layers * self.config.width * self.context
