"""Optimizers as data: one small dataclass per optimizer and the function that builds it.

The applications hold one of these in their configuration and never name an optimizer.
"""

from psgd_optim.config.criteria import (
    CRITERIA,
    CriterionConfig,
    CurvatureCriterion,
    FisherCriterion,
    GradientCriterion,
    MomentumCriterion,
    NewtonCriterion,
    UnbiasedFisherCriterion,
)
from psgd_optim.config.forms import (
    FORMS,
    AffineForm,
    ArrowForm,
    ClosedDiagonalForm,
    DenseForm,
    DiagonalForm,
    FormConfig,
    KronForm,
    LowRankForm,
    PermutationForm,
    ScalarForm,
    SparseLUForm,
    TouchedRowsForm,
)
from psgd_optim.config.peer import PeerConfig
from psgd_optim.config.psgd import PSGDConfig, build_psgd, differing
from psgd_optim.config.registry import OPTIMIZER_PARTS, OPTIMIZERS, OptimizerConfig, build
from psgd_optim.config.torch_optimizers import AdamWConfig, MuonConfig, SGDConfig

__all__ = [
    "CRITERIA",
    "FORMS",
    "OPTIMIZERS",
    "OPTIMIZER_PARTS",
    "AdamWConfig",
    "AffineForm",
    "ArrowForm",
    "ClosedDiagonalForm",
    "CriterionConfig",
    "CurvatureCriterion",
    "DenseForm",
    "DiagonalForm",
    "FisherCriterion",
    "FormConfig",
    "GradientCriterion",
    "KronForm",
    "LowRankForm",
    "MomentumCriterion",
    "MuonConfig",
    "NewtonCriterion",
    "OptimizerConfig",
    "PSGDConfig",
    "PeerConfig",
    "PermutationForm",
    "SGDConfig",
    "ScalarForm",
    "SparseLUForm",
    "TouchedRowsForm",
    "UnbiasedFisherCriterion",
    "build",
    "build_psgd",
    "differing",
]
