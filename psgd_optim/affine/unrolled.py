"""What the recurrent twins share: layers unrolled in time, so that they can be derived twice.

Shape legend: `T` steps, `B` sequences, `X` inputs and `H` hidden units of one layer, `G` its
preactivations (H, 3H or 4H), `L` layers times directions.
"""

import abc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from psgd_optim.affine.base import Affine, give, join, matrix_of, split

States = tuple[Tensor, ...]
"""The hidden state, and for an LSTM the cell state."""

_Layer = TypeVar("_Layer", bound=nn.RNNBase)


class Unrolled(Affine):
    """What the recurrent twins share.

    Args:
        layer: The layer to take over.

    Raises:
        ValueError: If it projects its hidden state.
    """

    states = 1

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        if layer.proj_size:
            raise ValueError(
                f"{type(self).__name__} got proj_size = {layer.proj_size}; only 0 is supported: "
                "put a linear layer behind the recurrent one."
            )
        self.input_size = layer.input_size
        self.hidden_size = layer.hidden_size
        self.num_layers = layer.num_layers
        self.bias = layer.bias
        self.batch_first = layer.batch_first
        self.dropout = layer.dropout
        self.bidirectional = layer.bidirectional
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if layer.bias else 2]
        for at in self._places():
            self._take(at, *(layer.get_parameter(f"{kind}_{at}") for kind in kinds))
        self.train(layer.training)

    @abc.abstractmethod
    def _take(self, at: str, w_x: Tensor, w_h: Tensor, *biases: Tensor) -> None:
        """Register the matrices of one layer and direction, from torch's parameters."""

    @abc.abstractmethod
    def _maps(self, at: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return weight (G, X) and bias of the input's map, (G, H) and bias of the state's."""

    @abc.abstractmethod
    def _give(self, layer: nn.RNNBase, at: str) -> None:
        """Set torch's parameters of one layer and direction."""

    @abc.abstractmethod
    def _cell(self, x: Tensor, h: Tensor, states: States) -> States:
        """Return the next states, (B, H) each, from the mapped input and state, (B, G) each."""

    def _places(self) -> list[str]:
        """Return torch's suffix of every layer and direction, in the order of its states."""
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{i}{end}" for i in range(self.num_layers) for end in ends]

    def _inputs(self, at: str) -> int:
        """Return the number of inputs X of one layer."""
        directions = 2 if self.bidirectional else 1
        first = at.removesuffix("_reverse") == "l0"
        return self.input_size if first else directions * self.hidden_size

    def _run(self, x: Tensor, states: States | None) -> tuple[Tensor, States]:
        """Run all layers over a sequence.

        Args:
            x: (T, B, X), (B, T, X) if `batch_first`, or (T, X).
            states: (L, B, H) each, or (L, H); zero when `None`.

        Returns:
            The last layer's hidden states in the layout of `x`, and the final states.

        Raises:
            TypeError: If the sequences are packed.
        """
        if isinstance(x, PackedSequence):
            raise TypeError(
                f"{type(self).__name__} got a PackedSequence; give a tensor: pad the sequences."
            )
        single = x.ndim == 2
        swap = self.batch_first and not single
        x = x.unsqueeze(1) if single else x.transpose(0, 1) if swap else x
        start = self._start(x, states, single=single)
        ends: list[States] = []
        places = self._places()
        directions = 2 if self.bidirectional else 1
        for first in range(0, len(places), directions):
            if first and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for i in range(first, first + directions):
                output, end = self._scan(x, tuple(s[i] for s in start), places[i])
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, dim=2)
        final = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        if single:
            return x.squeeze(1), tuple(s.squeeze(1) for s in final)
        return x.transpose(0, 1) if swap else x, final

    def _start(self, x: Tensor, states: States | None, *, single: bool) -> States:
        """Return the states to start from, (L, B, H) each."""
        shape = (len(self._places()), x.shape[1], self.hidden_size)
        if states is None:
            return (x.new_zeros(shape),) * self.states
        start = tuple(s.unsqueeze(1) if single else s for s in states)
        for s in start:
            if s.shape != shape:  # a state of another shape might broadcast
                raise ValueError(
                    f"{type(self).__name__} got a state of shape {tuple(s.shape)}; give {shape}."
                )
        return start

    def _scan(self, x: Tensor, states: States, at: str) -> tuple[Tensor, States]:
        """Run one layer in one direction over (T, B, X); return (T, B, H) and the end states."""
        w_x, b_x, w_h, b_h = self._maps(at)
        reverse = at.endswith("_reverse")
        inputs = F.linear(x, w_x, b_x).unbind()
        outputs = []
        for row in reversed(inputs) if reverse else inputs:
            states = self._cell(row, F.linear(states[0], w_h, b_h), states)
            outputs.append(states[0])
        return torch.stack(outputs[::-1] if reverse else outputs), states

    def _plain(self, kind: Callable[..., _Layer], **options: str) -> _Layer:
        """Return a layer of torch's with the options and parameters of this one."""
        layer = kind(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            device="meta",
            **options,
        )
        layer.dropout = self.dropout  # not by its constructor, which would warn again
        for at in self._places():
            self._give(layer, at)
        layer.flatten_parameters()
        layer.train(self.training)
        return layer

    def extra_repr(self) -> str:
        """Return the options, for `repr`."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"batch_first={self.batch_first}, dropout={self.dropout}, "
            f"bidirectional={self.bidirectional}"
        )


class OneMatrix(Unrolled):
    """A recurrent layer whose preactivations are one affine map of input and state.

    Torch's two biases are one column, their sum. The two parts that it started from are kept in
    a buffer that is not saved, for `plain`.
    """

    def _take(self, at: str, w_x: Tensor, w_h: Tensor, *biases: Tensor) -> None:
        self.register_parameter(f"weight_{at}", join([w_x, w_h], biases))
        if biases:
            parts = torch.stack([bias.detach() for bias in biases])  # (2, G)
            self.register_buffer(f"_biases_{at}", parts, persistent=False)

    def _maps(self, at: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        inputs = self._inputs(at)
        weight, bias = split(matrix_of(self, f"weight_{at}"), inputs + self.hidden_size)
        w_x, w_h = torch.split(weight, [inputs, self.hidden_size], dim=1)
        return w_x, bias, w_h, None

    def _give(self, layer: nn.RNNBase, at: str) -> None:
        w_x, bias, w_h, _ = self._maps(at)
        parts = {"weight_ih": w_x, "weight_hh": w_h}
        if bias is not None:
            b_x, b_h = self.get_buffer(f"_biases_{at}")
            # Bit for bit the old part where nothing has moved the sum.
            moved = torch.where(bias == b_x + b_h, b_x, bias - b_h)
            parts |= {"bias_ih": moved, "bias_hh": b_h}
        matrix = matrix_of(self, f"weight_{at}")
        give(layer, matrix, **{f"{kind}_{at}": part for kind, part in parts.items()})
