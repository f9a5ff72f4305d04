import torch

from psgd_lm.batches import Windows
from psgd_lm.tokens import InMemory


def batch(seed, step, tokens=None):
    tokens = torch.arange(1000) if tokens is None else tokens
    return Windows(InMemory(tokens), context=5, batch_size=4, seed=seed).at(step)


def test_targets_are_the_next_tokens():
    inputs, targets, *_ = batch(0, 0)
    assert inputs.shape == targets.shape == (4, 5)
    assert torch.equal(targets, inputs + 1)


def test_batch_depends_on_seed_and_step_alone():
    torch.manual_seed(1)
    before, state = batch(3, 7), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(before[0], batch(3, 7)[0])
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_neighbouring_seeds_and_steps_have_other_batches():
    drawn = {tuple(batch(seed, step)[0][:, 0].tolist()) for seed in range(5) for step in range(5)}
    assert len(drawn) == 25


def test_every_window_can_be_drawn():
    tokens = torch.arange(8)  # three windows of 5 + 1
    starts = {int(s) for step in range(40) for s in batch(0, step, tokens)[0][:, 0]}
    assert starts == {0, 1, 2}


def test_an_epoch_of_windows_has_as_many_tokens_as_the_text():
    windows = Windows(InMemory(torch.arange(1001)), context=5, batch_size=4, seed=0)
    assert [windows.steps_in(e) for e in (1, 2, 0.5, 0.001)] == [50, 100, 25, 1]
    assert [step for step in range(151) if windows.is_whole(step)] == [0, 50, 100, 150]
