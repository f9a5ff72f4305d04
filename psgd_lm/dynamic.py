"""Dynamic evaluation: the parameters follow the text that they are evaluated on.

After each segment, whose losses count first, the parameters take one step down its gradient. The
figures say how well a model adapts; they do not compare with those of fixed parameters.

Source: Krause, Kahembwe, Murray, Renals, "Dynamic evaluation of neural sequence models" (2018),
equations 3 to 6. Deviation: windows of a model with a context overlap by all but a segment, so
that short segments have something before them.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from psgd_lm.evaluate import Evaluation, evaluation_mode, tally
from psgd_lm.language_model import LanguageModel, token_losses
from psgd_lm.pieces import Piece, overlapping_windows, streams, windows
from psgd_lm.tokens import Tokens
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """How parameters follow the text."""

    lr: float = 0.0
    """Step after every segment; 0 switches dynamic evaluation off. Try 1e-3 with sgd, 1e-5 with
    rms."""
    rule: Literal["sgd", "rms"] = "sgd"
    """Step along the gradient, or along the gradient by its root mean square in training."""
    decay: float = 0.0
    """Part of the way back to the trained parameters that every step takes, in [0, 1]; with rms
    times the parameter's root mean square by the mean one, up to the whole way."""
    segment: int = 0
    """Tokens per step; 0 for a context."""
    statistics: int = 200
    """Segments of the training text that the mean squares of rms are taken over."""
    eps: float = 1e-5
    """Added to the root mean square."""

    def __post_init__(self) -> None:
        for name in ("lr", "decay", "segment", "eps"):
            if not getattr(self, name) >= 0:
                raise InputError(
                    f"Got dynamic {name} {getattr(self, name)}; give --dynamic.{name} 0 or more."
                )
        if self.statistics < 1:
            raise InputError(
                f"Got dynamic statistics {self.statistics}; give --dynamic.statistics 1 or more."
            )
        if self.decay > 1:
            raise InputError(f"Got dynamic decay {self.decay}; give --dynamic.decay 1 or less.")


def evaluate_dynamically(
    model: LanguageModel,
    tokens: Tokens,
    byte_lengths: Tensor,
    config: DynamicConfig,
    train: Tokens | None = None,
) -> Evaluation:
    """Evaluate a model that learns as it reads.

    Args:
        model: Left as it is; a copy learns.
        tokens: More than one.
        byte_lengths: (vocab_size,), UTF-8 bytes of each token.
        config: How it learns.
        train: The training text, which `rms` needs.

    Returns:
        The figures.

    Raises:
        InputError: If `rms` has no training text, or the segment is longer than the context.
    """
    device = next(model.parameters()).device
    if config.segment > model.context and not model.is_recurrent:
        raise InputError(
            f"Got segments of {config.segment} with a context of {model.context}; give "
            "--dynamic.segment up to the context."
        )
    learner = _Learner(copy.deepcopy(model), config)
    if config.rule == "rms":
        if train is None:
            raise InputError("Got rule rms without a training text; give one, or the rule sgd.")
        learner.measure(train.to(device))
    pieces = _segments(model, tokens.to(device), config)
    # cuDNN has no backward pass of a recurrent model in evaluation mode.
    with evaluation_mode(learner.model), torch.backends.cudnn.flags(enabled=False):
        return tally(pieces, learner.read_and_learn, len(tokens) - 1, byte_lengths)


def _segments(model: LanguageModel, tokens: Tokens, config: DynamicConfig) -> Iterator[Piece]:
    """Cut a text into segments, one at a time."""
    segment = config.segment or model.context
    if model.is_recurrent:
        return streams(tokens, 1, segment)
    if segment == model.context:
        return windows(tokens, segment, 1)
    return overlapping_windows(tokens, model.context, segment, 1)


@dataclass(kw_only=True)
class _Scale:
    """What one parameter's steps are scaled by."""

    step: Tensor | float = 1.0
    back: Tensor | float = 0.0


@dataclass
class _Learner:
    """A model that reads on and learns; `model` is its own."""

    model: LanguageModel
    config: DynamicConfig
    memory: tuple[Tensor, ...] | None = None
    scales: list[_Scale] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = [p.detach().clone() for p in self.parameters]
        self.scales = [_Scale(back=self.config.decay) for _ in self.parameters]

    def read(self, piece: Piece) -> tuple[Tensor, list[Tensor]]:
        """Return the losses of a piece, (B, T), and the gradient of the mean of those scored."""
        if self.model.is_recurrent and piece.begins:
            self.memory = self.model.empty_memory(len(piece.inputs))
        with torch.enable_grad():
            output = self.model(piece.inputs, self.memory)
            losses = token_losses(output.logits, piece.targets).view(piece.targets.shape)
            gradients = torch.autograd.grad(
                losses[piece.scored].mean(), self.parameters, allow_unused=True
            )
        if output.memory is not None:
            self.memory = tuple(part.detach() for part in output.memory)
        pairs = zip(gradients, self.parameters, strict=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in pairs]
        return losses.detach(), dense

    @torch.no_grad()
    def read_and_learn(self, piece: Piece) -> Tensor:
        """Return the losses of a piece, and only then learn from it."""
        losses, gradients = self.read(piece)
        places = zip(self.parameters, gradients, self.trained, self.scales, strict=True)
        for parameter, gradient, trained, scale in places:
            parameter.sub_(self.config.lr * scale.step * gradient)
            parameter.add_(scale.back * (trained - parameter))
        return losses

    @torch.no_grad()
    def measure(self, train: Tokens) -> None:
        """Set the scales from the mean squares of the gradients on a training text."""
        config = self.config
        squares = [torch.zeros_like(p) for p in self.parameters]
        seen = 0
        with evaluation_mode(self.model), torch.backends.cudnn.flags(enabled=False):
            pieces = _segments(self.model, train, config)
            for piece in itertools.islice(pieces, config.statistics):
                for square, gradient in zip(squares, self.read(piece)[1], strict=True):
                    square += gradient.square()
                seen += 1
        sizes = [(square / seen).sqrt() for square in squares]
        mean = sum(float(size.sum()) for size in sizes) / sum(size.numel() for size in sizes)
        self.scales = [
            _Scale(
                step=1 / (size + config.eps),
                # (1 - decay * size / mean) may not change the sign of what was learned.
                back=(config.decay * size / mean).clamp(max=1) if mean else 0.0,
            )
            for size in sizes
        ]
        self.memory = None
