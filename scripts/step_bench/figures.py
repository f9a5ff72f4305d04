"""From samples to the figures of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from step_bench.contenders import ADAMW_FUSED, APPLY, FIT, MUON, WHOLE
from step_bench.roofline import limits_ms


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest sample."""

    middle: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Return the median and the range of samples."""
    return Spread(median(samples), min(samples), max(samples))


def mean_spread(apply: Sequence[float], fit: Sequence[float], probability: float) -> Spread:
    """Return the mean cost of steps of which some fit.

    Args:
        apply: Samples of steps that do not.
        fit: Samples of steps that do.
        probability: Of a fit.

    Returns:
        The weighted means of the medians, of the smallest and of the largest samples.
    """
    pairs = zip(_values(spread(apply)), _values(spread(fit)), strict=True)
    return Spread(*((1 - probability) * a + probability * f for a, f in pairs))


def _values(x: Spread) -> tuple[float, float, float]:
    return x.middle, x.low, x.high


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table; times in milliseconds, sizes in bytes, `None` where there is none."""

    contender: str
    probability: float | None
    wall: Spread
    apply: float | None
    fit: float | None
    to_backward: float
    to_adamw: float | None
    to_muon: float | None
    compute_limit: float | None
    move_limit: float
    cpu: float
    state: int
    state_share: float
    peak: int

    @property
    def to_limit(self) -> float | None:
        """The time of the step over the larger of its limits, where both are known."""
        if self.compute_limit is None:
            return None
        return self.wall.middle / max(self.compute_limit, self.move_limit)


def lines(record: Mapping[str, Any], probability: float) -> list[Line]:
    """Return the lines of a model's table.

    Args:
        record: What `race` returned.
        probability: Of a fit; contenders that fit get a line for it and one for 1.

    Returns:
        Lines in the order of the contenders.
    """
    found = record["contenders"]
    return [
        _line(record, name, p)
        for name, contender in found.items()
        for p in _probabilities(contender["phases"], probability)
    ]


def _probabilities(phases: Mapping[str, Any], asked: float) -> list[float | None]:
    """Return the probabilities of a fit that a contender has lines for."""
    if APPLY in phases:
        return list(dict.fromkeys([asked, 1.0]))
    return [1.0] if FIT in phases else [None]


def _line(record: Mapping[str, Any], name: str, probability: float | None) -> Line:
    contender = record["contenders"][name]
    phases = contender["phases"]
    wall = _cost(phases, "wall_ms", probability)
    compute, move = limits_ms(
        record["machine"], _flops(phases, probability), contender["moved_bytes"]
    )
    return Line(
        contender=name,
        probability=probability,
        wall=wall,
        apply=_middle(phases, APPLY),
        fit=_middle(phases, FIT),
        to_backward=wall.middle / median(record["forward_backward"]["wall_ms"]),
        to_adamw=_ratio(record, wall, ADAMW_FUSED),
        to_muon=_ratio(record, wall, MUON),
        compute_limit=compute,
        move_limit=move,
        cpu=_cost(phases, "cpu_ms", probability).middle,
        state=contender["state_bytes"],
        state_share=contender["state_bytes"] / record["parameter_bytes"],
        peak=max(phase["peak_bytes"] for phase in phases.values()),
    )


def _cost(phases: Mapping[str, Any], key: str, probability: float | None) -> Spread:
    if len(phases) == 1:
        (phase,) = phases.values()
        return spread(phase[key])
    return mean_spread(phases[APPLY][key], phases[FIT][key], probability or 0.0)


def _flops(phases: Mapping[str, Any], probability: float | None) -> float | None:
    """Return the mean FLOPs of a step, `None` where they are not known."""
    counts = [phase["flops"] for phase in phases.values()]
    if None in counts:
        return None
    return mean_spread(counts[:1], counts[-1:], probability or 0.0).middle


def _middle(phases: Mapping[str, Any], phase: str) -> float | None:
    return median(phases[phase]["wall_ms"]) if phase in phases else None


def _ratio(record: Mapping[str, Any], wall: Spread, other: str) -> float | None:
    """Return a time over that of another contender, if that one took part."""
    if other not in record["contenders"]:
        return None
    reference: float = median(record["contenders"][other]["phases"][WHOLE]["wall_ms"])
    return wall.middle / reference
