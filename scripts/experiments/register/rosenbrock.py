"""S0-7, S1-1: Rosenbrock's function."""

import torch

from experiments.criteria import at_least, solves
from experiments.experiment import Budget, Experiment
from experiments.problem import Problem
from experiments.problems.rosenbrock import Rosenbrock
from experiments.training import Method, Race
from psgd_optim import named


def _make(case: str, seed: int, device: torch.device) -> Problem:
    return Rosenbrock(device)


def _dense(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return named.dense_newton(problem.parameters, lr, precond_lr=0.2, init_scale=0.1, seed=seed)


def _descent(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(problem.parameters, lr)


EXPERIMENTS = (
    Experiment(
        id="S1-1",
        title="Rosenbrock's function",
        claim="Newton-type PSGD takes about 200 iterations; gradient descent does not get there.",
        budgets={
            "quick": Budget(
                setting="As in the paper: triangular Q from 0.1 I, step 0.5 and 0.2 for Q.",
                is_faithful=True,
                minutes=0.2,
                study=Race(
                    make=_make,
                    methods={
                        "PSGD dense": Method(build=_dense, rates=(0.5,)),
                        "gradient descent": Method(build=_descent, rates=(0.002,)),
                    },
                    steps=300,
                    seeds=20,
                    target="loss",
                    columns={"loss": "final value", "steps": "iterations to 1e-10"},
                    evaluate_every=1,
                    solved=1e-10,
                ),
                criteria=(
                    solves("PSGD dense", at_least=19, of=20),
                    at_least("gradient descent", "loss", 1e-4),
                ),
            )
        },
    ),
)
