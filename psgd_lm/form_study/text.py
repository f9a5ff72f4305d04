"""A character GPT of 109 thousand parameters on the embedded corpus: whitening, many shapes."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from psgd_lm.batches import Batch, Windows
from psgd_lm.data import DataConfig, TextData, load_data
from psgd_lm.form_study.competitors import BETAS, adamw, whitening
from psgd_lm.form_study.trial import Candidate, Optimizers, Problem, Trial
from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import token_losses
from psgd_optim import (
    BlockTriangular,
    Diagonal,
    DirectSum,
    GradientWhitening,
    Joint,
    Kron,
    LowRank,
    Permutation,
    SparseLU,
    Split,
    by_name,
)
from psgd_optim.affine import to_affine
from psgd_optim.axis_plan import SCAN, SCAW, AxisPlan
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.diagonal import Scalar
from psgd_optim.geometry import EQ, QUAD
from psgd_optim.permutation_groups import BUTTERFLY
from psgd_optim.scope import Scope, by_axes

CONTEXT = 32
# Biases, so that the affine plans have a column for the constant 1; the same for everybody.
MODEL = GPTConfig(layers=2, heads=4, width=64, context=CONTEXT, bias=True)
SEED_OF_VALIDATION = 1_000_000


@functools.cache
def _data() -> TextData:
    return load_data(DataConfig(), CONTEXT)


def start(seed: int, prepare: Callable[[nn.Module], nn.Module]) -> Trial:
    """Return the GPT of a seed and its windows of text."""
    data = _data()
    torch.manual_seed(seed)
    model = prepare(GPT(MODEL, data.tokenizer.vocab_size))
    batches = Windows(data.train, context=CONTEXT, batch_size=8, seed=seed)
    # The same 8192 tokens for all.
    held_out = Windows(
        data.validation, context=CONTEXT, batch_size=256, seed=SEED_OF_VALIDATION
    ).at(0)

    def mean_loss(batch: Batch) -> Tensor:
        return token_losses(model(batch.inputs).logits, batch.targets).mean()

    def evaluate() -> float:
        with torch.no_grad():
            return float(mean_loss(held_out))

    return Trial(model=model, loss=lambda step: mean_loss(batches.at(step)), evaluate=evaluate)


def _muon() -> Candidate:
    """Return Muon for the hidden matrices and AdamW for the rest, at one learning rate."""

    def build(model: nn.Module, lr: float, gate: float) -> Optimizers:
        named = list(model.named_parameters())
        hidden = [p for name, p in named if p.ndim == 2 and "embedding" not in name]
        rest = [p for name, p in named if p.ndim < 2 or "embedding" in name]
        return [
            torch.optim.Muon(hidden, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr, BETAS, weight_decay=0.0),
        ]

    return Candidate(name="Muon + AdamW", build=build)


def _for_affine(plan: AxisPlan) -> Scope:
    return DirectSum(
        (by_name("*embedding.weight"), Kron()),
        (by_axes(2, 2), Kron(plan=plan, geometry=EQ)),
        otherwise=Diagonal(),
    )


PROBLEM = Problem(
    about="character GPT, 109 thousand parameters, embedded corpus; validation loss, nats",
    steps=200,
    lrs=(1.5e-3, 4e-3, 1e-2),
    start=start,
    candidates=(
        adamw(),
        _muon(),
        whitening("Kron()", Kron()),
        whitening("Kron, all axes dense", Kron(max_skew=math.inf)),
        whitening("Kron, QUAD", Kron(geometry=QUAD)),
        whitening("Kron, GradientWhitening", Kron(), criterion=GradientWhitening()),
        whitening("Kron, all axes diagonal", Kron(max_size=0)),
        whitening("Split(Kron dense, 32)", Split(Kron(max_skew=math.inf), 32)),
        whitening("SCAW on [W, b]", _for_affine(SCAW), to_affine),
        whitening("SCAN on [W, b]", _for_affine(SCAN), to_affine),
        whitening("Diagonal", Diagonal()),
        whitening("ClosedDiagonal", ClosedDiagonal()),
        whitening("Scalar", Scalar()),
        whitening("Joint(LowRank(10))", Joint(LowRank())),
        whitening("LowRank(10) per tensor", LowRank()),
        whitening("Joint(SparseLU(10))", Joint(SparseLU())),
        whitening("Joint(X-matrix)", Joint(Permutation())),
        whitening("Joint(butterfly)", Joint(Permutation(group=BUTTERFLY))),
        whitening("Joint(arrow(10))", Joint(BlockTriangular())),
    ),
)
