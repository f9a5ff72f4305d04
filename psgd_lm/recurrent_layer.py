"""One recurrent layer on a weight that may be dropped out: fused, or in operations of its own.

Shapes: `B` rows of `T` tokens, `X` inputs, `H` hidden units, `G` preactivations (3H or 4H).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.dropouts import weight_dropout
from psgd_lm.language_model import Memory
from psgd_optim.affine.recurrent import gru_cell, lstm_cell


class RecurrentLayer(nn.Module):
    """An LSTM or GRU of one layer whose hidden-to-hidden weight can be dropped out.

    The parameters are those of `nn.LSTM` or `nn.GRU`, and what is dropped is computed from them in
    every forward pass: optimizers and checkpoints see the whole weight.

    Args:
        kind: `nn.LSTM` or `nn.GRU`.
        inputs: X.
        hidden: H.
        dropout: Part of the hidden-to-hidden weight that is dropped in training.
    """

    def __init__(
        self, kind: type[nn.LSTM] | type[nn.GRU], inputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.cell = kind(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, state: Memory, *, fused: bool) -> tuple[Tensor, Memory]:
        """Run over a sequence.

        Args:
            x: (B, T, X).
            state: The hidden and, for an LSTM, the cell state before it, (B, H) each.
            fused: Whether to use torch's layer, which is faster, and on CUDA can only be
                differentiated once.

        Returns:
            (B, T, H), and the state after it.
        """
        # Not through `functional_call`: on CUDA torch's layer would move the storage of what it is
        # lent into a piece of memory that it keeps.
        whole: list[Tensor] = list(self.cell.parameters())
        weights = [whole[0], weight_dropout(whole[1], self.dropout, training=self.training)]
        weights += whole[2:]
        if not fused:
            return self._unroll(x, state, weights)
        begin = tuple(part.unsqueeze(0) for part in state)  # (1, B, H)
        if weights[1] is not whole[1]:
            output, *end = self._run_with(weights, x, begin)
        elif isinstance(self.cell, nn.LSTM):
            output, end = self.cell(x, begin)
        else:
            output, *end = self.cell(x, *begin)
        return output, tuple(part.squeeze(0) for part in end)

    def _run_with(self, weights: list[Tensor], x: Tensor, begin: Memory) -> tuple[Tensor, ...]:
        """Run torch's layer with other weights."""
        if x.is_cuda:
            weights = _in_one_piece(weights)
        if isinstance(self.cell, nn.LSTM):
            return torch.lstm(x, begin, weights, True, 1, 0.0, self.training, False, True)
        return torch.gru(x, begin[0], weights, True, 1, 0.0, self.training, False, True)

    def _unroll(self, x: Tensor, state: Memory, weights: list[Tensor]) -> tuple[Tensor, Memory]:
        """Run step by step, in operations that can be differentiated any number of times."""
        step = lstm_cell if isinstance(self.cell, nn.LSTM) else gru_cell
        input_weight, hidden_weight, input_bias, hidden_bias = weights
        outputs = []
        for row in F.linear(x, input_weight, input_bias).unbind(1):  # (B, G) each
            state = step(row, F.linear(state[0], hidden_weight, hidden_bias), state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state


def _in_one_piece(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return equal weights that lie one behind the other, as cuDNN wants them.

    cuDNN's caller copies weights that do not, with a warning.
    """
    flat = torch.cat([weight.flatten() for weight in weights])
    pieces = torch.split(flat, [weight.numel() for weight in weights])
    return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
