from dataclasses import replace

import pytest
import torch
from torch import nn

from psgd_lm.guard import BadStepError, Fingerprint, FiniteGuard, is_finite, memory_advice
from psgd_lm.run_state import RunState
from psgd_lm.stepping import Stepper
from psgd_lm.train import DivergedError, train
from psgd_optim.types import InputError


def test_guard_remembers_the_first_bad_step():
    guard = FiniteGuard(torch.device("cpu"))
    for step, loss in enumerate((1.0, 2.0, float("inf"), 1.0, float("nan")), start=1):
        guard.watch(torch.tensor(loss), step)
        assert guard.first_bad_step() == (3 if step >= 3 else 0)
    guard.forget()
    assert guard.first_bad_step() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_number_makes_a_model_not_finite(bad):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert is_finite(model)
    model[1].bias.data[1] = bad
    assert not is_finite(model)


def test_a_model_that_has_not_moved_is_refused():
    model = nn.Linear(3, 3)
    fingerprint = Fingerprint(model)
    with pytest.raises(InputError, match=r"first 10 steps at a learning rate of 1e-15; .*--optim"):
        fingerprint.check_moved(10, 1e-15)
    with torch.no_grad():  # the sum stays, the sum of squares does not
        model.weight[0, 0] += 0.5
        model.weight[0, 1] -= 0.5
    fingerprint.check_moved(10, 1e-15)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_runs_out_names_what_to_change(error, tiny_config, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(Stepper, "take", fail)
    words = r"4 windows of 16 tokens, 2 at a time; .*--micro-batch.*--batch-size.*--model.context"
    with pytest.raises(InputError, match=words):
        train(replace(tiny_config, micro_batch=2))


def test_a_model_that_is_too_large_leaves_no_folder(tiny_config):
    config = replace(tiny_config, model=replace(tiny_config.model, width=2**36))
    with pytest.raises(InputError, match=r"building the model gpt; give a smaller one"):
        train(config)
    assert not config.run_dir.exists()


def test_weights_that_are_bad_from_the_start_have_no_checkpoint(tiny_config, monkeypatch):
    def bad(*_):
        raise BadStepError(0, "A parameter")

    monkeypatch.setattr(RunState, "check_finite", bad)
    with pytest.raises(DivergedError, match=r"begins is not finite; start with other weights"):
        train(tiny_config)


def test_torch_says_what_is_looked_for():
    with pytest.raises(InputError, match="Out of memory"), memory_advice("a step", "one"):
        torch.empty(2**50, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="teapot"), memory_advice("a step", "one"):
        raise RuntimeError("teapot")
