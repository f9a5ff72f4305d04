"""The reinforcement-learning task of compare.py."""

from _comparison import Outcome, Task

from psgd_rl import compare as rl
from psgd_rl.config import TrainConfig
from psgd_rl.entries import RLGrid, known_optimizers, members
from psgd_rl.presets import ABOUT, CHOICES, PRESETS


def _compare(preset: str, config: TrainConfig, grid: RLGrid) -> Outcome:
    result = rl.compare(members(preset, config, grid), grid)
    return Outcome(
        status=result.status,
        run_dir=result.run_dir,
        table=result.table,
        pictures=(rl.CURVES, rl.EFFICIENCY),
        is_any_finished=any(row.runs for row in result.rows),
    )


TASK = Task(
    name="rl",
    preset="halfcheetah",
    presets=PRESETS,
    about=ABOUT,
    choices=CHOICES,
    grid=RLGrid(),
    known=known_optimizers,
    compare=_compare,
)
