"""Good runs by name: what to train on what text, tuned per optimizer."""

from collections.abc import Mapping
from pathlib import Path

from psgd_lm.config import TrainConfig
from psgd_lm.data import DataConfig
from psgd_lm.gpt import GPTConfig
from psgd_lm.models import MODELS
from psgd_lm.routing import ROUTES
from psgd_lm.schedules import SCHEDULES, Cosine
from psgd_optim.config import (
    OPTIMIZER_PARTS,
    OPTIMIZERS,
    AdamWConfig,
    OptimizerConfig,
    PSGDConfig,
)

SHAKESPEARE = DataConfig(path="input.txt")
"""The tiny-shakespeare file that nanoGPT made customary; `--data.path` says where it lies."""

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

TUNED: dict[str, dict[str, OptimizerConfig]] = {
    # Tried with seed 0; final validation loss by learning rate:
    #   psgd   1e-3 1.366, 1.4e-3 1.342, 2e-3 1.362
    #   adamw  2.5e-3 1.616, 4e-3 1.599, 6e-3 1.626
    # On an earlier, easier text, weight decay 0.1, beta2 0.95 or no grad_clip did not help adamw.
    "embedded": {"psgd": PSGDConfig(lr=1.4e-3), "adamw": AdamWConfig(lr=4e-3)},
    "smoke": {"psgd": PSGDConfig(lr=1e-2), "adamw": AdamWConfig(lr=1e-2)},
    # Tried with seed 0; final validation loss by learning rate:
    #   psgd   1e-3 1.623;  adamw  1e-3 (nanoGPT's) 1.907, 3e-3 1.775, 5e-3 1.800
    "shakespeare-cpu": {"psgd": PSGDConfig(lr=1e-3), "adamw": AdamWConfig(lr=3e-3)},
    # adamw is nanoGPT's; nothing else was tried, the run takes a GPU.
    "shakespeare-char": {
        "psgd": PSGDConfig(lr=1e-3, weight_decay=0.1),
        "adamw": AdamWConfig(lr=1e-3, weight_decay=0.1),
    },
}
"""Per preset, the settings that every optimizer starts from."""

ABOUT = {
    "embedded": "0.8 M parameters on text that needs no download; a minute or two on a CPU",
    "smoke": "a few thousand parameters; under a second, to see what a run writes",
    "shakespeare-cpu": "nanoGPT's CPU run; needs --data.path FILE; some minutes on a CPU",
    "shakespeare-char": "nanoGPT's GPU run, 10.7 M parameters; needs --data.path FILE",
}
"""What each preset is, in a line."""

PRESETS: dict[str, TrainConfig] = {
    "embedded": TrainConfig(optim=TUNED["embedded"]["psgd"], run_dir=Path("runs/embedded")),
    "smoke": TrainConfig(
        model=GPTConfig(layers=1, heads=2, width=16, context=16),
        optim=TUNED["smoke"]["psgd"],
        steps=20,
        batch_size=4,
        schedule=Cosine(warmup=2),
        log_every=5,
        eval_every=10,
        run_dir=Path("runs/smoke"),
    ),
    "shakespeare-cpu": TrainConfig(
        data=SHAKESPEARE,
        optim=TUNED["shakespeare-cpu"]["psgd"],
        steps=2000,
        eval_every=250,
        run_dir=Path("runs/shakespeare-cpu"),
    ),
    "shakespeare-char": TrainConfig(
        model=GPTConfig(layers=6, heads=6, width=384, context=256, dropout=0.2),
        data=SHAKESPEARE,
        optim=TUNED["shakespeare-char"]["psgd"],
        steps=5000,
        batch_size=64,
        eval_every=250,
        threads=4,
        run_dir=Path("runs/shakespeare-char"),
    ),
}
"""Configurations by name."""
