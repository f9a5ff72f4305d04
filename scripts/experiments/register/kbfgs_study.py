"""S4-5 to S4-8, S4-10: what S4 says of K-BFGS beside its races."""

import functools
import itertools
import math

import torch

from experiments.criteria import at_least, at_most
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.measurement import Measurement
from experiments.problems.autoencoders import THIN_SIZES
from experiments.problems.autoencoding import Autoencoding, Recipe, curves_images
from experiments.problems.costs import layer_costs
from experiments.problems.identities import compact_memory, double_damping, hessian_action
from experiments.problems.quasi_newton_study import (
    damped_pairs,
    gradient_decay,
)
from experiments.register.autoencoder_methods import OUR_CURVES, kbfgs, kbfgs_limited, kfac
from experiments.results import Results
from experiments.training import Race
from psgd_optim.peers import DenseBFGS, LimitedMemory

_BATCH = 200
_FULL, _LIMITED, _KFAC = "K-BFGS", "K-BFGS(L)", "KFAC"
_MEMORY = 100


def _curves(seed: int, device: torch.device) -> Autoencoding:
    recipe = Recipe(sizes=THIN_SIZES, batch_size=_BATCH)
    return Autoencoding(recipe, curves_images(4000), seed, device)


# --- storage and operations ----------------------------------------------------------------------

_SHAPES = [(m, n + 1) for n, m in itertools.pairwise(THIN_SIZES)]


def _storage(method: str) -> int:
    """Return S4's Table 1 in full: numbers kept for layers of M outputs and n inputs."""
    outputs = {
        _FULL: [m * m for m, _ in _SHAPES],
        _LIMITED: [2 * _MEMORY * m + 2 * _MEMORY**2 for m, _ in _SHAPES],
        _KFAC: [2 * m * m for m, _ in _SHAPES],
    }
    return sum(2 * n * n + m * n for m, n in _SHAPES) + sum(outputs[method])


def _operations(method: str) -> int:
    """Return S4's Table 2 for a step without inverses, two for every multiplication."""
    b, q = _BATCH, _MEMORY
    forward = sum(b * m * (n - 1) for m, n in _SHAPES)
    backward = forward - b * _SHAPES[0][0] * (_SHAPES[0][1] - 1)  # images need no gradient
    common = sum(b * m * n + b * n * n + m * n * n for m, n in _SHAPES)
    own = {
        _FULL: forward + sum(m * m * n for m, n in _SHAPES),
        _LIMITED: forward + sum(4 * q * m * n + 3 * q * q * n for m, n in _SHAPES),
        _KFAC: sum(b * m * m + m * m * n for m, n in _SHAPES),
    }[method]
    return 2 * (forward + 2 * backward + common + own)


_COUNTED = {
    _FULL: kbfgs(0.3, (0.01,)),
    _LIMITED: kbfgs_limited(0.3, (0.01,)),
    _KFAC: kfac(1.0, (0.01,)),
}


def _within(method: str, figure: str, share: float) -> tuple[Criterion, Criterion]:
    return (at_least(method, figure, 1 - share), at_most(method, figure, 1 + share))


# --- robustness ----------------------------------------------------------------------------------

