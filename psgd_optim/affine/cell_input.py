"""LSTMs whose gates also see the cell state, as the paper's experiments use them.

Shape legend: `T` steps, `B` sequences, `X` inputs, `H` hidden units.
"""

import abc
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim.affine.base import matrix_of, split

_Map = tuple[Tensor, Tensor | None]
"""Weight and bias of one affine map, as views of its matrix."""


class _CellInput(nn.Module, abc.ABC):
    """What the two variants share: one layer, run over a sequence.

    Args:
        input_size: X.
        hidden_size: H.
        names: The names of the matrices.
        rows: The number of rows of each.
        std: Standard deviation of the initial values.

    Raises:
        ValueError: If a size is below 1 or the standard deviation is negative.
    """

    def __init__(
        self, input_size: int, hidden_size: int, names: tuple[str, ...], rows: int, std: float
    ) -> None:
        super().__init__()
        if input_size < 1 or hidden_size < 1 or not std >= 0:
            raise ValueError(
                f"{type(self).__name__} got input_size = {input_size}, hidden_size = {hidden_size} "
                f"and std = {std}; give sizes from 1 on and a std of at least 0."
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.names = names
        columns = input_size + 2 * hidden_size + 1
        for name in names:
            self.register_parameter(name, nn.Parameter(std * torch.randn(rows, columns)))

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence.

        Args:
            x: (T, B, X).
            state: Hidden and cell state to start from, (B, H) each; zero when `None`.

        Returns:
            The hidden states (T, B, H), and the final hidden and cell state, (B, H) each.
        """
        h, c = state or (x.new_zeros(x.shape[1], self.hidden_size),) * 2
        inputs = self.input_size + 2 * self.hidden_size
        # Split once: in the loop, every step's gradient would be a matrix of its own.
        maps = [split(matrix_of(self, name), inputs) for name in self.names]
        outputs = []
        for row in x.unbind():
            h, c = self._cell(row, h, c, maps)
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    @abc.abstractmethod
    def _cell(self, x: Tensor, h: Tensor, c: Tensor, maps: list[_Map]) -> tuple[Tensor, Tensor]:
        """Return the next hidden and cell state, (B, H) each."""

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{self.input_size}, {self.hidden_size}"


@final
class CellInputLSTM(_CellInput):
    """An LSTM on one matrix whose gates all see the old cell state.

    `[i; f; g; o] = weight [x_t; h_{t-1}; c_{t-1}; 1]`, then
    `c_t = sigmoid(f + 1) c_{t-1} + sigmoid(i) tanh(g)` and `h_t = sigmoid(o) tanh(c_t)`.

    Args:
        input_size: X.
        hidden_size: H.
        std: Standard deviation of the initial values.

    Attributes:
        weight: (4H, X + 2H + 1).

    Raises:
        ValueError: If a size is below 1 or the standard deviation is negative.

    Source: S0, the experiments' code of 2020. Deviation: the transpose,
    with the rows in the order of `AffineLSTM`.

    >>> CellInputLSTM(2, 30).weight.shape
    torch.Size([120, 63])
    """

    def __init__(self, input_size: int, hidden_size: int, *, std: float = 0.1) -> None:
        super().__init__(input_size, hidden_size, ("weight",), 4 * hidden_size, std)

    def _cell(self, x: Tensor, h: Tensor, c: Tensor, maps: list[_Map]) -> tuple[Tensor, Tensor]:
        i, f, g, o = F.linear(torch.cat((x, h, c), dim=1), *maps[0]).chunk(4, dim=1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@final
class PeepholeLSTM(_CellInput):
    """An LSTM on four matrices, whose output gate sees the new cell state.

    With `u = [x_t; h_{t-1}; c_{t-1}; 1]`, `i = weight_i u`, `f = weight_f u`, `g = weight_c u` and
    `c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)`; then `o = weight_o [x_t; h_{t-1}; c_t; 1]` and
    `h_t = sigmoid(o) tanh(c_t)`. The forget gate's bias starts at 1.

    Args:
        input_size: X.
        hidden_size: H.
        std: Standard deviation of the other initial values.

    Attributes:
        weight_i: (H, X + 2H + 1), the input gate; `weight_f` the forget gate, `weight_o` the
            output gate and `weight_c` the candidate.

    Raises:
        ValueError: If a size is below 1 or the standard deviation is negative.

    Source: S0 experiment 2, by its code of 2018. Deviation: the
    transpose.

    >>> sum(p.numel() for p in PeepholeLSTM(2, 30).parameters())
    7560
    """

    def __init__(self, input_size: int, hidden_size: int, *, std: float = 0.1) -> None:
        names = ("weight_i", "weight_f", "weight_o", "weight_c")
        super().__init__(input_size, hidden_size, names, hidden_size, std)
        with torch.no_grad():
            matrix_of(self, "weight_f")[:, -1] = 1

    def _cell(self, x: Tensor, h: Tensor, c: Tensor, maps: list[_Map]) -> tuple[Tensor, Tensor]:
        u = torch.cat((x, h, c), dim=1)
        w_i, w_f, w_o, w_c = maps
        c = torch.sigmoid(F.linear(u, *w_f)) * c + torch.sigmoid(F.linear(u, *w_i)) * torch.tanh(
            F.linear(u, *w_c)
        )
        o = F.linear(torch.cat((x, h, c), dim=1), *w_o)
        return torch.sigmoid(o) * torch.tanh(c), c
