"""A run on disk: what its checkpoints hold, and how it goes back to them."""

from dataclasses import asdict
from pathlib import Path

from psgd_lm.config import TrainConfig
from psgd_lm.data import TextData
from psgd_lm.guard import BadStepError, is_finite
from psgd_lm.progress import Progress
from psgd_lm.saved_run import KIND, check_text, text_identity
from psgd_lm.trainee import Trainee
from psgd_optim.tools.checkpoint import keep_copy, write_checkpoint
from psgd_optim.tools.choices import config_to_dict
from psgd_optim.tools.run_folder import RunFolder, read_run


class RunState:
    """What a run has trained, where it stands, and its folder; made after all else is checked.

    Args:
        config: The run.
        data: Its text.
        trainee: What it trains.

    Raises:
        InputError: If the folder cannot be taken, or its text is another one.
    """

    def __init__(self, config: TrainConfig, data: TextData, trainee: Trainee) -> None:
        self.config = config
        self.data = data
        self.trainee = trainee
        self.progress = Progress()
        self.folder = RunFolder(
            config.run_dir, KIND, config, resume=config.resume, overwrite=config.overwrite
        )
        if config.resume and self._has_begun:
            self.go_back()
        elif config.resume:  # from a kill before the first checkpoint
            self.folder.rewind(-1)
        self.saved_step = self.progress.step
        """Steps done at the last checkpoint."""

    @property
    def can_go_back(self) -> bool:
        """Whether there is a checkpoint."""
        return self.folder.last_checkpoint.is_file()

    @property
    def _has_begun(self) -> bool:
        """Whether the run in the folder has taken a step, or has a checkpoint from before it."""
        return self.can_go_back or self.folder.last_logged_step() > 0

    def go_back(self) -> None:
        """Take up the run where its last checkpoint is."""
        content = read_run(self.config.run_dir, KIND)[1]
        check_text(content["identity"], self.data, self.config.run_dir)
        self.trainee.load(content)
        self.progress = Progress(**content["progress"])
        self.folder.rewind(self.progress.step)
        self._keep()  # a kill may have come before

    def save(self) -> None:
        """Write the checkpoint that a resumption or a roll-back starts from."""
        self._write(self.folder.last_checkpoint)
        self._keep()
        self.saved_step = self.progress.step

    def save_best(self) -> None:
        """Write the checkpoint with the best evaluation so far."""
        self._write(self.folder.best_checkpoint)

    def _keep(self) -> None:
        keep_copy(self.folder.last_checkpoint, self.progress.step, self.config.keep)

    def check_finite(self) -> None:
        """Refuse a model with a parameter that is not finite; waits for the device.

        Raises:
            BadStepError: If there is one.
        """
        if not is_finite(self.trainee.model):
            raise BadStepError(self.progress.step, "A parameter")

    def _write(self, path: Path) -> None:
        self.check_finite()
        write_checkpoint(
            path,
            KIND,
            {
                "config": config_to_dict(self.config),
                "identity": text_identity(self.data),
                "tokenizer": self.data.tokenizer.to_dict(),
                "progress": asdict(self.progress),
                **self.trainee.state(),
            },
        )
