"""The analyses and the autoencoders of S3 and S4: problems, measurements, register."""

import math

import pytest
import torch
from experiments.experiment import Experiment
from experiments.fit import fit
from experiments.measurement import Measurement
from experiments.methods import sgd
from experiments.problems import identities
from experiments.problems.autoencoding import (
    Autoencoding,
    Images,
    Recipe,
    SigmoidAutoencoder,
    sigmoid_pixels,
)
from experiments.problems.costs import step_costs
from experiments.problems.diagonals import Looks, distances, dominance
from experiments.problems.images import seeded
from experiments.problems.quasi_newton_study import (
    TanhRegression,
    damped_pairs,
    gradient_decay,
)
from experiments.problems.tensor_rank import SIZES, TensorRank
from experiments.register import (
    EXPERIMENTS,
    analysis,
    autoencoder_methods,
    esgd,
    kbfgs,
    kbfgs_study,
    rosenbrock,
    tensor_rank,
)
from experiments.report import table
from experiments.results import DIVERGED, Key, Outcome, Record, Results
from experiments.training import Method

from psgd_optim.peers import DenseBFGS
from psgd_optim.peers.quasi_newton import SecantPair
from psgd_optim.types import InputError

CPU = torch.device("cpu")
COUNTS = {"S0": (7, 8, 9), "S1": (1, 4, 7, 8, 9, 10), "S2": (22,), "S3": range(1, 8)}
IDS = [f"{paper}-{n}" for paper, ns in {**COUNTS, "S4": range(1, 11)}.items() for n in ns]
MODULES = (analysis, esgd, kbfgs, kbfgs_study, rosenbrock, tensor_rank)
DESCENT = Method(build=sgd(), rates=(0.01,))


def small(seed=0, device=CPU, **changes):
    draw = torch.Generator().manual_seed(5)
    images = Images(torch.rand(12, 9, generator=draw), torch.rand(4, 9, generator=draw))
    recipe = Recipe(**{"sizes": (9, 5, 2, 5, 9), "batch_size": 4, **changes})
    return Autoencoding(recipe, images, seed, device)


def test_the_register_has_the_rows():
    registered = [experiment for module in MODULES for experiment in module.EXPERIMENTS]
    assert sorted(experiment.id for experiment in registered) == sorted(IDS)
    assert all(isinstance(EXPERIMENTS[name], Experiment) for name in IDS)


def test_the_tensors_loss_is_the_squared_error_with_a_penalty():
    problem = TensorRank(3, CPU)
    assert [tuple(p.shape) for p in problem.parameters] == [(5, size) for size in SIZES]
    x, y, z = (p.detach().double() for p in problem.parameters)
    draw = torch.Generator().manual_seed(3 * 1_000_003)
    target = torch.rand(SIZES, generator=draw).double()
    found = sum(x[r, :, None, None] * y[r, :, None] * z[r] for r in range(5))
    moduli = sum(float(p.abs().sum()) for p in (x, y, z))
    expected = float((target - found).square().sum()) + 1e-3 * moduli
    assert math.isclose(float(problem.loss(0).detach()), expected, rel_tol=1e-5)
    (grad,) = torch.autograd.grad(problem.loss(0), [problem.parameters[0]])
    slow = -2 * torch.einsum("ijk,rj,rk->ri", target - found, y, z) + 1e-3 * x.sign()
    torch.testing.assert_close(grad.double(), slow, rtol=1e-4, atol=1e-2)
    assert problem.evaluate()["share"] > 1


def test_an_autoencoders_first_losses():
    problem = small()
    # Outputs near 0 are logits of one half: nine pixels of log 2 each.
    assert abs(problem.evaluate()["loss"] - 9 * math.log(2)) < 1
    assert torch.equal(problem.loss(1), problem.loss(1))
    assert not torch.equal(problem.loss(0), problem.loss(1))
    assert len(list(problem.epoch())) == 3
    assert torch.equal(next(problem.epoch())(), problem.loss(0))
    assert torch.equal(small().loss(7), problem.loss(7))


def test_the_penalty_is_in_the_figures_and_in_no_steps_loss():
    plain, penalised = small(decay=0.0), small(decay=0.5)
    squares = sum(float(p.detach().square().sum()) for p in plain.parameters)
    assert torch.equal(plain.loss(0), penalised.loss(0))
    gap = penalised.evaluate()["loss"] - plain.evaluate()["loss"]
    assert math.isclose(gap, 0.25 * squares, rel_tol=1e-4)


