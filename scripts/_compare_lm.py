"""The language-model task of compare.py."""

from _comparison import Outcome, Task

from psgd_lm import compare as lm
from psgd_lm.config import TrainConfig
from psgd_lm.entries import LMGrid, known_optimizers, members
from psgd_lm.presets import ABOUT, CHOICES, PRESETS


def _compare(preset: str, config: TrainConfig, grid: LMGrid) -> Outcome:
    result = lm.compare(members(preset, config, grid), grid)
    return Outcome(
        status=result.status,
        run_dir=result.run_dir,
        table=result.table,
        pictures=(lm.PICTURE,),
        is_any_finished=any(row.finished for row in result.rows),
    )


TASK = Task(
    name="lm",
    preset="embedded",
    presets=PRESETS,
    about=ABOUT,
    choices=CHOICES,
    grid=LMGrid(),
    known=known_optimizers,
    compare=_compare,
)
