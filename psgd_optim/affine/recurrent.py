"""Affine twins of the recurrent layers.

Shape legend: `X` inputs and `H` hidden units of one layer.
"""

from typing import final

import torch
from torch import Tensor, nn

from psgd_optim.affine.base import give, join, matrix_of, split
from psgd_optim.affine.unrolled import OneMatrix, States, Unrolled


def lstm_cell(x: Tensor, h: Tensor, states: States) -> States:
    """Take one step of an LSTM, in operations that can be differentiated any number of times.

    Args:
        x: (B, 4H), the mapped input.
        h: (B, 4H), the mapped hidden state.
        states: Hidden and cell state, (B, H) each.

    Returns:
        The next ones.
    """
    i, f, g, o = (x + h).chunk(4, dim=1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(x: Tensor, h: Tensor, states: States) -> States:
    """Take one step of a GRU, in operations that can be differentiated any number of times.

    Args:
        x: (B, 3H), the mapped input.
        h: (B, 3H), the mapped hidden state.
        states: The hidden state, (B, H).

    Returns:
        The next one.
    """
    r_x, z_x, n_x = x.chunk(3, dim=1)
    r_h, z_h, n_h = h.chunk(3, dim=1)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return ((1 - z) * n + z * states[0],)


@final
class AffineRNN(OneMatrix):
    """A vanilla recurrent network: `h_t = tanh(weight [x_t; h_{t-1}; 1])`, or with a ReLU.

    Args:
        layer: The layer to take over, with any options; its values are copied. The two biases
            become one, their sum; `plain` gives what training changed of it to the first.

    Attributes:
        weight_l0: (H, X + H + 1), and so on: `weight_l{layer}`, with `_reverse` for the other
            direction.

    Raises:
        ValueError: If the parameters of one layer differ in dtype, device or `requires_grad`.

    Source: S0 section IV.A.
    """

    def __init__(self, layer: nn.RNN) -> None:
        super().__init__(layer)
        self.nonlinearity = layer.nonlinearity

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return all outputs and the final state, in the shapes of `nn.RNN`."""
        output, (h,) = self._run(x, None if hx is None else (hx,))
        return output, h

    def _cell(self, x: Tensor, h: Tensor, states: States) -> States:
        return (torch.tanh(x + h) if self.nonlinearity == "tanh" else torch.relu(x + h),)

    def plain(self) -> nn.RNN:
        """Return the `nn.RNN` with the same outputs, on parameters of its own."""
        return self._plain(nn.RNN, nonlinearity=self.nonlinearity)


@final
class AffineLSTM(OneMatrix):
    """An LSTM with one matrix per layer: `[i; f; g; o] = weight [x_t; h_{t-1}; 1]`.

    Then `c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)` and `h_t = sigmoid(o) tanh(c_t)`. The
    rows are in this order, which is torch's.

    Args:
        layer: The layer to take over, with any options but `proj_size`; its values are copied.
            The two biases become one, their sum; `plain` gives what training changed of it to
            the first.

    Attributes:
        weight_l0: (4H, X + H + 1), and so on: `weight_l{layer}`, with `_reverse` for the other
            direction.

    Raises:
        ValueError: If the layer has a `proj_size`, or the parameters of one layer differ in
            dtype, device or `requires_grad`.

    Source: S1 section 7.3.
    """

    states = 2

    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__(layer)

    def forward(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return all outputs and the final hidden and cell state, in the shapes of `nn.LSTM`."""
        output, (h, c) = self._run(x, hx)
        return output, (h, c)

    def _cell(self, x: Tensor, h: Tensor, states: States) -> States:
        return lstm_cell(x, h, states)

    def plain(self) -> nn.LSTM:
        """Return the `nn.LSTM` with the same outputs, on parameters of its own."""
        return self._plain(nn.LSTM)


@final
class AffineGRU(Unrolled):
    """A GRU with two matrices per layer, one affine map of the input and one of the state.

    With `[r; z; n] = weight_ih [x_t; 1]` and `[r'; z'; n'] = weight_hh [h_{t-1}; 1]`, the gates
    are `R = sigmoid(r + r')` and `Z = sigmoid(z + z')`, the candidate is `N = tanh(n + R n')`,
    and `h_t = (1 - Z) N + Z h_{t-1}`. One matrix cannot give the same: torch multiplies `n'`,
    its bias included, by the reset gate, so that `n` and `n'` must be separate, and one matrix on
    `[x_t; h_{t-1}; 1]` would need blocks held at zero.

    Args:
        layer: The layer to take over, with any options; its values are copied.

    Attributes:
        weight_ih_l0: (3H, X + 1), and so on: `weight_ih_l{layer}`, with `_reverse` for the other
            direction.
        weight_hh_l0: (3H, H + 1).

    Raises:
        ValueError: If the parameters of one map differ in dtype, device or `requires_grad`.

    Source: S0 section IV.A names the GRU, and gives no form for it.
    """

    def __init__(self, layer: nn.GRU) -> None:
        super().__init__(layer)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return all outputs and the final state, in the shapes of `nn.GRU`."""
        output, (h,) = self._run(x, None if hx is None else (hx,))
        return output, h

    def _take(self, at: str, w_x: Tensor, w_h: Tensor, *biases: Tensor) -> None:
        self.register_parameter(f"weight_ih_{at}", join([w_x], biases[:1]))
        self.register_parameter(f"weight_hh_{at}", join([w_h], biases[1:]))

    def _maps(self, at: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        w_x, b_x = split(matrix_of(self, f"weight_ih_{at}"), self._inputs(at))
        w_h, b_h = split(matrix_of(self, f"weight_hh_{at}"), self.hidden_size)
        return w_x, b_x, w_h, b_h

    def _give(self, layer: nn.RNNBase, at: str) -> None:
        w_x, b_x, w_h, b_h = self._maps(at)
        for kind, weight, bias in (("ih", w_x, b_x), ("hh", w_h, b_h)):
            matrix = matrix_of(self, f"weight_{kind}_{at}")
            give(layer, matrix, **{f"weight_{kind}_{at}": weight, f"bias_{kind}_{at}": bias})

    def _cell(self, x: Tensor, h: Tensor, states: States) -> States:
        return gru_cell(x, h, states)

    def plain(self) -> nn.GRU:
        """Return the `nn.GRU` with the same outputs, on parameters of its own."""
        return self._plain(nn.GRU)
