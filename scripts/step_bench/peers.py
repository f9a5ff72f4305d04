"""Contenders from packages that are not always installed."""

import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

from step_bench.contenders import APPLY, FIT, LR, WHOLE, Contender, Gate, Optimizers, Refusal
from step_bench.models import Named

MODULES = {
    "pytorch_optimizer": "pytorch_optimizer",
    "heavyball": "heavyball",
    "kron-torch": "kron_torch",
}
"""The module to import from each distribution."""

_MOST_CUBES = {"cpu": 1e11, "cuda": 1e13}
"""Largest sum of n^3 over the axes of which a step takes decompositions; above it, minutes pass."""
_ALMOST_NEVER = 1e-9
"""The closed gate of optimizers that divide by the probability."""


def installed(distributions: Iterable[str]) -> Mapping[str, str]:
    """Return which peers are installed, with their versions.

    Args:
        distributions: Keys of `MODULES`.

    Returns:
        The versions of those that can be imported.
    """
    there = [name for name in distributions if importlib.util.find_spec(MODULES[name])]
    return {name: importlib.metadata.version(name) for name in there}


def _load(distribution: str, name: str) -> Callable[..., torch.optim.Optimizer]:
    """Import an optimizer's class."""
    found: Callable[..., torch.optim.Optimizer] = getattr(
        importlib.import_module(MODULES[distribution]), name
    )
    return found


def _parameters(named: Named) -> list[torch.nn.Parameter]:
    return [parameter for _, parameter in named]


def _gated(
    named: Named, gate: Gate, limit: float, *, distribution: str, optimizer: str, argument: str
) -> Optimizers:
    """Return a PSGD whose probability of a fit is an argument."""
    gate.closed = _ALMOST_NEVER
    if distribution == "heavyball" and named[0][1].device.type == "cpu":
        # HeavyBall asks for autotuned products. With torch 2.13, trying those in C++ takes minutes
        # on a CPU, and ends in an assertion for some shapes; those of ATEN are left to choose from.
        settings = importlib.import_module("torch._inductor.config")
        settings.max_autotune_gemm_backends = "ATEN"  # type: ignore[attr-defined]
    return [_load(distribution, optimizer)(_parameters(named), lr=LR, **{argument: gate})]


def _decomposing(
    named: Named, gate: Gate, limit: float, *, optimizer: str, longest: float, least_axes: int
) -> Optimizers:
    """Return an optimizer that takes decompositions, unless they would not come to an end.

    Args:
        named: The parameters.
        gate: Unused.
        limit: Most bytes of state.
        optimizer: The class of pytorch_optimizer.
        longest: Longest axis that it decomposes.
        least_axes: Least axes of a parameter that it does so for.

    Returns:
        The optimizer.

    Raises:
        Refusal: If there is too much to decompose.
    """
    shapes = [p.shape for p in _parameters(named) if p.ndim >= least_axes]
    axes = [n for shape in shapes for n in shape if n <= longest]
    cubes, state = sum(n**3 for n in axes), 8 * sum(n**2 for n in axes)  # two matrices each
    if cubes > _MOST_CUBES[named[0][1].device.type]:
        raise Refusal(f"decompositions of axes up to {max(axes)}, {cubes:.0e} cubed in all")
    if state > limit:
        raise Refusal(f"{state / 1e9:.1f} GB of state")
    make = _load("pytorch_optimizer", optimizer)
    return [make(_parameters(named), lr=LR, weight_decay=0.0)]


def _gated_peer(
    name: str,
    distribution: str,
    optimizer: str,
    argument: str,
    *,
    compiles: bool = True,
    note: str = "",
) -> Contender:
    build = partial(_gated, distribution=distribution, optimizer=optimizer, argument=argument)
    return Contender(
        name=name,
        build=build,
        phases=(APPLY, FIT),
        distribution=distribution,
        compiles=compiles,
        note=note,
    )


_PROBABILITY = "preconditioner_update_probability"
_COMPILED = "compiled; on a CPU with the matrix products of ATEN"

PEERS = (
    _gated_peer(
        "pytorch-optimizer-kron",
        "pytorch_optimizer",
        "Kron",
        "pre_conditioner_update_probability",
        compiles=False,
    ),
    Contender(
        name="pytorch-optimizer-soap",
        build=partial(_decomposing, optimizer="SOAP", longest=10_000, least_axes=2),
        phases=(WHOLE,),
        period=10,
        moments=2,
        distribution="pytorch_optimizer",
        note="means over its period of 10 steps, of which one refreshes the bases",
    ),
    Contender(
        name="pytorch-optimizer-shampoo",
        build=partial(_decomposing, optimizer="Shampoo", longest=math.inf, least_axes=1),
        phases=(WHOLE,),
        distribution="pytorch_optimizer",
        note="as installed: without momentum, roots of its matrices in every step",
    ),
    _gated_peer("heavyball-psgdkron", "heavyball", "PSGDKron", _PROBABILITY, note=_COMPILED),
    _gated_peer("heavyball-psgdpro", "heavyball", "PSGDPRO", _PROBABILITY, note=_COMPILED),
    _gated_peer("kron-torch", "kron-torch", "Kron", _PROBABILITY, note="compiled"),
)
"""In tables after ours."""
