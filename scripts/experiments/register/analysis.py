"""S1-4, S1-9, S1-10, S2-22, S3-1, S3-6, S3-7: theory, conditioning, and what steps cost."""

import functools
import statistics
from collections.abc import Callable, Mapping

import torch

from experiments.criteria import at_least, at_most, below
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.measurement import Measurement
from experiments.methods import DENSE, KRON, SCALING, psgd, sgd
from experiments.problem import Problem
from experiments.problems.autoencoders import half_squares
from experiments.problems.autoencoding import (
    Autoencoding,
    Recipe,
    curves_images,
    sigmoid_pixels,
)
from experiments.problems.conditioning import (
    Setting,
    logistic_conditioning,
    network_conditioning,
)
from experiments.problems.costs import step_costs
from experiments.problems.identities import (
    S2_GROUPS,
    equilibration,
    group_closure,
    low_rank_group,
    low_rank_spectrum,
    noisy_limit,
    whitening_limit,
)
from experiments.problems.quadratics import DriftingQuadratic, NoisyQuadratic, Quadratic
from experiments.register.autoencoder_methods import esgd
from experiments.results import Results
from experiments.training import Method, Race
from psgd_optim.criteria import GradientWhitening

_Figures = Callable[[int, torch.device], Mapping[str, float]]
_EXACT = 1e-8
"""What rounding may come to in double precision."""
_FISHER_TYPE = GradientWhitening(damping=1e-3)
_PSGD, _DESCENT = "PSGD dense", "gradient descent"
_STILL, _NOISY, _DRIFTING = "still", "noisy", "drifting"
_QUADRATICS: Mapping[str, type[Quadratic]] = {
    _STILL: Quadratic,
    _NOISY: NoisyQuadratic,
    _DRIFTING: DriftingQuadratic,
}
_LIMIT, _EXCESS = "distance from the limit", "excess over |H|^-1"
_NETWORK, _LOGISTIC = "network", "logistic regression"


def _quadratic(case: str, seed: int, device: torch.device) -> Problem:
    return _QUADRATICS[case](seed, device)


def _quadratics_race() -> Race:
    return Race(
        make=_quadratic,
        methods={
            _PSGD: Method(build=psgd(DENSE, 0.1, init_scale=0.1), rates=(0.1,)),
            _DESCENT: Method(build=sgd(), rates=(1e-3, 1.9e-3)),
        },
        cases=tuple(_QUADRATICS),
        steps=3000,
        seeds=2,
        target="distance",
        columns={"distance": "squared distance from the minimum", "loss": "loss"},
        evaluate_every=100,
    )


def _median(method: str, figure: str, results: Results) -> float:
    return statistics.median(results.values(method, figure))


def _equal_medians() -> Criterion:
    def check(results: Results) -> Finding:
        one, other = (_median(_LOGISTIC, name, results) for name in ("jacobi", "equilibration"))
        told = f"Jacobi {one:.3g}, equilibration {other:.3g}"
        return Finding(max(one, other) <= 1.2 * min(one, other), told)

    return Criterion("for logistic regressions the medians are within 20 % of each other", check)


def _lower_median() -> Criterion:
    def check(results: Results) -> Finding:
        one, other = (_median(_NETWORK, name, results) for name in ("jacobi", "equilibration"))
        return Finding(other < min(1.0, one), f"Jacobi {one:.3g}, equilibration {other:.3g}")

    return Criterion("for networks equilibration's median is below 1 and Jacobi's", check)


def _conditioning(network: _Figures, logistic: _Figures, seeds: int) -> Measurement:
    return Measurement(
        functions={_NETWORK: network, _LOGISTIC: logistic},
        columns={
            "condition": "condition number",
            "negative": "negative eigenvalues",
            "jacobi": "times that, Jacobi",
            "equilibration": "times that, equilibration",
            "better": "equilibration is better",
        },
        seeds=seeds,
    )


_CONDITIONING = (at_least(_NETWORK, "better", 0.9), _lower_median(), _equal_medians())
_HIDDEN = Setting(hidden=100, examples=400)


def _curves(seed: int, device: torch.device) -> Problem:
    sizes = (784, 200, 100, 50, 6, 50, 100, 200, 784)
    recipe = Recipe(sizes=sizes, batch_size=1000, network=sigmoid_pixels, loss=half_squares)
    return Autoencoding(recipe, curves_images(2000), seed, device)


def _cost(method: Method, period: int, repeats: int) -> _Figures:
    baseline = Method(build=sgd(), rates=(1e-4,))
    return functools.partial(step_costs, _curves, method, baseline, period, repeats)


