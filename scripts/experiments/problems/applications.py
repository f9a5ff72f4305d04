"""Training runs of psgd_lm and psgd_rl as experiments see them: settings in, figures out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from experiments.application import Training
from experiments.data import find
from psgd_lm.config import TrainConfig as LMConfig
from psgd_lm.schedules import Constant
from psgd_lm.train import DivergedError
from psgd_lm.train import train as train_lm
from psgd_optim.types import InputError
from psgd_rl.config import TrainConfig as RLConfig
from psgd_rl.train import train as train_rl

Figures = Mapping[str, float]


def language_model(config: LMConfig, data: str) -> Callable[[Training], Figures]:
    """Return what trains a language model: loss and perplexity on all validation text.

    Args:
        config: All settings but optimizer, steps, seed, device and folder.
        data: Its text, a path in the data folder.
    """

    def train(asked: Training) -> Figures:
        changes: dict[str, Any] = {
            "data": replace(config.data, path=str(find(data))),
            "optim": asked.optimizer,
            "schedule": Constant(warmup=0) if asked.is_control else config.schedule,
            "steps": asked.steps,
            "epochs": 0.0,
            "eval_every": 0,
            "seed": asked.seed,
            "device": asked.device,
            "run_dir": asked.folder,
        }
        try:
            loss = train_lm(replace(config, **changes)).summary["val_loss"]
        except DivergedError:
            return {"loss": math.inf, "perplexity": math.inf}
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    return train


def ppo(config: RLConfig) -> Callable[[Training], Figures]:
    """Return what trains an agent: minus the mean return of the final policy, and the return.

    Args:
        config: All settings but the optimizers, steps, seed, device and folder.
    """

    def train(asked: Training) -> Figures:
        run = replace(
            config,
            actor=asked.optimizer,
            critic=asked.optimizer,
            total_steps=max(asked.steps, config.rollout_size),
            seed=asked.seed,
            device=asked.device,
            run_dir=asked.folder,
        )
        evaluation = train_rl(run).evaluation
        if evaluation is None:
            raise InputError("A training run was interrupted; run the experiment again.")
        return {"minus_return": -evaluation.return_mean, "return": evaluation.return_mean}

    return train
