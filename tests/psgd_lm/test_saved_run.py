import shutil
from dataclasses import replace

import pytest

from psgd_lm.gpt import GPTConfig
from psgd_lm.saved_run import load_run
from psgd_lm.train import train
from psgd_optim.tools.checkpoint import write_checkpoint
from psgd_optim.types import InputError


def test_missing_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*name a folder that a training run wrote"):
        load_run(tmp_path / "none")


def test_truncated_checkpoint_is_refused(tiny_config):
    train(tiny_config)
    path = tiny_config.run_dir / "checkpoint" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged or truncated"):
        load_run(tiny_config.run_dir)


def test_checkpoint_of_another_kind_is_refused(tiny_config):
    train(tiny_config)
    write_checkpoint(tiny_config.run_dir / "checkpoint" / "last.pt", "psgd_rl", {})
    with pytest.raises(InputError, match="checkpoint of 'psgd_rl', not of 'psgd_lm'"):
        load_run(tiny_config.run_dir)


def test_checkpoint_of_another_model_is_refused(tiny_config, tmp_path):
    train(tiny_config)
    other = replace(
        tiny_config, model=GPTConfig(layers=1, heads=1, width=8, context=8), run_dir=tmp_path / "b"
    )
    train(other)
    shutil.copy(other.run_dir / "checkpoint" / "last.pt", tiny_config.run_dir / "checkpoint")
    for use in (load_run, lambda folder: train(replace(tiny_config, run_dir=folder, resume=True))):
        with pytest.raises(InputError, match=r"checkpoint of another run.* says model"):
            use(tiny_config.run_dir)


def test_changed_text_is_refused(tiny_config, text_file):
    train(tiny_config)
    text_file.write_text(text_file.read_text().replace("quick", "QUICK"))
    run = load_run(tiny_config.run_dir)
    with pytest.raises(InputError, match="trained with the text of SHA-256"):
        run.load_data()
    with pytest.raises(InputError, match="trained with the text of SHA-256"):
        train(replace(tiny_config, resume=True))
