"""What every language model is: token ids in, logits out, and a memory that goes on with the text.

Shapes: `B` rows of `T` tokens, `V` tokens in the vocabulary.
"""

import abc
from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

Memory = tuple[Tensor, ...]
"""What a model keeps of the tokens it has seen: a recurrent state, or keys and values.

The first axis of every tensor is that of the rows, so that rows can be chosen and repeated.
"""


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        logits: (B, T, V), of the token after each position.
        memory: What the following tokens need; None if no memory was given.
        penalty: 0-D, what training adds to the mean loss, if the model regularises itself.
    """

    logits: Tensor
    memory: Memory | None = None
    penalty: Tensor | None = None


class LanguageModel(nn.Module, abc.ABC):
    """A model of the next token.

    Args:
        vocab_size: Tokens in the vocabulary.
        context: Tokens that a window of training or evaluation has.
    """

    is_recurrent: bool = False
    """Whether it is trained and evaluated on running text, with its memory carried along."""

    def __init__(self, vocab_size: int, context: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.context = context

    @abc.abstractmethod
    def empty_memory(self, rows: int) -> Memory:
        """Return the memory of texts that begin, on the model's device."""

    @abc.abstractmethod
    def forward(self, tokens: Tensor, memory: Memory | None = None) -> Output:
        """Predict the token after every position.

        Args:
            tokens: (B, T) int64.
            memory: Of the tokens before; None for none, and no memory is returned then.

        Returns:
            The logits, and the memory if one was given.
        """

    @abc.abstractmethod
    def twice_differentiable(self) -> AbstractContextManager[None]:
        """Return a context in which the forward pass has exact second derivatives.

        The fast kernels of attention and of recurrent layers have first ones only. Outputs and
        gradients are the same to rounding, with or without it.
        """

    @abc.abstractmethod
    def flops_per_token(self) -> float:
        """Return the floating-point operations of a forward and a backward pass, per token."""

    def parameter_count(self) -> int:
        """Return the number of trained numbers; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of every target token.

    Args:
        logits: (B, T, V).
        targets: (B, T) int64.

    Returns:
        (B * T,), in nats.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
