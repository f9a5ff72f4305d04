import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import psgd_lm.evaluate_run as evaluate_run_module
from psgd_lm import saved_run as saved_run_module
from psgd_lm.dynamic import DynamicConfig
from psgd_lm.evaluate import evaluate
from psgd_lm.evaluate_run import EvaluateConfig, evaluate_run
from psgd_lm.train import train
from psgd_optim.types import InputError


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_stored_run_evaluates_to_exactly_what_training_logged(tiny_config, tokenizer):
    config = replace(tiny_config, data=replace(tiny_config.data, tokenizer=tokenizer))
    summary = train(config).summary
    figures = evaluate_run(config.run_dir)
    assert figures["loss"] == summary["val_loss"]
    assert figures["bits_per_byte"] == summary["bits_per_byte"]
    assert figures["zlib_bits_per_byte"] == summary["zlib_bits_per_byte"]
    assert (figures["step"], figures["part"]) == (20, "validation")
    best = evaluate_run(config.run_dir, EvaluateConfig(best=True))
    assert (best["loss"], best["step"]) == (summary["best_val_loss"], summary["best_step"])


def test_validation_text_is_what_is_evaluated(tiny_config, text_file):
    # The last tenth is of other letters: a model of the first nine tenths does badly on it.
    text_file.write_text("ab" * 900 + "cd" * 100)
    summary = train(replace(tiny_config, steps=60, eval_every=60)).summary
    lines = (tiny_config.run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    last_train_loss = [r["train/loss"] for r in records if "train/loss" in r][-1]
    assert summary["val_loss"] > last_train_loss + 0.3


def test_a_run_is_evaluated_with_its_number_of_threads(tiny_config, monkeypatch):
    train(tiny_config)
    seen = []

    def counting(*args):
        seen.append(torch.get_num_threads())
        return evaluate(*args)

    monkeypatch.setattr(evaluate_run_module, "evaluate", counting)
    torch.set_num_threads(2)
    evaluate_run(tiny_config.run_dir)
    assert seen == [1]
    assert torch.get_num_threads() == 2


def files(folder: Path):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_training_part_can_be_evaluated(tiny_config):
    train(tiny_config)
    figures = evaluate_run(tiny_config.run_dir, EvaluateConfig(part="train"))
    assert figures["tokens"] == 2376 - 1  # nine tenths of 2640 characters
    assert "zlib_bits_per_byte" not in figures


def test_test_part_is_evaluated_where_there_is_one(tiny_config, monkeypatch):
    train(tiny_config)
    with pytest.raises(InputError, match="has no test part; give --part validation"):
        evaluate_run(tiny_config.run_dir, EvaluateConfig(part="test"))
    load_data = saved_run_module.load_data

    def with_test(*args):
        data = load_data(*args)
        return replace(data, test=data.train)

    monkeypatch.setattr(saved_run_module, "load_data", with_test)
    figures = evaluate_run(tiny_config.run_dir, EvaluateConfig(part="test"))
    train_figures = evaluate_run(tiny_config.run_dir, EvaluateConfig(part="train"))
    assert figures == {**train_figures, "part": "test"}


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_dynamic_evaluation_leaves_the_files_alone_and_helps(tiny_config, rule):
    train(tiny_config)
    before = files(tiny_config.run_dir)
    fixed = evaluate_run(tiny_config.run_dir)
    lr = 0.3 if rule == "sgd" else 1e-3
    config = EvaluateConfig(dynamic=DynamicConfig(lr=lr, rule=rule))
    assert evaluate_run(tiny_config.run_dir, config)["loss"] < fixed["loss"] - 0.05
    assert files(tiny_config.run_dir) == before


@pytest.mark.parametrize("changes", [{"stride": 2}, {"streams": 1}, {"precision": "bfloat16"}])
def test_readings_of_fixed_parameters_are_refused_with_dynamic_evaluation(changes):
    with pytest.raises(InputError, match="instead"):
        EvaluateConfig(dynamic=DynamicConfig(lr=1.0), **changes)