_GRID = (0.03, 0.1, 0.3, 1.0, 3.0)
_DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Above 1, mu_2 is so too, and the second damping divides by what may be zero."""
_TRIED = {
    f"damping {damping:g}, rate {rate:g}": kbfgs(damping, (rate,))
    for damping in _DAMPINGS
    for rate in _GRID
}


def _draw_curves(case: str, seed: int, device: torch.device) -> Autoencoding:
    return _curves(seed, device)


def _robust(share: float, factor: float) -> Criterion:
    """Return that a share of the grid ends within a factor of the best loss."""

    def check(results: Results) -> Finding:
        losses = [results.mean(name, "loss") for name in _TRIED]
        good = sum(loss <= factor * min(losses) for loss in losses)
        lost = sum(math.isinf(loss) for loss in losses)
        told = f"{good} of {len(losses)}, best {min(losses):.4g}; {lost} diverged"
        return Finding(good >= share * len(losses), told)

    return Criterion(f"{share:.0%} of the grid is within {factor:g} times the best loss", check)


def _grid(steps: int) -> Race:
    return Race(
        make=_draw_curves,
        methods=_TRIED,
        steps=steps,
        seeds=1,
        target="loss",
        columns={"loss": "training loss"},
        evaluate_every=20,
    )


# --- the register --------------------------------------------------------------------------------

_S4_5 = Experiment(
    id="S4-5",
    title="Robustness of K-BFGS to rate and damping",
    claim="It is stable over a wide region of learning rates and dampings.",
    budgets={
        "quick": Budget(
            setting="784-100-50-25-6-... on 4,000 of our curves in batches of 200, 60 steps, for "
            "rates from 0.03 to 3 and dampings from 0.01 to 1.",
            minutes=0.9,
            study=_grid(60),
            criteria=(_robust(0.5, 1.5),),
        ),
        "full": Budget(
            setting="As the quick budget, for 20 epochs.",
            minutes=5.0,
            study=_grid(400),
            criteria=(_robust(0.5, 1.5),),
        ),
    },
    obstacle=OUR_CURVES,
)

_S4_6 = Experiment(
    id="S4-6",
    title="Storage and operations",
    claim="Tables 1 and 2: K-BFGS stores about as much as KFAC and needs no inverses; K-BFGS(L) "
    "stores no matrix of the outputs.",
    budgets={
        "quick": Budget(
            setting="784-100-50-25-6-... in batches of 200, 100 pairs for K-BFGS(L); counted "
            "numbers and multiplications in products of matrices by those of the formulas.",
            is_faithful=True,
            minutes=0.1,
            study=Measurement(
                functions={
                    name: functools.partial(
                        layer_costs, _curves, method, (_storage(name), _operations(name))
                    )
                    for name, method in _COUNTED.items()
                },
                columns={
                    "storage": "stored by formula",
                    "operations": "operations by formula",
                    "numbers": "stored, millions",
                },
            ),
            criteria=(
                *(c for name in _COUNTED for c in _within(name, "storage", 0.02)),
                *(c for name in _COUNTED for c in _within(name, "operations", 0.05)),
            ),
        )
    },
)

_S4_7 = Experiment(
    id="S4-7",
    title="Pairs within the bounds of double damping",
    claim="At least 90 % of the damped pairs are within the bound on y'Hy / s'y; the bound is "
    "printed illegibly, and is 1 / mu_1 or 2 / mu_1: the criterion takes the stricter one.",
    budgets={
        "quick": Budget(
            setting="784-100-50-25-6-... on 4,000 of our curves in batches of 200, 8 epochs.",
            minutes=0.2,
            study=Measurement(
                functions={
                    name: functools.partial(damped_pairs, _curves, method, 160)
                    for name, method in (
                        (_FULL, kbfgs(0.3, (0.3,))),
                        (_LIMITED, kbfgs_limited(0.3, (0.3,))),
                    )
                },
                columns={
                    "within": "within 1 / mu_1",
                    "within_twice": "within 2 / mu_1",
                    "loss": "training loss",
                },
            ),
            criteria=tuple(at_least(name, "within", 0.9) for name in (_FULL, _LIMITED)),
        )
    },
    obstacle=OUR_CURVES,
)

_S4_8 = Experiment(
    id="S4-8",
    title="Hessian action, double damping, compact memory",
    claim="Theorem 1: BFGS with y = A s inverts a matrix after a change of rank one. Damped pairs "
    "bound the norms of B and H. The compact form is as many updates of the identity.",
    budgets={
        "quick": Budget(
            setting="Largest errors over 50 draws of size 8 in double precision.",
            is_faithful=True,
            minutes=0.1,
            study=Measurement(
                functions={
                    "Theorem 1": hessian_action,
                    "double damping": double_damping,
                    "compact memory": compact_memory,
                },
                columns={
                    "error": "largest error",
                    "broken": "most that a bound is broken by",
                    "met": "pairs that the lemma is about",
                },
                seeds=3,
            ),
            criteria=(
                at_most("Theorem 1", "error", 1e-8),
                at_most("double damping", "broken", 1e-8),
                at_least("double damping", "met", 0.5),
                at_most("compact memory", "error", 1e-8),
            ),
        )
    },
)

_S4_10 = Experiment(
    id="S4-10",
    title="Convergence with falling steps",
    claim="Theorem 2: with steps as k^-b, b in (1/2, 1), the least squared gradient is below e "
    "after O(e^(-1 / (1 - b))) steps.",
    budgets={
        "quick": Budget(
            setting="A tanh network 20-16-8-1, 500 examples in batches of 50, b = 0.6, 1,500 "
            "steps; pairs that break the bounds are damped, not left out.",
            minutes=0.2,
            study=Measurement(
                functions={
                    name: functools.partial(gradient_decay, inverse, 0.6, 1500)
                    for name, inverse in ((_FULL, DenseBFGS()), (_LIMITED, LimitedMemory()))
                },
                columns={
                    "slope": "slope of the least squared gradient",
                    "early": "after 150 steps",
                    "late": "after 1,500",
                },
            ),
            criteria=tuple(at_most(name, "slope", -0.4) for name in (_FULL, _LIMITED)),
        )
    },
)

EXPERIMENTS = (_S4_5, _S4_6, _S4_7, _S4_8, _S4_10)
