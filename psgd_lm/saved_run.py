"""A trained run read back from its folder, for evaluation and sampling."""

from dataclasses import dataclass
from pathlib import Path

import torch

from psgd_lm.data import DataConfig, TextData, load_data
from psgd_lm.language_model import LanguageModel
from psgd_lm.models import build_model, model_config_from_dict
from psgd_lm.tokenizer import Tokenizer, tokenizer_from_dict, tokenizer_sha256
from psgd_optim.tools.run_folder import BEST, LAST, read_run
from psgd_optim.tools.runtime import resolve_device
from psgd_optim.types import InputError

KIND = "psgd_lm"
"""The kind of this application's checkpoints."""


def text_identity(data: TextData) -> dict[str, str]:
    """Return what a checkpoint stores to recognise its text and tokenizer by."""
    return {"text": data.sha256, "tokenizer": tokenizer_sha256(data.tokenizer)}


def check_text(saved: dict[str, str], data: TextData, where: Path) -> None:
    """Refuse a text or tokenizer other than the one a checkpoint was trained with.

    Args:
        saved: `text_identity` of the training run.
        data: What was read now.
        where: The run's folder, for the message.

    Raises:
        InputError: If one of the two differs.
    """
    for name, found in text_identity(data).items():
        if saved[name] != found:
            raise InputError(
                f"{where} was trained with the {name} of SHA-256 {saved[name][:12]}, "
                f"{data.source} now gives {found[:12]}; restore the text (the embedded "
                "corpus changes with the Python version) or train again."
            )


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run's model and what it was trained with."""

    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    device: torch.device
    threads: int
    """CPU threads that it was trained with; sums round differently with another number."""
    step: int
    identity: dict[str, str]
    data_config: DataConfig

    def load_data(self) -> TextData:
        """Read the run's text again and check that it is the same."""
        data = load_data(self.data_config, self.model.context)
        check_text(self.identity, data, self.path)
        return data


def load_run(run_dir: Path, *, best: bool = False, device: str = "auto") -> SavedRun:
    """Read a run's model back, ready to evaluate.

    Args:
        run_dir: The run's folder.
        best: Take the checkpoint with the lowest evaluation instead of the last one.
        device: As in the training configuration.

    Returns:
        The run.
    """
    config, content = read_run(run_dir, KIND, BEST if best else LAST)
    tokenizer = tokenizer_from_dict(content["tokenizer"])
    model = build_model(model_config_from_dict(config["model"]), tokenizer.vocab_size)
    # An average of the weights, where there is one, is what was evaluated.
    model.load_state_dict({**content["model"], **content["averaging"]["means"]})
    target = resolve_device(device)
    return SavedRun(
        path=run_dir,
        model=model.to(target).eval(),
        threads=config["threads"],
        tokenizer=tokenizer,
        device=target,
        step=content["progress"]["step"],
        identity=content["identity"],
        data_config=DataConfig(**config["data"]),
    )
