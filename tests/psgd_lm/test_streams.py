import itertools

import pytest
import torch

from psgd_lm.batches import Streams
from psgd_lm.tokens import InMemory
from psgd_optim.types import InputError


def streams(count=1000, rows=3, context=20, seed=0, is_variable=True):
    tokens = InMemory(torch.arange(count))
    return Streams(tokens, rows=rows, context=context, seed=seed, is_variable=is_variable)


def epoch(batches, number):
    """Read the batches of an epoch."""
    first = batches.steps_in(number)
    return [batches.at(step) for step in range(first, batches.steps_in(number + 1))]


@pytest.mark.parametrize("is_variable", [True, False])
@pytest.mark.parametrize("count", [1000, 1001, 1002, 62])
def test_an_epoch_has_every_token_once_as_a_target(is_variable, count):
    batches = streams(count, is_variable=is_variable)
    for number in (0, 1, 5):
        targets = torch.cat([b.targets.flatten() for b in epoch(batches, number)])
        covered = 3 * ((count - 1) // 3)
        assert sorted(targets.tolist()) == list(range(1, covered + 1))


@pytest.mark.parametrize("is_variable", [True, False])
def test_rows_go_on_where_the_last_batch_ended(is_variable):
    batches = epoch(streams(is_variable=is_variable), 2)
    for before, after in itertools.pairwise(batches):
        assert torch.equal(after.inputs[:, 0], before.targets[:, -1])
        assert torch.equal(after.targets, after.inputs + 1)
    assert [b.begins for b in batches] == [True] + [False] * (len(batches) - 1)


def test_a_batch_depends_on_seed_and_step_alone():
    forwards, backwards, other = streams(), streams(), streams(seed=1)
    steps = range(60)
    drawn = {step: backwards.at(step) for step in reversed(steps)}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for step in steps:
        batch = forwards.at(step)
        assert torch.equal(batch.inputs, drawn[step].inputs)
        assert batch[2:] == drawn[step][2:]
    assert torch.equal(state, torch.get_rng_state())
    assert [b.inputs.shape for b in epoch(forwards, 0)] != [b.inputs.shape for b in epoch(other, 0)]


def test_epochs_are_cut_elsewhere():
    lengths = [[b.inputs.shape[1] for b in epoch(streams(), n)] for n in range(4)]
    assert len({tuple(x) for x in lengths}) == 4


def test_lengths_follow_their_distribution():
    batches = streams(count=200_001, rows=1, context=70)
    lengths = torch.tensor([b.inputs.shape[1] for b in epoch(batches, 0)][:-1]).double()
    # The mean of the mixture less the half that rounding down takes: .95 * 70 + .05 * 35 - .5.
    assert lengths.mean() == pytest.approx(67.75, abs=0.7)  # 4 s.e. of 2900 lengths of sd 9
    assert ((lengths < 50).double().mean()) == pytest.approx(0.05, abs=0.017)  # 4 s.e.
    long = lengths[lengths > 52]
    assert long.std() == pytest.approx(5.0, abs=0.3)
    assert lengths.min() >= 5


def test_the_learning_rate_follows_the_length():
    batches = epoch(streams(), 0)
    assert [b.lr_factor for b in batches] == [b.inputs.shape[1] / 20 for b in batches]
    fixed = epoch(streams(is_variable=False), 0)  # rows of 333
    assert [b.inputs.shape[1] for b in fixed] == [20] * 16 + [13]
    assert [b.lr_factor for b in fixed] == [1.0] * 16 + [13 / 20]


def test_short_contexts_have_batches_too():
    batches = streams(context=2)
    assert {b.inputs.shape[1] for b in epoch(batches, 0)} <= {1, 2, 3, 4}


def test_steps_of_a_part_of_an_epoch():
    batches = streams(is_variable=False)  # 17 steps per epoch
    assert [batches.steps_in(e) for e in (0, 0.5, 1, 2.5, 3)] == [0, 8, 17, 42, 51]
    assert [step for step in range(52) if batches.is_whole(step)] == [0, 17, 34, 51]


def test_a_text_with_less_than_a_token_per_row_is_refused():
    streams(count=4)
    with pytest.raises(InputError, match=r"3 tokens, 3 rows .* 4 or more; .* --batch-size"):
        streams(count=3)
