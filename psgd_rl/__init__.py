"""PPO with PSGD on MuJoCo: training, evaluation, and the environments."""

from psgd_rl.config import TrainConfig
from psgd_rl.evaluate import Evaluation, evaluate_checkpoint, evaluate_run
from psgd_rl.presets import PRESETS, TUNED
from psgd_rl.train import Result, train

__all__ = [
    "PRESETS",
    "TUNED",
    "Evaluation",
    "Result",
    "TrainConfig",
    "evaluate_checkpoint",
    "evaluate_run",
    "train",
]
