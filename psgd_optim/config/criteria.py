"""Criteria of the fit as data: one small dataclass per criterion, by name."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from psgd_optim.criteria import (
    Criterion,
    Fisher,
    GradientWhitening,
    MomentumWhitening,
    Newton,
    UnbiasedFisher,
)
from psgd_optim.curvature import (
    Exact,
    FiniteDifference,
    Given,
    GradientDifference,
    PairSource,
)


@dataclass(frozen=True, kw_only=True)
class MomentumCriterion:
    """Whitens the averaged gradient, so that a step has a root mean square of lr."""

    name: ClassVar[str] = "momentum"

    damping: float = 1e-9
    """Size of the noise added to the sample, in gradient units."""

    def build(self) -> Criterion:
        """Return the criterion."""
        return MomentumWhitening(damping=self.damping)


@dataclass(frozen=True, kw_only=True)
class GradientCriterion:
    """Whitens the gradient; where minibatches disagree, steps are small."""

    name: ClassVar[str] = "gradient"

    damping: float = 1e-9
    """Size of the noise added to the sample, in gradient units."""

    def build(self) -> Criterion:
        """Return the criterion."""
        return GradientWhitening(damping=self.damping)


@dataclass(frozen=True, kw_only=True)
class FisherCriterion:
    """Whitens the gradient twice: a natural-gradient step with the empirical Fisher matrix."""

    name: ClassVar[str] = "fisher"

    damping: float = 1e-9
    """Size of the noise added to the sample, in gradient units."""

    def build(self) -> Criterion:
        """Return the criterion."""
        return Fisher(damping=self.damping)


@dataclass(frozen=True, kw_only=True)
class UnbiasedFisherCriterion:
    """A natural-gradient step with the Fisher matrix of single samples."""

    name: ClassVar[str] = "unbiased-fisher"

    batch_size: int = 1
    """Samples averaged in one gradient."""
    decay: float = 0.99
    """Of the average of past gradients, in [0, 1)."""
    damping: float = 1e-9
    """Size of the noise added to the sample, in gradient units."""

    def build(self) -> Criterion:
        """Return the criterion."""
        return UnbiasedFisher(batch_size=self.batch_size, decay=self.decay, damping=self.damping)


@dataclass(frozen=True, kw_only=True)
class NewtonCriterion:
    """Fits to Hessian-vector products; lr is then relative to a full Newton step, such as 0.1."""

    name: ClassVar[str] = "newton"

    source: Literal["exact", "finite-difference", "central-difference", "gradient-difference"] = (
        "exact"
    )
    """Where the products come from: a second derivative, differences of gradients on one batch, or
    those from step to step, which cost nothing and want an init-scale."""
    traditional: bool = False
    """Whether to damp as for positive semi-definite Hessians."""
    damping: float = 1e-9
    """Size of the noise added to the products, in gradient units."""

    def build(self) -> Criterion:
        """Return the criterion."""
        sources: dict[str, PairSource] = {
            "exact": Exact(),
            "finite-difference": FiniteDifference(),
            "central-difference": FiniteDifference(central=True),
            "gradient-difference": GradientDifference(),
        }
        return Newton(
            damping=self.damping, traditional=self.traditional, source=sources[self.source]
        )


@dataclass(frozen=True, kw_only=True)
class CurvatureCriterion:
    """Fits to a positive curvature that the application knows; lr is relative to a full step."""

    name: ClassVar[str] = "curvature"

    damping: float = 1e-2
    """What is added to the curvature, times the identity: bounds the preconditioner."""

    def build(self) -> Criterion:
        """Return the criterion."""
        return Newton(damping=self.damping, traditional=True, source=Given())


CriterionConfig = (
    MomentumCriterion
    | GradientCriterion
    | FisherCriterion
    | UnbiasedFisherCriterion
    | NewtonCriterion
    | CurvatureCriterion
)

CRITERIA: dict[str, CriterionConfig] = {
    MomentumCriterion.name: MomentumCriterion(),
    GradientCriterion.name: GradientCriterion(),
    FisherCriterion.name: FisherCriterion(),
    UnbiasedFisherCriterion.name: UnbiasedFisherCriterion(),
    NewtonCriterion.name: NewtonCriterion(),
    CurvatureCriterion.name: CurvatureCriterion(),
}
"""Every criterion by its name."""
