"""Every optimizer trains, and its momentum can be emptied."""

import json
from dataclasses import replace

import pytest
import torch

from psgd_optim.config import OPTIMIZERS, AdamWConfig, MuonConfig, PSGDConfig, SGDConfig
from psgd_optim.tools.stepping import reset_momentum
from psgd_rl import PRESETS, train
from psgd_rl.actor_critic import GaussianActor
from psgd_rl.optimizers import build_optimizer, health


def make_actor() -> GaussianActor:
    return GaussianActor(
        (3, 8, 2),
        log_std=0.0,
        log_std_bounds=(-4.0, 1.0),
        generator=torch.Generator().manual_seed(0),
    )


def step(actor, optimizer) -> None:
    loss = actor(torch.ones(4, 3)).square().mean() + actor.log_std.square().mean()
    loss = loss + actor.log_std.sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(name, tmp_path):
    smoke = PRESETS["smoke"]
    config = replace(
        smoke,
        actor=OPTIMIZERS[name],
        critic=OPTIMIZERS[name],
        total_steps=2 * smoke.rollout_size,
        eval_every=0,
        env_threads=1,
        eval_episodes=1,
        run_dir=tmp_path / "run",
    )
    assert train(config).status == "finished"
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    figures = set(json.loads(text.splitlines()[0]))
    watched = {"precond/actor/update_rms", "precond/critic/skipped"}
    assert (watched <= figures) == (name in ("psgd", "newton"))


def test_muon_leaves_the_log_std_to_adamw():
    actor = make_actor()
    optimizer = build_optimizer(actor, MuonConfig(), 0)
    before = {name: p.detach().clone() for name, p in actor.named_parameters()}
    step(actor, optimizer)
    assert all((p != before[name]).any() for name, p in actor.named_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]


@pytest.mark.parametrize(
    "config", [AdamWConfig(), SGDConfig(momentum=0.9), MuonConfig(), PSGDConfig()]
)
def test_momentum_is_emptied_and_nothing_else(config):
    actor = make_actor()
    optimizer = build_optimizer(actor, config, 0)
    for _ in range(3):
        step(actor, optimizer)

    def tensors(state):
        """Yield every tensor of a state with its name."""
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                yield key, value.clone()
            elif isinstance(value, dict):
                yield from tensors(value)

    before = list(tensors(optimizer.state_dict()))
    reset_momentum(optimizer)
    averages = 0
    for (name, x), (_, y) in zip(before, tensors(optimizer.state_dict()), strict=True):
        if name in ("exp_avg", "momentum", "momentum_buffer"):
            averages += 1
            assert x.any()
            assert not y.any()
        else:
            assert torch.equal(x, y), name
    assert averages == 3


def test_optimizer_without_figures_has_none():
    assert health(build_optimizer(make_actor(), AdamWConfig(), 0), "precond/actor") == {}
