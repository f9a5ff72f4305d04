"""A large embedding of which a step sees a few rows: bags of Zipf tokens into ten classes."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_lm.form_study.competitors import BETAS, adamw, whitening
from psgd_lm.form_study.trial import Candidate, Optimizers, Problem, Trial
from psgd_optim import Diagonal, DirectSum, Kron, TouchedRows, by_name
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.row_fit import ExactRows
from psgd_optim.scope import Scope

TOKENS, WIDTH, BAG, CLASSES = 20_000, 32, 16, 10


class BagClassifier(nn.Module):
    """Averages the embeddings of a bag of tokens and maps them to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, classes) of bags (B, tokens)."""
        logits: Tensor = self.head(self.embedding(tokens).mean(dim=1))
        return logits


def sparse_gradients(model: nn.Module) -> nn.Module:
    """Make the embedding's gradients sparse."""
    model.get_submodule("embedding").sparse = True  # type: ignore[assignment]
    return model


@functools.cache
def _truth() -> tuple[Tensor, Tensor]:
    """Return the tokens' frequencies, and what each says of the classes."""
    rng = torch.Generator().manual_seed(7)
    frequencies = 1.0 / torch.arange(1, TOKENS + 1)
    return frequencies, torch.randn(TOKENS, CLASSES, generator=rng)


def bags(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw bags (B, tokens) and their classes (B,)."""
    frequencies, meaning = _truth()
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(frequencies, count * BAG, replacement=True, generator=rng)
    tokens = tokens.view(count, BAG)
    return tokens, meaning[tokens].sum(dim=1).argmax(dim=1)


def start(seed: int, prepare: Callable[[nn.Module], nn.Module]) -> Trial:
    """Return the classifier of a seed and its bags."""
    torch.manual_seed(seed)
    model = prepare(BagClassifier())

    def loss_of(tokens: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens), classes)

    def evaluate() -> float:
        with torch.no_grad():
            return float(loss_of(*bags(4000, 0)))

    return Trial(
        model=model,
        loss=lambda step: loss_of(*bags(64, 10_000 * (seed + 1) + step)),
        evaluate=evaluate,
    )


def _sparse_adam() -> Candidate:
    def build(model: nn.Module, lr: float, gate: float) -> Optimizers:
        embedding, *head = model.parameters()
        return [
            torch.optim.SparseAdam([embedding], lr, BETAS),
            torch.optim.AdamW(head, lr, BETAS, weight_decay=0.0),
        ]

    return Candidate(name="SparseAdam + AdamW", build=build, prepare=sparse_gradients)


def _touched(form: TouchedRows) -> Scope:
    return DirectSum((by_name("embedding.*"), form), otherwise=Kron())


PROBLEM = Problem(
    about="bags of 16 Zipf tokens of 20 000, embedding of width 32, 10 classes; test loss, nats",
    steps=200,
    lrs=(1e-2, 3e-2, 1e-1),
    start=start,
    candidates=(
        adamw(),
        _sparse_adam(),
        whitening("TouchedRows()", _touched(TouchedRows()), sparse_gradients),
        whitening(
            "TouchedRows, exact rows", _touched(TouchedRows(rows=ExactRows())), sparse_gradients
        ),
        whitening(
            "TouchedRows, diagonal columns",
            _touched(TouchedRows(columns=DIAGONAL)),
            sparse_gradients,
        ),
        whitening("Kron()", Kron()),
        whitening("Kron, all axes diagonal", Kron(max_size=0)),
        whitening("Diagonal", Diagonal()),
    ),
)
