"""Layers whose weight and bias are one matrix parameter `[W, b]` per affine map.

A Kronecker preconditioner of `[W, b]` sees the whole map `y = [W, b] [x; 1]`: it correlates the
bias with the weight, and it may shift and scale the input features, which it cannot when the bias
is a parameter of its own. A matrix has one row per output; its last column is the bias, so that
the input's last feature is the constant 1. Without a bias there is no such column.

`to_affine` replaces the supported layers of a module, `from_affine` brings them back.
"""

from psgd_optim.affine.base import Affine
from psgd_optim.affine.cell_input import CellInputLSTM, PeepholeLSTM
from psgd_optim.affine.convert import from_affine, to_affine
from psgd_optim.affine.maps import AffineConv2d, AffineConvTranspose2d, AffineLinear
from psgd_optim.affine.recurrent import AffineGRU, AffineLSTM, AffineRNN

__all__ = [
    "Affine",
    "AffineConv2d",
    "AffineConvTranspose2d",
    "AffineGRU",
    "AffineLSTM",
    "AffineLinear",
    "AffineRNN",
    "CellInputLSTM",
    "PeepholeLSTM",
    "from_affine",
    "to_affine",
]
