"""What every optimizer starts from in each preset.

An entry is an optimizer's settings; or several fields of `TrainConfig`, for one that steps only
some of the parameters; or a function that returns settings, for one whose package need not be
installed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from psgd_optim.config import (
    OPTIMIZERS,
    AdamWConfig,
    KronForm,
    MuonConfig,
    OptimizerConfig,
    PeerConfig,
    PSGDConfig,
    SGDConfig,
)

Entry = OptimizerConfig | Mapping[str, Any] | Callable[[], OptimizerConfig]


def _for_matrices(optim: OptimizerConfig, rest: AdamWConfig) -> Mapping[str, Any]:
    """Return an optimizer for the matrices, and another one for everything else."""
    return {"optim": optim, "embedding": rest, "head": rest, "vector": rest}


def _soap(lr: float) -> Callable[[], OptimizerConfig]:
    return lambda: PeerConfig(target="pytorch_optimizer.SOAP", lr=lr)


_BETAS_3 = {"beta1": 0.8, "beta2": 0.95}

TRACK3_AUXILIARY: Mapping[str, Any] = {
    "embedding": AdamWConfig(lr=0.3, **_BETAS_3),
    "head": AdamWConfig(lr=1 / 320, **_BETAS_3),
    "vector": AdamWConfig(lr=0.01, **_BETAS_3),
}
"""AdamW beside the matrices' optimizer in track 3 of modded-nanogpt."""

_PTB_SGD = SGDConfig(lr=30.0, weight_decay=1.2e-6)


def _ptb(adam_lr: float) -> dict[str, Entry]:
    """Return settings for AWD-LSTM's model, from AdaBelief's comparison; psgd's are not tuned."""
    return {
        "psgd": PSGDConfig(lr=1e-3),
        "sgd": _PTB_SGD,
        "adam": PeerConfig(target="torch.optim.Adam", lr=adam_lr, weight_decay=1.2e-6),
        "adamw": AdamWConfig(lr=1e-3, beta2=0.999),
    }


# Nothing was tried; psgd has the learning rate that was best at 0.8 M parameters and context 64.
_PAPER: dict[str, Entry] = {
    "psgd": PSGDConfig(lr=1e-3),
    "adamw": AdamWConfig(lr=1e-3),
    "sgd": SGDConfig(lr=0.1, momentum=0.9),
}

# AdamW's betas and a rate that suits it at these sizes; nothing was tried.
COMMON: dict[str, Entry] = {
    "muon": _for_matrices(MuonConfig(lr=MuonConfig().lr), AdamWConfig()),
    "newton": {"optim": OPTIMIZERS["newton"], "grad_clip": 0.0},
    "soap": _soap(3e-3),
}
"""What a comparison runs under names that need more than an optimizer's defaults, in presets that
say nothing else."""

TUNED: dict[str, dict[str, Entry]] = {
    # Tried with seed 0; final validation loss by learning rate:
    #   psgd   1e-3 1.366, 1.4e-3 1.342, 2e-3 1.362
    #   adamw  2.5e-3 1.616, 4e-3 1.599, 6e-3 1.626
    # On an earlier, easier text, weight decay 0.1, beta2 0.95 or no grad_clip did not help adamw.
    "embedded": {"psgd": PSGDConfig(lr=1.4e-3), "adamw": AdamWConfig(lr=4e-3)},
    "smoke": {"psgd": PSGDConfig(lr=1e-2), "adamw": AdamWConfig(lr=1e-2)},
    # Tried with seed 0; final validation loss by learning rate:
    #   psgd   1e-3 1.623;  adamw  1e-3 (nanoGPT's) 1.907, 3e-3 1.775, 5e-3 1.800
    #   psgd-dense  1e-3 1.586; with momentum 0.9 and the default geometry 1.590, also with adamw at
    #   1e-3 for the rest 1.592, with weight decay 1 1.597; the rate down to 0 1.589, from 1.4e-3
    #   1.586; without grad_clip 1.585. Seeds differ by about 0.01.
    #   psgd-matrices  1e-3, 900 steps: 1.739
    "shakespeare-cpu": {
        "psgd": PSGDConfig(lr=1e-3),
        "psgd-dense": _for_matrices(
            PSGDConfig(
                lr=1e-3,
                form=KronForm(max_skew=float("inf"), geometry="QUAD"),
                momentum=0.95,
                nesterov=True,
            ),
            AdamWConfig(lr=3e-3),
        ),
        # Fitted less often, and beside the next pass: 740 steps 1.760.
        "psgd-quick": _for_matrices(
            PSGDConfig(
                lr=1e-3,
                form=KronForm(max_skew=float("inf"), geometry="QUAD"),
                momentum=0.95,
                nesterov=True,
                update_prob=0.05,
                update_every_step_for=100,
                update_prob_fall=200,
                overlap=True,
            ),
            AdamWConfig(lr=3e-3),
        ),
        "psgd-matrices": _for_matrices(
            PSGDConfig(lr=1e-3, momentum=0.95, nesterov=True), AdamWConfig(lr=3e-3)
        ),
        "adamw": AdamWConfig(lr=3e-3),
        "muon": _for_matrices(MuonConfig(lr=1e-2), AdamWConfig(lr=3e-3)),
        "soap": _soap(3e-3),
    },
    # adamw is nanoGPT's; nothing else was tried, the run takes a GPU.
    "shakespeare-char": {
        "psgd": PSGDConfig(lr=1e-3, weight_decay=0.1),
        "adamw": AdamWConfig(lr=1e-3, weight_decay=0.1),
    },
    "paper-0.8m": _PAPER,
    "paper-1.6m": _PAPER,
    "paper-6.4m": _PAPER,
    "ptb-1": _ptb(1e-3),
    "ptb-2": _ptb(1e-2),
    "ptb-3": _ptb(1e-2),
    "ptb-awd": _ptb(1e-2),
    "ptb-char": {
        "psgd": PSGDConfig(lr=1e-3),
        "adam": PeerConfig(target="torch.optim.Adam", lr=2e-3, weight_decay=1.2e-6),
    },
    "wt2-awd": _ptb(1e-2),
    "wt2-basic": {
        "psgd": PSGDConfig(lr=1e-3),
        "sgd": SGDConfig(lr=20.0),
        "adamw": AdamWConfig(lr=1e-3),
    },
    # Those of psgd_torch's example; not tried here.
    "tiny-gpt-psgd": {
        "psgd": PSGDConfig(
            lr=2.5e-4,
            form=KronForm(max_skew=2.0),
            weight_decay=1e-2,
            precond_lr=0.1,
            update_prob=0.01,
            clip_rms=2.0,
        ),
        "adamw": AdamWConfig(lr=1e-3, beta2=0.999, weight_decay=1e-2),
    },
    # adamw is nanoGPT's, psgd has the rates that kron_torch advises for it; not tried here.
    "gpt2-124m": {
        "psgd": PSGDConfig(lr=5e-4, weight_decay=0.625),
        "adamw": AdamWConfig(lr=6e-4, beta2=0.95, weight_decay=0.1),
    },
    # Track 3's; not tried here. Its step size of Q is 1, ours is below.
    "gpt2-124m-3.28": {
        "psgd": PSGDConfig(
            lr=0.025,
            form=KronForm(max_skew=float("inf")),
            momentum=0.95,
            decay="hyperball",
            precond_lr=0.9,
            precond_lr_final=0.9,
            update_prob=1.0,
        ),
        "muon": MuonConfig(lr=0.025),
        "adamw": AdamWConfig(lr=1.5e-3, beta2=0.95),
    },
}
"""By preset and name."""
