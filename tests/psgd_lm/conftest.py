"""Tiny texts, models and runs that the tests of psgd_lm share."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from psgd_lm.config import TrainConfig
from psgd_lm.data import DataConfig
from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import LanguageModel
from psgd_lm.models import build_model
from psgd_lm.presets import PRESETS
from psgd_lm.recurrent import LSTMConfig

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def tiny_config(tmp_path: Path, text_file: Path) -> TrainConfig:
    """The smoke preset on a text of 2640 characters, in a folder of its own."""
    data = DataConfig(path=str(text_file))
    return replace(PRESETS["smoke"], data=data, run_dir=tmp_path / "run")


@pytest.fixture
def tiny_model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(layers=2, heads=2, width=16, context=8), vocab_size=11).eval()


@pytest.fixture
def tiny_recurrent() -> LanguageModel:
    torch.manual_seed(0)
    config = LSTMConfig(
        layers=2,
        embedding=12,
        hidden=16,
        context=8,
        tied=False,
        sparse_embedding=True,
        input_dropout=0.3,
        weight_dropout=0.5,
    )
    return build_model(config, vocab_size=11).eval()


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Find a file of the real texts, which lie beside the checkout and are no part of it."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("PSGD_DATA", "../shared/data")) / name
        if not path.is_file():
            pytest.skip(f"no {name} in PSGD_DATA")
        return path

    return find


@pytest.fixture
def long_config(tiny_config):
    """Long enough to be interrupted, with dropout so that the generator's state matters."""
    return replace(
        tiny_config,
        model=replace(tiny_config.model, dropout=0.1),
        steps=100,
        log_every=7,
        eval_every=30,
    )
