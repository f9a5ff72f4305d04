"""LSTM and GRU language models with the regularisation of AWD-LSTM, every part of it optional.

Shapes: `B` rows of `T` tokens, `D` features, `V` words in the vocabulary.
"""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.dropouts import locked_dropout, word_dropout
from psgd_lm.language_model import LanguageModel, Memory, Output
from psgd_lm.recurrent_layer import RecurrentLayer
from psgd_optim.types import InputError

INITIAL_RANGE = 0.1  # AWD-LSTM's, of the embedding and the head

_DROPOUTS = tuple(
    f"{part}_dropout" for part in ("embedding", "input", "hidden", "output", "weight")
)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """The sizes and the regularisation of a recurrent model: what LSTM and GRU share."""

    layers: int = 2
    """Recurrent layers."""
    embedding: int = 128
    """Size of the embedding and, with a tied head, of the last layer."""
    hidden: int = 256
    """Size of the other layers."""
    context: int = 64
    """Tokens that gradients go back through; the hidden state goes on from window to window."""
    tied: bool = True
    """Whether the head's matrix is that of the embedding."""
    sparse_embedding: bool = False
    """Whether the embedding's gradient holds only the rows of words in the batch; not if tied."""
    embedding_dropout: float = 0.0
    """Part of the words that is dropped in training, at all of their places; AWD-LSTM: 0.1."""
    input_dropout: float = 0.0
    """Part of the embeddings' features that is dropped for a whole window; AWD-LSTM: 0.4."""
    hidden_dropout: float = 0.0
    """The same between layers; AWD-LSTM: 0.25."""
    output_dropout: float = 0.0
    """The same of the last layer's outputs; AWD-LSTM: 0.4."""
    weight_dropout: float = 0.0
    """Part of the hidden-to-hidden weights that is dropped for a whole window; AWD-LSTM: 0.5."""
    activation_penalty: float = 0.0
    """Factor of the mean square of the outputs, after dropout; AWD-LSTM's alpha: 2."""
    change_penalty: float = 0.0
    """Factor of the mean square of the outputs' changes in time; AWD-LSTM's beta: 1."""

    def __post_init__(self) -> None:
        for name in ("layers", "embedding", "hidden", "context"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in _DROPOUTS:
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("activation_penalty", "change_penalty"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        if self.tied and self.sparse_embedding:
            raise InputError(
                "Got a sparse embedding that is tied to the head, whose gradient is dense; give "
                "--model.no-tied or --model.no-sparse-embedding."
            )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            flag = f"--model.{name.replace('_', '-')}"
            raise InputError(f"Got {name} {getattr(self, name)}; give {flag} {allowed}.")

    @property
    def sizes(self) -> list[int]:
        """The number of features before, between and after the layers."""
        last = self.embedding if self.tied else self.hidden
        return [self.embedding, *[self.hidden] * (self.layers - 1), last]


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    """An LSTM language model."""

    name: ClassVar[str] = "lstm"


@dataclass(frozen=True, kw_only=True)
class GRUConfig(RecurrentConfig):
    """A GRU language model."""

    name: ClassVar[str] = "gru"


AWD_LSTM = LSTMConfig(
    layers=3,
    embedding=400,
    hidden=1150,
    context=70,
    embedding_dropout=0.1,
    input_dropout=0.4,
    hidden_dropout=0.25,
    output_dropout=0.4,
    weight_dropout=0.5,
    activation_penalty=2.0,
    change_penalty=1.0,
)
"""AWD-LSTM as its authors trained it on the Penn Treebank."""


class RecurrentModel(LanguageModel):
    """A recurrent language model; its memory is the state after the last token.

    Args:
        config: The sizes, and the kind of cell by its type.
        vocab_size: Words in the vocabulary.

    Source: AWD-LSTM (Merity, Keskar and Socher, 2017), sections 2 and 4.
    """

    is_recurrent = True

    def __init__(self, config: LSTMConfig | GRUConfig, vocab_size: int) -> None:
        super().__init__(vocab_size, config.context)
        self.config = config
        is_lstm = isinstance(config, LSTMConfig)
        kind = nn.LSTM if is_lstm else nn.GRU
        self._parts = 2 if is_lstm else 1  # of a layer's state
        self.embedding = nn.Embedding(
            vocab_size, config.embedding, sparse=config.sparse_embedding
        )  # also the head if tied
        self.layers = nn.ModuleList(
            RecurrentLayer(kind, inputs, hidden, config.weight_dropout)
            for inputs, hidden in itertools.pairwise(config.sizes)
        )
        self.head = None if config.tied else nn.Linear(config.sizes[-1], vocab_size)
        self.head_bias = nn.Parameter(torch.zeros(vocab_size)) if config.tied else None
        self._fused = True
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        # The layers keep torch's initial values, uniform within 1 / sqrt(H).
        self.embedding.weight.uniform_(-INITIAL_RANGE, INITIAL_RANGE)
        if self.head is not None:
            self.head.weight.uniform_(-INITIAL_RANGE, INITIAL_RANGE)
            self.head.bias.zero_()

    def empty_memory(self, rows: int) -> Memory:
        """Return the memory of texts that begin: states of zeros, layer by layer."""
        new = self.embedding.weight.new_zeros
        sizes = self.config.sizes[1:]
        return tuple(new(rows, size) for size in sizes for _ in range(self._parts))

    def forward(self, tokens: Tensor, memory: Memory | None = None) -> Output:
        """Predict the token after every position.

        Args:
            tokens: (B, T) int64.
            memory: The state before them, (B, H) for each layer's hidden and, in an LSTM, cell
                state in turn; None for zeros.

        Returns:
            The logits, the state after them if one was given, and in training the penalty.
        """
        state = self.empty_memory(tokens.shape[0]) if memory is None else memory
        raw = x = self._embed(tokens)
        kept: Memory = ()
        for i, layer in enumerate(self.layers):
            first = self._parts * i
            raw, end = layer(x, state[first : first + self._parts], fused=self._fused)
            is_last = i == len(self.layers) - 1
            dropout = self.config.output_dropout if is_last else self.config.hidden_dropout
            x = locked_dropout(raw, dropout, training=self.training)
            kept += end
        logits = (
            F.linear(x, self.embedding.weight, self.head_bias)
            if self.head is None
            else self.head(x)
        )
        return Output(logits, None if memory is None else kept, self._penalty(raw, x))

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return the embedded tokens (B, T, D), of which training drops some."""
        config = self.config
        x = word_dropout(
            self.embedding(tokens),
            tokens,
            self.vocab_size,
            config.embedding_dropout,
            training=self.training,
        )
        return locked_dropout(x, config.input_dropout, training=self.training)

    def _penalty(self, raw: Tensor, dropped: Tensor) -> Tensor | None:
        """Return what is added to the loss, from the last layer's outputs (B, T, D)."""
        config = self.config
        if not self.training or not (config.activation_penalty or config.change_penalty):
            return None
        penalty = config.activation_penalty * _mean_square(dropped)
        if raw.shape[1] > 1:
            penalty = penalty + config.change_penalty * _mean_square(raw[:, 1:] - raw[:, :-1])
        return penalty

    def twice_differentiable(self) -> AbstractContextManager[None]:
        """Return a context in which the layers run step by step.

        cuDNN's backward pass of a recurrent layer has no derivative.
        """
        return self._unfused()

    @contextmanager
    def _unfused(self) -> Iterator[None]:
        before, self._fused = self._fused, False
        try:
            yield
        finally:
            self._fused = before

    def flops_per_token(self) -> float:
        """Return 6 for every number of a matrix that multiplies activations."""
        unused = 0 if self.head is None else self.embedding.weight.numel()
        return 6.0 * (sum(p.numel() for p in self.parameters() if p.ndim >= 2) - unused)


def _mean_square(x: Tensor) -> Tensor:
    """Return the mean square of all entries, 0-D, in single precision or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().mean()
