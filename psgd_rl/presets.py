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
    lr=2.5e-3,
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

_ADAMW = AdamWConfig(lr=1e-3, beta2=0.999, eps=1e-5)

TUNED: dict[str, dict[str, OptimizerConfig]] = {
    # Tried for 500k steps, final return with seed 0, with seed 1 where there are two figures; the
    # KL limit is ppo.target_kl, 0.02 where none is given.
    #   psgd   1.5e-3 5976, 9e-4 5820, 2.5e-3 6180 5997, 4e-3 5873; advantages recomputed, 1.5e-3
    #          6241, 2.5e-3 5970; 2.5e-3 with 16 minibatches 6256; KL 0.03, 2.5e-3 6486 6584, 4e-3
    #          5419; KL 0.05, 2.5e-3 6346, with 4 minibatches 6206; 1.5e-3 with gamma 0.98, lambda
    #          0.92, log-std -2: 4499; 7.5e-4 with 32 minibatches 4788
    #   adamw  6e-4 5387, 3.6e-4 5393, 1e-3 6545 6023, 1.7e-3 5866; recomputed, 6e-4 6069, 1e-3
    #          6157; 1e-3 with 16 minibatches 6285; KL 0.03, 1e-3 5968 5200, 6e-4 4547; KL 0.05,
    #          6e-4 4103; 1e-3 with 4 minibatches 4847; 6e-4 with gamma 0.98 as above 4287; 3e-4
    #          with 32 minibatches 5541
    "halfcheetah": {"psgd": _PSGD, "adamw": _ADAMW},
    # HalfCheetah's settings first; 500k steps, final return with seed 0.
    #   psgd   2.5e-3 with KL 0.03 4289; 1.5e-3 with KL 0.02 3984
    #   adamw  1e-3 with KL 0.03 4129; 6e-4 with KL 0.02 3649
    "walker2d": {"psgd": _PSGD, "adamw": _ADAMW},
    "smoke": {"psgd": replace(_PSGD, lr=1.5e-3)},
    "cartpole": {"psgd": replace(_PSGD, lr=3e-3), "adamw": AdamWConfig(lr=1e-3)},
}
"""Per preset, the settings that each optimizer starts from."""

WITH_OPTIMIZER: dict[str, dict[str, Mapping[str, float]]] = {
    "halfcheetah": {"adamw": {"target_kl": 0.02}},
}
"""Per preset and optimizer, settings of the update that a comparison gives it instead of the
preset's, as they were better for it."""

ABOUT = {
    "halfcheetah": "HalfCheetah-v5, 1 M steps; some two minutes on two cores",
    "walker2d": "Walker2d-v5, 1 M steps; some four minutes on two cores",
    "cartpole": "CartPole-v1, numbered actions; solved in less than a minute on one core",
    "smoke": "halfcheetah with tiny networks; under a second, to see what a run writes",
}
"""What each preset is, in a line."""

PRESETS: dict[str, TrainConfig] = {
    "halfcheetah": TrainConfig(
        ppo=PPOConfig(target_kl=0.03),
        actor=TUNED["halfcheetah"]["psgd"],
        critic=TUNED["halfcheetah"]["psgd"],
        run_dir=Path("runs/halfcheetah"),
    ),
    "walker2d": TrainConfig(
        env_id="Walker2d-v5",
        ppo=PPOConfig(target_kl=0.03),
        actor=TUNED["walker2d"]["psgd"],
        critic=TUNED["walker2d"]["psgd"],
        run_dir=Path("runs/walker2d"),
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
