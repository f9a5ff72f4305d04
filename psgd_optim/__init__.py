"""Preconditioned SGD for PyTorch: forms, criteria and one optimizer that combines them."""

from psgd_optim.clipping import ClipElement, ClipNorm, ClipRMS
from psgd_optim.criteria import GradientWhitening, MomentumWhitening
from psgd_optim.fitting import Fitting
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.forms.kron import Kron
from psgd_optim.optimizer import PSGD
from psgd_optim.schedules import Anneal, Every
from psgd_optim.types import InputError, Probe, State

__all__ = [
    "PSGD",
    "Anneal",
    "ClipElement",
    "ClipNorm",
    "ClipRMS",
    "Diagonal",
    "Every",
    "Fitting",
    "GradientWhitening",
    "InputError",
    "Kron",
    "MomentumWhitening",
    "Preconditioner",
    "Probe",
    "State",
]
