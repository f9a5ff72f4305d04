"""The criteria that rows of the register have for themselves."""

import math

import pytest
from experiments.register import applications, lenet_study, resnet, rosenbrock
from experiments.results import DIVERGED, Key, Outcome, Record, Results


def results_of(*runs):
    """Return the results of (method, seed, figures), of which None have diverged."""
    return Results(
        [
            Record(
                Key("", method, None, seed, 300),
                Outcome(figures={}, status=DIVERGED)
                if figures is None
                else Outcome(figures=figures),
                1.0,
            )
            for method, seed, figures in runs
        ],
        "loss",
    )


def solved(steps):
    return {"solved": 1.0, "steps": steps}


@pytest.mark.parametrize(
    ("figures", "holds"),
    [
        ([solved(200), solved(300)], True),
        ([solved(200), solved(301)], False),
        ([solved(200)], False),
        ([solved(200), {"solved": 0.0, "steps": 300}], False),
        ([solved(200), None], False),
    ],
)
def test_every_seed_is_to_be_within_the_iterations(figures, holds):
    results = results_of(*(("a", seed, figure) for seed, figure in enumerate(figures)))
    assert rosenbrock._always_within("a", 300, of=2).check(results).holds is holds


def test_every_seed_is_to_end_above_a_value():
    results = results_of(("a", 0, {"loss": 1.0}), ("a", 1, {"loss": 1e-9}))
    assert not rosenbrock._never_below("a", 1e-8).check(results).holds
    assert rosenbrock._never_below("a", 1e-10).check(results).holds
    assert not rosenbrock._never_below("b", 1e-10).check(results).holds


@pytest.mark.parametrize(("ours", "holds"), [(1.2, True), (1.4, False), (0.7, False)])
def test_methods_are_alike_in_both_directions(ours, holds):
    results = results_of(("PSGD", 0, {"error": ours}), ("SGD", 0, {"error": 1.0}))
    assert lenet_study._alike("error", 1.3).check(results).holds is holds


def test_a_loss_falls_from_that_of_the_start():
    results = results_of(("a", 0, {"loss": 0.9, "loss_before": 1.0}))
    assert resnet._falls("a", 0.95).check(results).holds
    assert not resnet._falls("a", 0.9).check(results).holds


def test_the_comparison_of_two_epochs_counts():
    members = {
        "adam-lr0.01-seed0": {"best_val_loss": 5.0, "test_loss": 4.9},
        "adam-lr0.02-seed0": {"best_val_loss": 5.1, "test_loss": 4.0},
        "psgd-lr0.02-seed0": {"best_val_loss": 1.0, "test_loss": 1.0},
    }
    found = applications.treebank_perplexity(members, "adam")
    assert math.isclose(found, math.exp(4.9))
    # What docs/results.md says: PSGD 186.3, Adam 182.9, SGD 236.6.
    assert not applications._after_two_epochs("adam").check(results_of()).holds
    assert applications._after_two_epochs("sgd").check(results_of()).holds
