"""Good runs by name: what to train on what text.

The sizes and settings are those that the field compares by; `tuned` has what every optimizer
starts from in each of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from psgd_lm.averaging import AverageConfig
from psgd_lm.config import TrainConfig
from psgd_lm.data import DataConfig
from psgd_lm.gpt import SIZES, GPTConfig
from psgd_lm.models import MODELS
from psgd_lm.recurrent import AWD_LSTM, LSTMConfig
from psgd_lm.routing import ROUTES
from psgd_lm.schedules import SCHEDULES, Constant, Cosine, Linear, Plateau, Steps
from psgd_lm.tuned import TRACK3_AUXILIARY, TUNED
from psgd_optim.config import OPTIMIZER_PARTS, OPTIMIZERS

__all__ = ["ABOUT", "CHOICES", "PRESETS", "TUNED"]

CHOICES: Mapping[str, Mapping[str, object]] = {
    **OPTIMIZER_PARTS,
    "model": MODELS,
    "optim": OPTIMIZERS,
    "embedding": ROUTES,
    "head": ROUTES,
    "vector": ROUTES,
    "schedule": SCHEDULES,
}
"""What the parts of a run can be, by field and name."""

ABOUT = {
    "embedded": "0.8 M parameters on text that needs no download; a minute or two on a CPU",
    "smoke": "a few thousand parameters; under a second, to see what a run writes",
    "shakespeare-cpu": "nanoGPT's CPU run; needs --data.path FILE; some minutes on a CPU",
    "shakespeare-char": "nanoGPT's GPU run, 10.7 M parameters; needs --data.path FILE",
    "paper-0.8m": "the PSGD paper's character GPT; needs --data.path FILE (tiny Shakespeare)",
    "paper-1.6m": "the same with 8 layers",
    "paper-6.4m": "the same with 8 layers of width 256",
    "ptb-1": "AWD-LSTM's model with 1 layer, 200 epochs; needs --data.path FOLDER with the PTB",
    "ptb-2": "the same with 2 layers",
    "ptb-3": "the same with 3 layers",
    "ptb-awd": "AWD-LSTM with NT-ASGD, 500 epochs; needs --data.path FOLDER with the PTB",
    "ptb-char": "AWD-LSTM on the PTB by characters, blanks between them; needs --data.path FOLDER",
    "wt2-awd": "AWD-LSTM on WikiText-2, 750 epochs; needs --data.path FOLDER",
    "wt2-basic": "torch's word_language_model example; needs --data.path FOLDER with WikiText-2",
    "tiny-gpt-psgd": "GPT of 6 layers on WikiText-103; a GPU, and --data.path FOLDER",
    "gpt2-124m": "GPT-2 on OpenWebText as in nanoGPT; GPUs, and --data.path FOLDER",
    "gpt2-124m-3.28": "fewest steps to 3.28 on FineWeb, as in track 3 of modded-nanogpt; GPUs, "
    "and --data.path FOLDER",
}
"""What each preset is and what data it needs, in a line."""

SHAKESPEARE = DataConfig(path="input.txt")
"""The tiny-shakespeare file that nanoGPT made customary; `--data.path` says where it lies."""
PTB = DataConfig(path="ptb", tokenizer="word")
"""A folder with train.txt, valid.txt and test.txt, 10 000 words with `<unk>`."""
WIKITEXT2 = DataConfig(path="wikitext-2", tokenizer="word")
"""The same, 33 278 words."""

_SHAKESPEARE_GPU = TrainConfig(
    model=replace(SIZES["10m"], dropout=0.2),
    data=SHAKESPEARE,
    steps=5000,
    batch_size=64,
    eval_every=250,
    threads=4,
)
# 818 048, 1 611 136 and 6 368 000 parameters, as in the paper's table.
_PAPER = TrainConfig(
    model=GPTConfig(layers=4, heads=4, width=128, context=128, bias=True),
    data=SHAKESPEARE,
    steps=5000,
    batch_size=16,
    eval_every=250,
)
# AWD-LSTM's model in the setting of AdaBelief's comparison of optimizers: 200 epochs, a tenth of
# the learning rate after 100 and after 145.
_PTB = TrainConfig(
    model=AWD_LSTM,
    data=PTB,
    schedule=Steps(warmup=0, at=(0.5, 0.725), factor_each=0.1),
    steps=0,
    epochs=200,
    batch_size=20,
    variable_length=True,
    grad_clip=0.25,
    log_every=200,
    eval_every=0,
    seed=141,
)
_AWD = replace(
    _PTB, schedule=Constant(warmup=0), average=AverageConfig(start="non-monotone"), epochs=500
)

_RUNS: dict[str, TrainConfig] = {
    "embedded": TrainConfig(),
    "smoke": TrainConfig(
        model=GPTConfig(layers=1, heads=2, width=16, context=16),
        schedule=Cosine(warmup=2),
        steps=20,
        batch_size=4,
        log_every=5,
        eval_every=10,
    ),
    "shakespeare-cpu": TrainConfig(data=SHAKESPEARE, steps=2000, eval_every=250),
    "shakespeare-char": _SHAKESPEARE_GPU,
    "paper-0.8m": _PAPER,
    "paper-1.6m": replace(_PAPER, model=replace(_PAPER.model, layers=8)),
    "paper-6.4m": replace(
        _PAPER, model=GPTConfig(layers=8, heads=4, width=256, context=128, bias=True)
    ),
    "ptb-1": replace(_PTB, model=replace(AWD_LSTM, layers=1)),
    "ptb-2": replace(_PTB, model=replace(AWD_LSTM, layers=2)),
    "ptb-3": _PTB,
    "ptb-awd": _AWD,
    "ptb-char": replace(
        _PTB,
        model=LSTMConfig(
            layers=3,
            embedding=200,
            hidden=1000,
            context=150,
            input_dropout=0.1,
            hidden_dropout=0.25,
            output_dropout=0.1,
            weight_dropout=0.5,
        ),
        data=DataConfig(path="ptb-char", tokenizer="word"),
        schedule=Steps(warmup=0, at=(0.6, 0.8), factor_each=0.1),
        epochs=500,
        batch_size=128,
    ),
    "wt2-awd": replace(
        _AWD,
        model=replace(AWD_LSTM, input_dropout=0.65, hidden_dropout=0.2),
        data=WIKITEXT2,
        epochs=750,
        batch_size=80,
        seed=1882,
    ),
    "wt2-basic": replace(
        _PTB,
        model=LSTMConfig(
            layers=2,
            embedding=200,
            hidden=200,
            context=35,
            tied=False,
            input_dropout=0.2,
            hidden_dropout=0.2,
            output_dropout=0.2,
        ),
        data=WIKITEXT2,
        schedule=Plateau(warmup=0, factor_each=0.25, patience=0),
        epochs=40,
        variable_length=False,
        seed=0,
    ),
    "tiny-gpt-psgd": TrainConfig(
        model=GPTConfig(layers=6, heads=12, width=384, context=128),
        data=DataConfig(path="wikitext-103", tokenizer="gpt2"),
        schedule=Constant(warmup=0),
        steps=100_000,
        batch_size=128,
        precision="bfloat16",
        log_every=100,
        eval_every=1000,
    ),
    "gpt2-124m": TrainConfig(
        model=replace(SIZES["124m"], vocab_multiple=64),
        data=DataConfig(path="openwebtext"),
        schedule=Cosine(warmup=2000),
        steps=600_000,
        tokens_per_step=480 * 1024,
        micro_batch=12,
        precision="bfloat16",
        compile=True,
        eval_every=1000,
        checkpoint_every=250,
    ),
    "gpt2-124m-3.28": TrainConfig(
        model=GPTConfig(
            layers=12,
            heads=6,
            width=768,
            context=1024,
            activation="relu2",
            norm="rms",
            positions="rotary",
            qk_norm=True,
            tied=False,
            softcap=15.0,
            zero_projections=True,
            vocab_multiple=64,
        ),
        data=DataConfig(path="fineweb10B"),
        **TRACK3_AUXILIARY,
        schedule=Linear(warmup=0),
        steps=3400,
        tokens_per_step=512 * 1024,
        micro_batch=32,
        grad_clip=0.0,
        precision="bfloat16",
        compile=True,
        eval_every=125,
    ),
}

DEFAULTS = {"ptb-awd": "sgd", "wt2-awd": "sgd", "wt2-basic": "sgd"}
"""The optimizer of presets that are a recipe for it; psgd elsewhere."""


def _preset(name: str, run: TrainConfig) -> TrainConfig:
    entry = TUNED[name][DEFAULTS.get(name, "psgd")]
    settings = dict(entry) if isinstance(entry, Mapping) else {"optim": entry}
    return replace(run, **settings, run_dir=Path("runs") / name)


PRESETS: dict[str, TrainConfig] = {name: _preset(name, run) for name, run in _RUNS.items()}
"""Configurations by name."""
