"""Optimizers of other papers that PSGD is compared with, written to its standard."""

from psgd_optim.peers.equilibration import ESGD, JacobiSGD
from psgd_optim.peers.hessian_diagonal import (
    HessianDiagonal,
    cosine_distance,
    estimate_hessian_diagonal,
)

__all__ = [
    "ESGD",
    "HessianDiagonal",
    "JacobiSGD",
    "cosine_distance",
    "estimate_hessian_diagonal",
]
