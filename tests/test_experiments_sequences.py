"""The sequence experiments: what is drawn, what the networks compute, and that both repeat."""

import math

import pytest
import torch
from experiments.problem import generator
from experiments.problems.recurrent_networks import (
    cell_input_lstm,
    peephole_lstm,
    readout,
    vanilla,
)
from experiments.problems.scanned_lstm import ScannedLSTM
from experiments.problems.scanned_rnn import ScannedRNN
from experiments.problems.sequences import Addition, DelayedXOR, Sampling, SequenceProblem
from experiments.register import delayed_xor, sequences
from torch.func import functional_call

from psgd_optim.affine import CellInputLSTM, PeepholeLSTM

CPU = torch.device("cpu")
NETWORKS = (vanilla, peephole_lstm, cell_input_lstm)


def problem(network=vanilla, task=None, hidden=4, seed=3, **options):
    source = generator(seed)
    sampling = Sampling(**{"task": task or DelayedXOR(10), "batch": 6, "fresh": 50, **options})
    return SequenceProblem(sampling, network(hidden, source), readout(hidden, source), seed, CPU)


def places(inputs):
    """Return the marked places of every sequence."""
    return [inputs[:, b, 1].nonzero().flatten().tolist() for b in range(inputs.shape[1])]


def test_addition_marks_two_places_of_the_first_half():
    inputs, targets = Addition(10).draw(500, generator(1))
    values = inputs[..., 0]
    assert inputs.shape == (10, 500, 2)
    assert values.min() >= -1 and values.max() <= 1 and values.std() == pytest.approx(3**-0.5, 0.05)
    found = places(inputs)
    assert all(len(marked) == 2 for marked in found)
    pairs = {tuple(marked) for marked in found}
    assert pairs == {(i, j) for i in range(5) for j in range(i + 1, 5)}  # all pairs, none twice
    for b, marked in enumerate(found):
        assert targets[b] == pytest.approx(float(values[marked, b].mean()), abs=1e-6)


def test_the_best_constant_answer_to_addition_has_an_error_of_a_sixth():
    _, targets = Addition(30).draw(100_000, generator(2))
    zero = Addition(30).figures(torch.zeros_like(targets), targets)
    assert zero["loss"] == pytest.approx(1 / 6, rel=0.02)
    assert abs(float(targets.mean())) < 0.01


def test_addition_draws_lengths_between_two_bounds():
    lengths = [len(Addition(30, 33).draw(1, generator(0, step))[0]) for step in range(300)]
    shares = [lengths.count(length) / 300 for length in (30, 31, 32, 33)]
    assert shares == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6], abs=0.08)


def test_xor_marks_early_places_and_tells_whether_their_signs_differ():
    inputs, targets = DelayedXOR(20).draw(2000, generator(1))
    assert set(inputs[..., 0].unique().tolist()) == {-1.0, 1.0}
    found = places(inputs)
    assert {first for first, _ in found} == {0, 1}
    assert {second for _, second in found} == set(range(2, 10))
    for b, marked in enumerate(found):
        first, second = inputs[marked, b, 0].tolist()
        assert targets[b] == (-1 if first == second else 1)
    assert abs(float(targets.mean())) < 0.1


def test_no_answer_to_xor_costs_log_2_and_a_right_one_nothing():
    task = DelayedXOR(20)
    _, targets = task.draw(1000, generator(1))
    assert task.figures(0 * targets, targets)["loss"] == pytest.approx(math.log(2))
    assert task.figures(20 * targets, targets) == {"loss": pytest.approx(0, abs=1e-6), "error": 0}
    assert task.figures(-targets, targets)["error"] == 1


def slow_states(weight, x):
    """Return the last state (H,) of one sequence x (T, X), number by number."""
    h = [0.0] * len(weight)
    for row in x.tolist():
        u = [*row, *h, 1.0]
        h = [math.tanh(sum(a * b for a, b in zip(w, u, strict=True))) for w in weight.tolist()]
    return torch.tensor(h, dtype=torch.float64)


def scanned(hidden=3, steps=5, batch=2):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(hidden, 2 + hidden + 1, generator=draw, dtype=torch.float64)
    x = torch.randn(steps, batch, 2, generator=draw, dtype=torch.float64)
    return ScannedRNN(weight), x