_COSTS = {
    "time": "times the time of SGD",
    "operations": "times its operations",
    "ms": "a step, ms",
}
_NEWTON, _FISHER = "Newton, Kronecker", "Fisher, Kronecker"
_NEWTON_SCAN, _FISHER_SCAN = "Newton, SCAN", "Fisher, SCAN"
_EVERY, _PERIOD = "ESGD, probe in every step", "ESGD, probe in one step of 20"


def _errors() -> dict[str, _Figures]:
    groups = {name: functools.partial(group_closure, group) for name, group in S2_GROUPS.items()}
    return {
        **groups,
        "low rank": low_rank_group,
        "spectrum": low_rank_spectrum,
        "limit": whitening_limit,
    }


EXPERIMENTS = (
    Experiment(
        id="S1-4",
        title="What a step costs",
        claim="Newton-type steps take about twice the operations of SGD, Fisher-type ones as many.",
        budgets={
            "quick": Budget(
                setting="An autoencoder of eight layers with batches of 1,000 images; medians of "
                "interleaved steps, processor time of one thread.",
                minutes=0.3,
                study=Measurement(
                    functions={
                        name: _cost(Method(build=build, rates=(rate,)), 1, 31)
                        for name, build, rate in (
                            (_NEWTON, psgd(KRON, 0.01), 1e-4),
                            (_NEWTON_SCAN, psgd(SCALING, 0.01), 1e-4),
                            (_FISHER, psgd(KRON, 0.01, _FISHER_TYPE), 1e-6),
                            (_FISHER_SCAN, psgd(SCALING, 0.01, _FISHER_TYPE), 1e-6),
                        )
                    },
                    columns=_COSTS,
                ),
                criteria=(
                    *(at_most(name, "time", 4.0) for name in (_NEWTON, _NEWTON_SCAN)),
                    *(at_most(name, "time", 2.0) for name in (_FISHER, _FISHER_SCAN)),
                    *(at_most(name, "operations", 3.0) for name in (_NEWTON, _NEWTON_SCAN)),
                    *(at_most(name, "operations", 1.1) for name in (_FISHER, _FISHER_SCAN)),
                ),
            )
        },
        obstacle="The paper counts what curvature takes; the bounds, 4 and 2 times the time of "
        "SGD, are ours. They hold for SCAN, whose factors are nearly diagonal, and not for "
        "Kronecker products: with 785 inputs, products of triangular matrices cost more than the "
        "gradients of 1,000 images do.",
    ),
    Experiment(
        id="S1-9",
        title="Quadratics whose minimum is known",
        claim="With P = |H|^-1 steps are normalised: no eigenvalue of the iteration is above 1, "
        "whatever the condition number is (section 3 of S1; S0, section III).",
        budgets={
            "quick": Budget(
                setting="20 parameters, condition number 1,000: as it is, with noise of 0.1 in "
                "every gradient, and with a Hessian that turns once in 4,000 steps. With this "
                "noise, steps of 0.1 |H|^-1 end at 1.0e-3, and descent's at 3e-5, which are a "
                "fiftieth of their size along the flattest axis. PSGD ends in between: after 3,000 "
                "fits, P is a twentieth of |H|^-1 along that axis.",
                minutes=0.5,
                study=_quadratics_race(),
                criteria=(
                    *(
                        below(_PSGD, _DESCENT, "distance", case=case, factor=0.1)
                        for case in (_STILL, _DRIFTING)
                    ),
                    at_most(_PSGD, "distance", 1e-9, case=_STILL),
                    below(_PSGD, _DESCENT, "distance", case=_NOISY),
                ),
            )
        },
    ),
    Experiment(
        id="S1-10",
        title="What P becomes with noisy pairs",
        claim="P E[h h'] P = E[v v']: P is |H|^-1 without noise in h = H v, also for an indefinite "
        "H, and (H^2 + E[noise noise'])^-1/2 with it, which is below |H|^-1 (S1, proposition on "
        "the criterion; S0, section III).",
        budgets={
            "quick": Budget(
                setting="Indefinite matrices of size 8, 10,000 fits at a falling rate; relative "
                "distances, which the noise of the fits limits. With noise of 0.3, the limit is "
                "below |H|^-1 by 1.7e-3 alone, less than P's distance from it; twice as many fits, "
                "down to a tenth of the rate, leave an excess of 7e-4.",
                is_faithful=True,
                minutes=0.3,
                study=Measurement(
                    functions={
                        f"noise {noise:g}": functools.partial(noisy_limit, noise)
                        for noise in (0.0, 0.3, 1.0)
                    },
                    columns={"limit": _LIMIT, "excess": _EXCESS},
                    seeds=3,
                ),
                criteria=(
                    at_most("noise 0", "limit", 0.02),
                    at_most("noise 0.3", "limit", 0.05),
                    at_most("noise 1", "limit", 0.08),
                    at_most("noise 0.3", "excess", 0.0),
                    at_most("noise 1", "excess", 0.0),
                ),
            )
        },
    ),
    Experiment(
        id="S2-22",
        title="Groups, low rank and the limit of Q",
        claim="Theorems 3.1 and 3.3: the forms are groups. Theorem 3.2: a low-rank Q has "
        "eigenvalues as small and large as wanted. Theorem A.1: Q tends to the root of |H|^-1.",
        budgets={
            "quick": Budget(
                setting="Largest errors over 50 random members of size 8 in double precision; the "
                "limit after 4,000 fits.",
                is_faithful=True,
                minutes=0.1,
                study=Measurement(
                    functions=_errors(),
                    columns={
                        "product": "of products",
                        "inverse": "of inverses",
                        "spectrum": "of eigenvalues",
                        "smallest": "smallest eigenvalue",
                        "largest": "largest",
                        "limit": _LIMIT,
                    },
                    seeds=3,
                ),
                criteria=(
                    *(
                        at_most(name, figure, _EXACT)
                        for name in (*S2_GROUPS, "low rank")
                        for figure in ("product", "inverse")
                    ),
                    at_most("spectrum", "spectrum", _EXACT),
                    at_most("spectrum", "smallest", 1e-4),
                    at_least("spectrum", "largest", 1e3),
                    at_most("limit", "limit", 0.02),
                ),
            )
        },
    ),
    Experiment(
        id="S3-1",
        title="Condition numbers after diagonal preconditioning",
        claim="On logistic regressions Jacobi and equilibration are alike; on networks, which are "
        "not convex, equilibration is much better.",
        budgets={
            "quick": Budget(
                setting="6 inputs, 8 sigmoid units, 2 logits of 3 classes, so that the Hessian is "
                "not singular; 60 draws. The paper gives 100 units alone, and condition numbers of "
                "singular values, where these are of eigenvalues.",
                minutes=0.1,
                study=_conditioning(network_conditioning, logistic_conditioning, 60),
                criteria=_CONDITIONING,
            ),
            "full": Budget(
                setting="The paper's 100 units and 100 draws; its sizes of input and output are "
                "not given: 6 inputs, 2 logits of 3 classes, 400 examples; condition numbers "
                "are of eigenvalues, not of singular values.",
                minutes=6.0,
                study=_conditioning(
                    functools.partial(network_conditioning, setting=_HIDDEN),
                    functools.partial(
                        logistic_conditioning, setting=Setting(hidden=0, examples=400)
                    ),
                    100,
                ),
                criteria=_CONDITIONING,
            ),
        },
    ),
    Experiment(
        id="S3-6",
        title="The modulus of a Hessian as preconditioner",
        claim="Theorem 1 and the lemmas: |H|^-1 makes every eigenvalue 1 in modulus, and x'Hx is "
        "at most x'|H|x; probes estimate the diagonals without bias.",
        budgets={
            "quick": Budget(
                setting="Largest errors over 50 indefinite matrices of size 8, double precision.",
                is_faithful=True,
                minutes=0.1,
                study=Measurement(
                    functions={"errors": equilibration},
                    columns={
                        "condition": "condition number - 1",
                        "norm": "|Hx| - ||H|x|",
                        "lemma": "x'Hx above x'|H|x",
                        "descent": "loss above Newton's step's",
                        "diagonal": "diagonals of a diagonal matrix",
                    },
                    seeds=3,
                ),
                criteria=tuple(
                    at_most("errors", figure, _EXACT)
                    for figure in ("condition", "norm", "lemma", "descent", "diagonal")
                ),
            )
        },
    ),
    Experiment(
        id="S3-7",
        title="What equilibration costs",
        claim="A Hessian-vector product costs two gradients; with one in 20 steps, ESGD is about "
        "as fast as SGD.",
        budgets={
            "quick": Budget(
                setting="As S1-4's; medians of interleaved periods of 20 steps.",
                minutes=0.2,
                study=Measurement(
                    functions={
                        _EVERY: _cost(esgd(1e-4, (1e-4,), refresh_every=1), 1, 15),
                        _PERIOD: _cost(esgd(1e-4, (1e-4,)), 20, 5),
                    },
                    columns=_COSTS,
                ),
                criteria=(
                    at_most(_EVERY, "operations", 3.5),
                    at_most(_PERIOD, "time", 1.2),
                    at_most(_PERIOD, "operations", 1.2),
                ),
            )
        },
    ),
)
