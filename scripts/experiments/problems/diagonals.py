"""Diagonals of Hessians met in training: how alike preconditioners are, and how dominant one is."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.fit import fit
from experiments.problem import Problem
from experiments.problems.autoencoding import Autoencoding
from experiments.training import Method
from psgd_optim.peers import cosine_distance, estimate_hessian_diagonal

Make = Callable[[int, torch.device], Autoencoding]
"""Draws the problem of a seed."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """When to look, and how closely."""

    every: int
    """Steps between two looks; the first one is before training."""
    steps: int
    """At the end of which is the last look."""
    probes: int


def distances(
    make: Make, method: Method, looks: Looks, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return cosine distances between RMSProp's, the equilibration and Jacobi's preconditioner.

    Returns:
        `rmsprop_equilibration`, `rmsprop_jacobi` and `equilibration_jacobi`, means over the looks,
        and each of them with the number of its look at the end.

    Source: S3, figure 4: of `sqrt(E g^2)`, `sqrt(diag H^2)` and `|diag H|`.
    """
    problem = make(seed, device)
    found = [_distances(problem, looks.probes)]

    def look(done: int) -> None:
        if done % looks.every == 0:
            found.append(_distances(problem, looks.probes))

    fit(problem, method, looks.steps, seed, look)
    numbered = {f"{name}_{k}": x for k, one in enumerate(found) for name, x in one.items()}
    return {**numbered, **{n: sum(one[n] for one in found) / len(found) for n in found[0]}}


def dominance(
    make: Make, method: Method, looks: Looks, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return the diagonal dominance at the end of training, in percent, and what to expect.

    Returns:
        `dominance`; `independent`, that of a matrix of independent entries; `ratio` of the two;
        `loss`, that of the training images.

    Source: S3, section 8 and figure 6, where the reference is printed a tenth too small.
    """
    problem = make(seed, device)
    fit(problem, method, looks.steps, seed)
    found = estimate_hessian_diagonal(
        lambda: problem.loss(0), problem.parameters, probes=looks.probes
    ).dominance()
    independent = 100 / sum(p.numel() for p in problem.parameters) ** 0.5
    return {
        "dominance": found,
        "independent": independent,
        "ratio": found / independent,
        "loss": problem.evaluate()["loss"],
    }


def _distances(problem: Problem, probes: int) -> dict[str, float]:
    """Return the three distances; every probe is on another mini-batch."""
    steps = itertools.count()
    found = estimate_hessian_diagonal(
        lambda: problem.loss(next(steps)), problem.parameters, probes=probes
    )
    vectors: dict[str, Mapping[Tensor, Tensor]] = {
        "rmsprop": {p: x.sqrt() for p, x in found.gradient_squares.items()},
        "equilibration": {p: x.sqrt() for p, x in found.row_squares.items()},
        "jacobi": {p: x.abs() for p, x in found.diagonal.items()},
    }
    return {
        f"{one}_{other}": cosine_distance(vectors[one], vectors[other])
        for one, other in itertools.combinations(vectors, 2)
    }
