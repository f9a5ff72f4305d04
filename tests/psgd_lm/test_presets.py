from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from psgd_lm.data import DataConfig
from psgd_lm.entries import LMGrid, members
from psgd_lm.gpt import GPTConfig
from psgd_lm.models import build_model
from psgd_lm.presets import ABOUT, DEFAULTS, PRESETS, TUNED
from psgd_lm.train import train


def test_every_preset_has_its_folder_its_line_and_its_optimizers():
    assert PRESETS.keys() == ABOUT.keys() == TUNED.keys()
    assert all(config.run_dir.parts == ("runs", name) for name, config in PRESETS.items())
    assert all({DEFAULTS.get(name, "psgd"), "psgd"} <= TUNED[name].keys() for name in PRESETS)


def shrunk(config, folder, text_file):
    """Return a run of two steps on a tiny text with every part that the preset's run has."""
    model = replace(config.model, context=12)
    if isinstance(model, GPTConfig):
        heads = min(2, model.heads)
        model = replace(model, layers=min(2, model.layers), width=8 * heads, heads=heads)
    else:
        model = replace(model, embedding=6, hidden=7)
    tokens = 24 if config.tokens_per_step else 0
    tokenizer = "word" if config.data.tokenizer == "word" else "char"
    return replace(
        config,
        model=model,
        data=DataConfig(path=str(text_file), tokenizer=tokenizer),
        schedule=replace(config.schedule, warmup=min(1, config.schedule.warmup)),
        steps=2,
        epochs=0,
        batch_size=2,
        tokens_per_step=tokens,
        micro_batch=min(1, config.micro_batch),
        log_every=1,
        threads=1,
        run_dir=folder,
        device="cpu",
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name, tmp_path, text_file, monkeypatch):
    compiled = []

    def not_compiled(model):
        # Inductor takes minutes for what two steps do in no time; test_train compiles one model.
        compiled.append(model)
        return model

    monkeypatch.setattr("torch.compile", not_compiled)
    config = shrunk(PRESETS[name], tmp_path / "run", text_file)
    result = train(config)
    assert result.status == "finished"
    assert result.summary["steps"] == 2
    assert bool(compiled) == PRESETS[name].compile
    train(replace(config, resume=True))


@pytest.mark.parametrize("name", PRESETS)
def test_every_tuned_optimizer_starts(name, tmp_path, text_file):
    pytest.importorskip("pytorch_optimizer")
    task = replace(PRESETS[name], compile=False)
    for entry in TUNED[name].values():
        settings = entry if isinstance(entry, Mapping) else {"optim": entry}
        settings = {k: v() if callable(v) else v for k, v in settings.items()}
        config = shrunk(replace(task, **settings), tmp_path / "run", text_file)
        assert train(replace(config, overwrite=True)).summary


def test_a_comparison_takes_settings_of_several_fields():
    runs = members("shakespeare-cpu", PRESETS["shakespeare-cpu"], LMGrid(optimizers=("muon",)))
    (run,) = runs.values()
    assert (run.config.optim.name, run.config.vector.name) == ("muon", "adamw")


@pytest.mark.parametrize(
    ("name", "vocabulary", "count"),
    [
        # The paper's table has .82, 1.61 and 6.37 million.
        ("paper-0.8m", 65, 818_048),
        ("paper-1.6m", 65, 1_611_136),
        ("paper-6.4m", 65, 6_368_000),
        # AWD-LSTM's on the Penn Treebank has 24 million.
        ("ptb-awd", 10_000, 24_221_600),
        # nanoGPT says 124 million for 50 304 tokens and no biases: positions left out.
        ("gpt2-124m", 50_257, 124_373_760),
    ],
)
def test_sizes_are_those_of_the_field(name, vocabulary, count):
    with torch.device("meta"):
        model = build_model(PRESETS[name].model, vocabulary)
    assert model.parameter_count() == count
