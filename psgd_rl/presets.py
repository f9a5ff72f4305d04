"""The named starting points of training and of comparisons."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from psgd_optim.config import (
    OPTIMIZER_PARTS,
    OPTIMIZERS,
    AdamWConfig,
    GradientCriterion,
    OptimizerConfig,
    PSGDConfig,
)
from psgd_rl.config import NetworkConfig, PPOConfig, TrainConfig
from psgd_rl.schedules import SCHEDULES

_PSGD = PSGDConfig(
    lr=1.5e-3,
    criterion=GradientCriterion(),
    precond_lr=0.1,
    precond_lr_final=0.1,
    update_prob=0.1,
    update_every_step_for=100,
)
"""Refitted often enough to follow the policy. Whitening the gradient instead of its average makes
steps small where minibatches disagree: HalfCheetah's return after 100k steps was 3117 instead of
1296 (3 seeds each)."""

CHOICES: Mapping[str, Mapping[str, object]] = {
    **OPTIMIZER_PARTS,
    "actor": OPTIMIZERS,
    "critic": OPTIMIZERS,
    "actor_schedule": SCHEDULES,
    "critic_schedule": SCHEDULES,
}
"""What the parts of a run can be, by field and name."""

TUNED: dict[str, dict[str, OptimizerConfig]] = {
    "halfcheetah": {"psgd": _PSGD, "adamw": AdamWConfig(lr=6e-4, beta2=0.999, eps=1e-5)},
    "smoke": {"psgd": _PSGD},
    "cartpole": {"psgd": replace(_PSGD, lr=3e-3), "adamw": AdamWConfig(lr=1e-3)},
}
"""Per preset, the settings that each optimizer starts from."""

ABOUT = {
    "halfcheetah": "HalfCheetah-v5, 1 M steps; some two minutes on two cores",
    "cartpole": "CartPole-v1, numbered actions; solved in less than a minute on one core",
    "smoke": "halfcheetah with tiny networks; under a second, to see what a run writes",
}
"""What each preset is, in a line."""

PRESETS: dict[str, TrainConfig] = {
    "halfcheetah": TrainConfig(
        actor=TUNED["halfcheetah"]["psgd"],
        critic=TUNED["halfcheetah"]["psgd"],
        run_dir=Path("runs/halfcheetah"),
    ),
    "cartpole": TrainConfig(
        env_id="CartPole-v1",
        total_steps=30_000,
        rollout_steps=64,
        ppo=PPOConfig(epochs=4, minibatches=4),
        actor=TUNED["cartpole"]["psgd"],
        critic=TUNED["cartpole"]["psgd"],
        eval_every=20,
        eval_episodes=20,
        run_dir=Path("runs/cartpole"),
    ),
    "smoke": TrainConfig(
        total_steps=1024,
        num_envs=4,
        rollout_steps=32,
        ppo=PPOConfig(epochs=2, minibatches=2),
        network=NetworkConfig(hidden=(16, 16)),
        actor=TUNED["smoke"]["psgd"],
        critic=TUNED["smoke"]["psgd"],
        eval_every=4,
        eval_episodes=2,
        save_every=2,
        run_dir=Path("runs/smoke"),
    ),
}
"""The named starting points of `scripts/train_rl.py`."""
