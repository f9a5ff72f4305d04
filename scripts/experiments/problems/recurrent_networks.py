"""The recurrent networks of the sequence experiments, at the papers' starts.

All have two inputs, and map sequences (T, B, 2) to their last hidden state (B, H). Every affine
map is one matrix, whose last column is the bias.
"""

import torch
from torch import Tensor, nn

from experiments.problems.scanned_lstm import ScannedLSTM
from experiments.problems.scanned_rnn import ScannedRNN
from psgd_optim.affine import CellInputLSTM, PeepholeLSTM

CHANNELS = 2
STD = 0.1
"""Of all initial values that are not said otherwise."""


def vanilla(hidden: int, source: torch.Generator) -> nn.Module:
    """Return a tanh network: small input weights, orthogonal recurrent ones, no bias.

    Args:
        hidden: H.
        source: Of the initial values.
    """
    start, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=source))
    w_x = STD * torch.randn(hidden, CHANNELS, generator=source)
    return ScannedRNN(torch.cat((w_x, start, torch.zeros(hidden, 1)), dim=1))


def peephole_lstm(hidden: int, source: torch.Generator) -> nn.Module:
    """Return S0's LSTM of four matrices, all values small but the forget gate's bias, 1."""
    layer = PeepholeLSTM(CHANNELS, hidden)
    _draw(layer, source)
    with torch.no_grad():
        layer.get_parameter("weight_f")[:, -1] = 1
    return ScannedLSTM(layer)


def cell_input_lstm(hidden: int, source: torch.Generator) -> nn.Module:
    """Return the LSTM of one matrix with small values, to whose forget gate 1 is added."""
    layer = CellInputLSTM(CHANNELS, hidden)
    _draw(layer, source)
    return ScannedLSTM(layer)


def readout(hidden: int, source: torch.Generator) -> Tensor:
    """Return (1, H + 1), small weights and no bias.

    Source: S2. S0 draws the bias as it does the weights.

    Args:
        hidden: H.
        source: Of the initial values.
    """
    weight = STD * torch.randn(1, hidden, generator=source)
    return torch.cat((weight, torch.zeros(1, 1)), dim=1)


@torch.no_grad()
def _draw(layer: nn.Module, source: torch.Generator) -> None:
    for p in layer.parameters():
        p.copy_(STD * torch.randn(p.shape, generator=source))
