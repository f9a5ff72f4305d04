"""Preconditioned SGD for PyTorch: forms, criteria and one optimizer that combines them.

Optimizers by name are in `psgd_optim.named`; layers whose weight and bias are one matrix in
`psgd_optim.affine`; plans, geometries, step sizes, permutation groups, pair sources and schedules
that are not exported here in `axis_plan`, `geometry`, `step_size`, `permutation_groups`,
`curvature` and `schedules`.
"""

from psgd_optim import named
from psgd_optim.averages import Nesterov
from psgd_optim.clipping import ClipElement, ClipNorm, ClipRMS, MatchRMS
from psgd_optim.criteria import GradientWhitening, MomentumWhitening, Newton
from psgd_optim.curvature import FiniteDifference
from psgd_optim.decay import Cautious, Hyperball
from psgd_optim.fitting import Fitting
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.block_triangular import BlockTriangular
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.forms.permutation import Permutation
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.forms.touched_rows import TouchedRows
from psgd_optim.optimizer import PSGD
from psgd_optim.schedules import Anneal, Every
from psgd_optim.scope import DirectSum, Joint, Split, by_name
from psgd_optim.types import InputError

__all__ = [
    "PSGD",
    "Anneal",
    "BlockTriangular",
    "Cautious",
    "ClipElement",
    "ClipNorm",
    "ClipRMS",
    "Dense",
    "Diagonal",
    "DirectSum",
    "Every",
    "FiniteDifference",
    "Fitting",
    "GradientWhitening",
    "Hyperball",
    "InputError",
    "Joint",
    "Kron",
    "LowRank",
    "MatchRMS",
    "MomentumWhitening",
    "Nesterov",
    "Newton",
    "Permutation",
    "Preconditioner",
    "SparseLU",
    "Split",
    "TouchedRows",
    "by_name",
    "named",
]