def test_units_start_with_fifteen_weights():
    with seeded(0):
        model = SigmoidAutoencoder((40, 20, 6, 20, 40))
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Linear", "Sigmoid", "Linear", "Linear", "Sigmoid", "Linear"]
    assert [int((model[k].weight != 0).sum(dim=1).unique()) for k in (0, 2, 3, 5)] == [
        15,
        15,
        6,
        15,
    ]
    assert not any(layer.bias.any() for layer in model if hasattr(layer, "bias"))


def test_sigmoid_pixels_are_matrices_within_their_bounds():
    with seeded(0):
        model = sigmoid_pixels((9, 4, 9))
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 10), (9, 5)]
    assert all(float(p.detach().abs().max()) <= (6 / 14) ** 0.5 for p in model.parameters())
    out = model(torch.randn(3, 9))
    assert bool(((out > 0) & (out < 1)).all())


@pytest.mark.parametrize(
    "method",
    [
        autoencoder_methods.kbfgs(0.3, (0.1,)),
        autoencoder_methods.kbfgs_limited(0.3, (0.1,)),
        autoencoder_methods.kfac(1.0, (0.1,)),
        autoencoder_methods.esgd(1e-2, (0.003,)),
        autoencoder_methods.jacobi(1e-4, (1e-3,)),
        autoencoder_methods.momentum((0.1,)),
        autoencoder_methods.adam(1e-3, (1e-2,)),
        autoencoder_methods.rmsprop(1e-3, (1e-3,)),
        autoencoder_methods.plain_rmsprop(1e-3, (1e-3,)),
    ],
)
def test_methods_lower_the_loss(method):
    problem = small()
    fit(problem, method, 30)
    assert problem.evaluate()["loss"] < small().evaluate()["loss"]


def test_a_method_of_s4_refuses_other_problems():
    with pytest.raises(InputError, match="give an autoencoder"):
        autoencoder_methods.kbfgs(0.3, (0.1,)).build(TensorRank(0, CPU), 0.1, 0)


def test_looks_into_training():
    looks = Looks(every=2, steps=4, probes=3)
    found = distances(small, DESCENT, looks, 0, CPU)
    parts = [found[f"rmsprop_jacobi_{k}"] for k in range(3)]
    assert "rmsprop_jacobi_3" not in found
    assert math.isclose(found["rmsprop_jacobi"], sum(parts) / 3)
    assert all(0 <= x <= 1 for x in found.values())
    figures = dominance(small, DESCENT, looks, 0, CPU)
    count = sum(p.numel() for p in small().parameters)
    assert math.isclose(figures["independent"], 100 / count**0.5)
    assert math.isclose(figures["ratio"], figures["dominance"] / figures["independent"])


def test_a_grids_diverged_runs_are_told_and_are_not_good():
    study = EXPERIMENTS["S4-5"].budgets["quick"].study
    criterion = EXPERIMENTS["S4-5"].budgets["quick"].criteria[0]
    names = list(study.methods)
    for good, holds in ((13, True), (12, False)):
        results = Results(
            [
                Record(
                    Key("", name, 0.1, 0, 60),
                    Outcome(figures={"loss": 1.0})
                    if number < good
                    else Outcome(figures={}, status=DIVERGED),
                    0.1,
                )
                for number, name in enumerate(names)
            ],
            "loss",
        )
        found = criterion.check(results)
        assert found.holds is holds
        assert f"{25 - good} diverged" in found.evidence


def test_a_time_is_that_of_the_rivals_run():
    criterion = kbfgs._ahead_in_time("ours", "theirs")
    curve = [(step, 10.0 - step / 10) for step in range(10, 50, 10)]

    def found(loss, seconds):
        ours = Record(Key("", "ours", 0.1, 0, 40), Outcome(figures={"loss": 6.0}, curve=curve), 4.0)
        theirs = Record(Key("", "theirs", 0.1, 0, 40), Outcome(figures={"loss": loss}), seconds)
        return criterion.check(Results([ours, theirs], "loss")).holds

    assert found(8.1, 2.0) and not found(7.9, 2.0)  # half of the steps: a loss of 8
    assert found(6.1, 9.0)
    assert not found(100.0, 0.5)  # before the first look


