"""Rosenbrock's function, and the count of steps to its minimum."""

import torch

from psgd_lm.form_study.rosenbrock import FORMS, measure, rosenbrock, steps_to_minimum


def test_minimum_is_zero_at_ones():
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    value = rosenbrock(x)
    value.backward()
    assert float(value.detach()) == 0
    assert not x.grad.any()
    assert float(rosenbrock(torch.tensor([-1.0, 1.0]))) == 4


def test_a_triangle_needs_about_200_steps_and_a_diagonal_more():
    # P17 of the design: 176 to 229 in 80 % of seeds.
    assert 100 < steps_to_minimum(FORMS["Dense, triangle"], 2, seed=1) < 300
    assert steps_to_minimum(FORMS["Diagonal"], 2, seed=1, most=300) == 300


def test_every_form_takes_steps_in_both_sizes():
    for name in FORMS:
        assert measure(name, [0], most=2) == {"2": [2], "10": [2]}
