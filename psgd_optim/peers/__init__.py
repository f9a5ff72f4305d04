"""Second-order optimizers of other papers, to compare `PSGD` with.

ESGD and Jacobi SGD divide the gradient by estimates from Hessian-vector products; K-BFGS, whose
`LimitedMemory` makes it K-BFGS(L), and KFAC precondition every layer of a model by a Kronecker
product. Distributions for KFAC's sampled targets are in `peers.likelihoods`.
"""

from psgd_optim.peers.equilibration import ESGD, JacobiSGD
from psgd_optim.peers.hessian_diagonal import (
    HessianDiagonal,
    cosine_distance,
    estimate_hessian_diagonal,
)
from psgd_optim.peers.kbfgs import KBFGS
from psgd_optim.peers.kfac import KFAC
from psgd_optim.peers.quasi_newton import DenseBFGS, LimitedMemory

__all__ = [
    "ESGD",
    "KBFGS",
    "KFAC",
    "DenseBFGS",
    "HessianDiagonal",
    "JacobiSGD",
    "LimitedMemory",
    "cosine_distance",
    "estimate_hessian_diagonal",
]
