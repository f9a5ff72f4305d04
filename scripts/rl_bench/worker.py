"""One training run in a process of its own, with the clock around the training alone."""

import importlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from psgd_optim.tools.runtime import torch_threads
from psgd_rl import PRESETS, TUNED, train

ADAMW, PSGD, SB3 = "psgd_rl, adamw", "psgd_rl, psgd", "stable-baselines3"
CONTENDERS = (ADAMW, PSGD, SB3)


def train_ours(name: str, preset: str, steps: int, seed: int, env_threads: int) -> float:
    """Train with one of our optimizers.

    Args:
        name: `ADAMW` or `PSGD`.
        preset: Of train_rl.py.
        steps: Environment steps, at least.
        seed: Of the run.
        env_threads: Threads that step the environments.

    Returns:
        Environment steps per second; the time holds an evaluation of one episode at the end.
    """
    optimizer = TUNED[preset]["adamw" if name == ADAMW else "psgd"]
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            replace(
                PRESETS[preset],
                actor=optimizer,
                critic=optimizer,
                total_steps=steps,
                seed=seed,
                eval_every=0,
                eval_episodes=1,
                env_threads=env_threads,
                run_dir=Path(folder) / "run",
            )
        )
    return result.steps / result.seconds


def train_sb3(preset: str, steps: int, seed: int) -> float:
    """Train stable-baselines3's PPO with the sizes of a preset and its own loop.

    Args:
        preset: Of train_rl.py, for the environment, the copies, and the sizes of a rollout.
        steps: Environment steps, at least.
        seed: Of the run.

    Returns:
        Environment steps per second.
    """
    config = PRESETS[preset]
    sb3 = importlib.import_module("stable_baselines3")
    make_vec_env = importlib.import_module("stable_baselines3.common.env_util").make_vec_env
    normalize = importlib.import_module("stable_baselines3.common.vec_env").VecNormalize
    env = normalize(make_vec_env(config.env_id, n_envs=config.num_envs, seed=seed))
    model = sb3.PPO(
        "MlpPolicy",
        env,
        n_steps=config.rollout_steps,
        batch_size=64,
        n_epochs=10,
        device="cpu",
        seed=seed,
    )
    with torch_threads(config.threads):
        start = time.perf_counter()
        model.learn(steps)
        return float(model.num_timesteps / (time.perf_counter() - start))


def main() -> None:
    """Train as the arguments say and print the speed as JSON."""
    name, preset, steps, seed, env_threads = sys.argv[1:]
    if name == SB3:
        speed = train_sb3(preset, int(steps), int(seed))
    else:
        speed = train_ours(name, preset, int(steps), int(seed), int(env_threads))
    print(json.dumps({"steps_per_second": speed}))


if __name__ == "__main__":
    main()
