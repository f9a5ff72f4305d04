"""bench_lm.py at toy size, and beside a stand-in for a nanoGPT checkout."""

import json
from pathlib import Path

import pytest
import torch
from lm_bench.loops import EVALUATION, TRAINING, nanogpt_loop, piece_of
from lm_bench.study import BenchConfig, run_bench
from step_bench.timing import silence

from psgd_lm.data import load_data
from psgd_lm.presets import PRESETS
from psgd_lm.tokens import InMemory
from psgd_optim.types import InputError

MODEL = """
import json
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

seen = []

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        print("a line nobody wants to see")
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, x, targets):
        seen.append((tuple(x.shape), self.training, torch.is_grad_enabled()))
        Path(__file__).with_name("seen.json").write_text(json.dumps(seen))
        logits = self.table(x)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def test_all_loops_are_timed_in_one_run(tmp_path, checkout, capsys):
    config = BenchConfig(
        preset="smoke", nanogpt=checkout, threads=1, repeats=2, device="cpu", out=tmp_path / "out"
    )
    told: list[str] = []
    table = run_bench(config, "python scripts/bench_lm.py", told.append)
    assert len(told) == 3
    assert capsys.readouterr().out == ""
    lines = table.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "nanoGPT, adamw",
        "psgd_lm, adamw",
        "psgd_lm, psgd",
    ] * 2
    assert lines[2].endswith("| 1.00 |")
    assert table in (tmp_path / "out.md").read_text()
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["batch"] == [4, 16]
    assert len(record["milliseconds"]) == 6
    assert all(len(times["wall"]) == 2 for times in record["milliseconds"].values())


def test_nanogpt_steps_in_training_mode_and_is_evaluated_without_gradients(checkout):
    config = PRESETS["smoke"]
    data = load_data(config.data, config.model.context)
    with silence():
        loop = nanogpt_loop(checkout, config, data, torch.device("cpu"))
    loop[EVALUATION]()
    loop[TRAINING]()
    seen = json.loads((checkout / "seen.json").read_text())
    assert seen == [[[4, 16], False, False], [[4, 16], True, True]]


@pytest.mark.parametrize("count", [3, 10, 25])
def test_a_piece_is_as_long_as_asked_for(count):
    tokens = InMemory(torch.arange(10))
    assert piece_of(tokens, count).ids.tolist() == [i % 10 for i in range(count)]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no preset 'smok'; did you mean"):
        BenchConfig(preset="smok")
    with pytest.raises(InputError, match="repeats 0; give --repeats 1 or more"):
        BenchConfig(repeats=0)
    config = BenchConfig(preset="smoke", nanogpt=tmp_path, device="cpu", out=tmp_path / "out")
    with pytest.raises(InputError, match="give --nanogpt the folder of a nanoGPT checkout"):
        run_bench(config, "", print)