@pytest.mark.parametrize("steps", [1, 5])
def test_the_plain_network_is_its_formula(steps):
    network, x = scanned(steps=steps)
    slow = torch.stack([slow_states(network.weight, x[:, b]) for b in range(2)])
    torch.testing.assert_close(network(x), slow)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_plain_network_has_two_derivatives(steps):
    network, x = scanned(hidden=2, steps=steps)

    def run(weight, inputs):
        return functional_call(network, {"weight": weight}, inputs)

    arguments = (network.weight.detach().requires_grad_(), x.requires_grad_())
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", [CellInputLSTM, PeepholeLSTM])
def test_the_scanned_lstms_are_the_layers_that_they_are_made_of(kind, steps):
    torch.manual_seed(0)
    layer = kind(2, 3, std=0.5).double()
    x = torch.randn(steps, 5, 2, dtype=torch.float64)
    weights, probes = list(layer.parameters()), []

    def derivatives(hidden):
        loss = hidden.square().sum() + hidden.sum()
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        probes[:] = probes or [torch.randn_like(p) for p in weights]
        return [hidden, *grads, *torch.autograd.grad(grads, weights, probes)]

    fast, slow = derivatives(ScannedLSTM(layer)(x)), derivatives(layer(x)[1][0])
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("network", NETWORKS)
def test_hessian_products_are_differences_of_gradients(network):
    drawn = problem(network)
    for p in drawn.parameters:
        p.data = p.data.double()
    task = drawn._sampling.task
    inputs, targets = task.draw(6, generator(3, 1))

    def gradients(graph=False):
        answers = drawn._answers(drawn._hidden(inputs.double()))
        return torch.autograd.grad(
            task.loss(answers, targets.double()), drawn.parameters, create_graph=graph
        )

    probes = [torch.randn_like(p) for p in drawn.parameters]
    products = torch.autograd.grad(gradients(graph=True), drawn.parameters, probes)
    size, sides = 1e-5, []
    for sign in (1, -2):
        for p, v in zip(drawn.parameters, probes, strict=True):
            p.data.add_(v, alpha=sign * size)
        sides.append(gradients())
    for product, ahead, behind in zip(products, *sides, strict=True):
        torch.testing.assert_close(product, (ahead - behind) / (2 * size), atol=1e-8, rtol=1e-5)


def test_starts_are_the_papers():
    rnn, peephole, one = (network(30, generator(0)) for network in NETWORKS)
    w = rnn.weight.detach()
    torch.testing.assert_close(w[:, 2:-1] @ w[:, 2:-1].T, torch.eye(30), atol=1e-5, rtol=0)
    assert not w[:, -1].any() and 0.05 < float(w[:, :2].std()) < 0.15
    assert (peephole.layer.weight_f[:, -1] == 1).all()
    assert [p.numel() for p in peephole.parameters()] == [30 * 63] * 4
    assert [p.numel() for p in one.parameters()] == [120 * 63]
    assert sum(p.numel() for p in problem(hidden=30).parameters) == 1021


@pytest.mark.parametrize("network", NETWORKS)
def test_a_problem_is_a_function_of_seed_and_step(network):
    task, keep = Addition(8, 9), (0.8, 0.9)
    one, two, other = (problem(network, task, seed=s, keep=keep) for s in (3, 3, 4))
    assert all(map(torch.equal, one.parameters, two.parameters))
    assert not any(map(torch.equal, one.parameters, other.parameters))
    assert one.loss(5).item() == two.loss(5).item() == one.loss(5).item()
    assert len({drawn.loss(step).item() for drawn in (one, other) for step in range(4)}) == 8
    assert one.evaluate() == two.evaluate() != other.evaluate()


def test_all_problems_are_evaluated_on_the_same_sequences():
    one, other = problem(seed=0), problem(seed=1)
    assert torch.equal(one._fresh[0], other._fresh[0])


def test_dropout_leaves_out_hidden_units_of_training_alone():
    drawn = problem(keep=(0.5, 0.5), batch=500)
    hidden = drawn._hidden
    drawn._hidden = lambda inputs: torch.ones(inputs.shape[1], 4)
    seen = []
    answers, drawn._answers = drawn._answers, lambda h: (seen.append(h), answers(h))[1]
    drawn.loss(0)
    drawn.evaluate()
    assert seen[0].unique().tolist() == [0, 2] and float(seen[0].mean()) == pytest.approx(1, 0.1)
    assert seen[1].unique().tolist() == [1]
    assert hidden is not drawn._hidden


@pytest.mark.parametrize(
    "experiment", [*sequences.EXPERIMENTS, *delayed_xor.EXPERIMENTS], ids=lambda e: e.id
)
def test_every_method_takes_a_step(experiment):
    study = experiment.budgets["quick"].study
    case = study.cases[0]
    for method in study.methods.values():
        drawn = study.make(case, 0, CPU)
        leaves = [p.detach() for p in drawn.parameters]
        before = [p.clone() for p in leaves]
        optimizer = method.build(drawn, method.rates[0], 0)
        if getattr(optimizer, "needs_closure", False):
            optimizer.step(lambda drawn=drawn: drawn.loss(0))
        else:
            drawn.loss(0).backward()
            optimizer.step()
        moved = [float((p - b).norm()) for p, b in zip(leaves, before, strict=True)]
        assert all(0 < size < math.inf for size in moved)
