"""What a run has left in its folder, read back and compared bit for bit."""

import json

import torch

from psgd_lm.config import TrainConfig
from psgd_lm.stepping import Stepper
from psgd_optim.tools.checkpoint import read_checkpoint


def checkpoint(config: TrainConfig, name: str = "last"):
    return read_checkpoint(config.run_dir / "checkpoint" / f"{name}.pt", "psgd_lm")


def metrics(config: TrainConfig):
    """Read the log without what depends on the clock."""
    records = map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]


def assert_same_state(first, second):
    """Compare nested states bit for bit."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            assert_same_state(value, second[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        elif isinstance(value, list | tuple):
            assert_same_state(dict(enumerate(value)), dict(enumerate(second[key])))
        else:
            assert value == second[key], key


CLOCKS = ("seconds", "training_seconds", "timing")


def assert_same_run(first: TrainConfig, second: TrainConfig):
    """Compare everything that a run goes on from, and its log."""
    one, other = checkpoint(first), checkpoint(second)
    assert one.keys() == other.keys()
    for content in (one, other):
        for name in CLOCKS:
            content["progress"].pop(name)
        content.pop("config")  # names the run's folder
    assert_same_state(one, other)
    assert metrics(first) == metrics(second)


def die_after(patch, count):
    """Break the process off in a step, `count` steps after it began."""
    original = Stepper.take
    steps = []

    def take(stepper, batch):
        steps.append(1)
        if len(steps) > count:
            raise RuntimeError("killed")
        return original(stepper, batch)

    patch.setattr(Stepper, "take", take)
