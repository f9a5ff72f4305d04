from dataclasses import replace

import pytest
import torch

from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.gpt2_files import save_gpt2
from psgd_lm.recurrent import LSTMConfig
from psgd_lm.train import train
from psgd_lm.trainee import make_model
from psgd_optim.config import OPTIMIZERS, NewtonCriterion
from psgd_optim.types import InputError
from tests.psgd_lm.run_files import checkpoint

NEWTON = OPTIMIZERS["newton"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": NEWTON}, "give --grad-clip 0 and set the optimizer's own"),
        (
            {"optim": NEWTON, "grad_clip": 0.0, "precision": "float16"},
            "give --precision bfloat16 or float32",
        ),
        (
            {
                "optim": replace(NEWTON, criterion=NewtonCriterion(source="finite-difference")),
                "grad_clip": 0.0,
                "precision": "bfloat16",
            },
            "by finite differences, .* give --precision float32 or exact products",
        ),
        ({"model": LSTMConfig(context=8), "compile": True}, "--compile with a recurrent model"),
        (
            {"model": LSTMConfig(context=8), "precision": "float16", "device": "cpu"},
            "float16 with an LSTM on a CPU",
        ),
        ({"variable_length": True}, "--variable-length with a model that carries no memory"),
        ({"epochs": 0.01, "steps": 0}, r"--schedule.warmup less than the \d steps"),
    ],
)
def test_settings_that_do_not_go_together_leave_no_folder(tiny_config, changes, message):
    config = replace(tiny_config, **changes)
    with pytest.raises(InputError, match=message) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert not config.run_dir.exists()


@pytest.fixture
def gpt2(tmp_path):
    torch.manual_seed(7)
    config = GPTConfig(layers=1, heads=2, width=16, context=16, bias=True, activation="gelu-tanh")
    model = GPT(config, vocab_size=28)
    save_gpt2(model, tmp_path / "gpt2")
    return model


def test_a_run_starts_from_the_files_it_names(tiny_config, tmp_path, gpt2):
    model = replace(gpt2.config, dropout=0.1)
    config = replace(tiny_config, model=model, init_from=tmp_path / "gpt2")
    found = make_model(config, 28)
    assert found.config.dropout == 0.1
    for name, value in gpt2.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    still = replace(config, optim=replace(config.optim, lr=1e-6), steps=3)
    train(replace(still, schedule=replace(still.schedule, warmup=0)))
    trained = checkpoint(config)["model"]["position_embedding.weight"]
    torch.testing.assert_close(trained, gpt2.position_embedding.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 2}, r"layers = 1, got 2; give --model"),
        ({"bias": False}, r"bias = True, got False; give --model"),
    ],
)
def test_files_of_another_model_are_refused(tiny_config, tmp_path, gpt2, changes, message):
    model = replace(gpt2.config, **changes)
    with pytest.raises(InputError, match=message):
        make_model(replace(tiny_config, model=model, init_from=tmp_path / "gpt2"), 28)


def test_files_with_other_tokens_are_refused(tiny_config, tmp_path, gpt2):
    config = replace(tiny_config, model=gpt2.config, init_from=tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"of 28 tokens, the text has 99; .*gpt2"):
        make_model(config, 99)