def test_a_speed_is_that_to_the_rivals_last_loss():
    criterion = esgd._faster("ours", "theirs", 3.0)
    curve = [(step, 10.0 - step) for step in range(1, 10)]

    def found(loss):
        ours = Record(Key("", "ours", 0.1, 0, 9), Outcome(figures={"loss": 1.0}, curve=curve), 1.0)
        theirs = Record(Key("", "theirs", 0.1, 0, 9), Outcome(figures={"loss": loss}), 1.0)
        return criterion.check(Results([ours, theirs], "loss")).holds

    assert found(7.0) and not found(6.9) and not found(0.5)


def test_theorem_3_2_is_tried_with_factors_of_any_direction(monkeypatch):
    seen = []
    low_rank = identities._low_rank
    monkeypatch.setattr(
        identities, "_low_rank", lambda u, v: (seen.append((u, v)), low_rank(u, v))[1]
    )
    assert identities.low_rank_spectrum(0, CPU)["spectrum"] < 1e-8
    cosines = [float((u * v).sum().abs() / (u.norm() * v.norm())) for u, v in seen]
    assert min(cosines) < 0.5


def test_a_baseline_costs_as_much_as_itself():
    figures = step_costs(small, DESCENT, DESCENT, 2, 3, 0, CPU)
    assert figures["operations"] == 1
    assert figures["time"] > 0


def test_pairs_and_gradients_of_k_bfgs():
    shares = damped_pairs(small, autoencoder_methods.kbfgs(0.3, (0.1,)), 5, 0, CPU)
    assert 0 <= shares["within"] <= shares["within_twice"] <= 1
    with pytest.raises(TypeError, match="give K-BFGS"):
        damped_pairs(small, DESCENT, 1, 0, CPU)
    found = gradient_decay(DenseBFGS(), 0.6, 100, 0, CPU)
    assert math.isclose(found["slope"], math.log10(found["late"] / found["early"]))


def test_the_regressions_gradient_is_that_of_all_examples():
    problem = TanhRegression(0, CPU)
    loss = torch.stack([problem.loss(step) for step in range(10)]).mean()
    grads = torch.autograd.grad(loss, problem.parameters)
    squared = sum(float(g.square().sum()) for g in grads)
    assert math.isclose(problem.evaluate()["gradient"], squared, rel_tol=1e-9)


def test_the_identities_see_what_breaks_them(monkeypatch):
    monkeypatch.setattr(identities, "update_inverse", lambda h, *rest: h)
    monkeypatch.setattr(identities.DoubleDamping, "damp", lambda self, s, y, hy: SecantPair(s, y))
    assert identities.hessian_action(0, CPU)["error"] > 1e-3
    assert identities.double_damping(0, CPU)["broken"] > 1e-3
    assert identities.noisy_limit(1.0, 0, CPU, steps=100)["limit"] > 0.1


def test_absent_figures_are_no_divergence():
    study = Measurement(functions={"a": lambda s, d: {}}, columns={"x": "x", "y": "y"})
    budget = next(iter(EXPERIMENTS["S3-6"].budgets.values()))
    budget = type(budget)(setting="", study=study, criteria=(), minutes=0)
    record = Record(Key("", "a", None, 0, 0), Outcome(figures={"x": 1.0}), 0.1)
    assert "| a | 1 | 1 | - |" in table(budget, Results([record], ""))


FAST = ("S3-6", "S4-8")


@pytest.mark.parametrize("name", FAST)
def test_the_theory_holds(name):
    budget = EXPERIMENTS[name].budgets["quick"]
    keys = budget.study.next_keys(Results([], ""))
    results = Results([Record(k, budget.study.run(k, CPU), 0.0) for k in keys], "")
    assert all(math.isfinite(x) for r in results.records for x in r.outcome.figures.values())
    assert all(criterion.check(results).holds for criterion in budget.all_criteria())


MEASURED = [
    name
    for name in IDS
    if EXPERIMENTS[name].budgets
    and name not in FAST
    and isinstance(EXPERIMENTS[name].budgets["quick"].study, Measurement)
    and "mnist" not in EXPERIMENTS[name].data
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_measurements_have_finite_figures(name):
    study = EXPERIMENTS[name].budgets["quick"].study
    keys = [key for key in study.next_keys(Results([], "")) if key.seed == 0]
    for key in keys:
        assert all(math.isfinite(x) for x in study.run(key, CPU).figures.values())
