import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psgd_lm.routing import Routes, Same, build_optimizer, roles
from psgd_optim import PSGD, InputError
from psgd_optim.config import (
    AdamWConfig,
    DiagonalForm,
    MuonConfig,
    NewtonCriterion,
    PSGDConfig,
    SGDConfig,
    TouchedRowsForm,
    build,
)
from psgd_optim.tools.together import Together


class Model(nn.Module):
    """Every role once; the head is tied or not."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        if tied:
            self.head.weight = self.embedding.weight

    def loss(self) -> torch.Tensor:
        tokens = torch.arange(7)
        x = self.middle(self.norm(self.embedding(tokens))).tanh()
        return F.cross_entropy(self.head(x), tokens.roll(1))


def made(*, tied: bool = False) -> Model:
    torch.manual_seed(0)
    return Model(tied=tied)


def step(model: Model, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()


def test_every_parameter_has_a_role() -> None:
    expected = {
        "embedding.weight": "embedding",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "middle.weight": "matrix",
        "middle.bias": "vector",
        "head.weight": "head",
        "head.bias": "vector",
    }
    assert roles(made()) == expected
    del expected["head.weight"]  # the same parameter as the embedding
    assert roles(made(tied=True)) == expected
    frozen = made()
    frozen.middle.weight.requires_grad_(False)
    assert "middle.weight" not in roles(frozen)


@pytest.mark.parametrize(
    "routes",
    [
        Routes(),
        Routes(optim=AdamWConfig(weight_decay=0.1)),
        Routes(optim=AdamWConfig(), vector=AdamWConfig()),
    ],
)
def test_one_optimizer_is_what_it_always_was(routes: Routes) -> None:
    first, second = made(), made()
    ours, plain = (
        build_optimizer(first, routes, 5),
        build(second.named_parameters(), routes.optim, 5),
    )
    assert type(ours) is type(plain)
    step(first, ours)
    step(second, plain)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_roles_go_to_their_optimizers() -> None:
    model = made()
    routes = Routes(
        optim=MuonConfig(),
        embedding=AdamWConfig(lr=0.3),
        head=PSGDConfig(),
        vector=AdamWConfig(lr=0.3),
    )
    optimizer = build_optimizer(model, routes)
    assert isinstance(optimizer, Together)
    assert {name: type(part) for name, part in optimizer.optimizers.items()} == {
        "embedding+vector": torch.optim.AdamW,
        "matrix": torch.optim.Muon,
        "head": PSGD,
    }
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: part
        for part, each in optimizer.optimizers.items()
        for group in each.param_groups
        for p in group["params"]
    }
    assert found == {
        name: "embedding+vector" if role in ("embedding", "vector") else role
        for name, role in roles(model).items()
    }
    before = copy.deepcopy(model)
    step(model, optimizer, 1)
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert not torch.equal(p, q)


def test_optimizers_that_draw_random_numbers_draw_their_own() -> None:
    routes = Routes(vector=PSGDConfig(update_prob=0.5), head=AdamWConfig())
    optimizer = build_optimizer(made(), routes, 7)
    assert isinstance(optimizer, Together)
    psgds = [part for part in optimizer.optimizers.values() if isinstance(part, PSGD)]
    seeds = [part.fitting.seed for part in psgds]
    assert len(set(seeds)) == len(seeds) == 2
    assert 7 in seeds


def test_forms_by_role_are_groups_of_one_psgd() -> None:
    newton = NewtonCriterion()
    routes = Routes(
        optim=PSGDConfig(criterion=newton, lr=0.1),
        vector=PSGDConfig(criterion=newton, lr=0.2, form=DiagonalForm()),
    )
    model = made()
    optimizer = build_optimizer(model, routes)
    assert isinstance(optimizer, PSGD)
    assert optimizer.needs_closure
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.1, 0.2]
    before = model.loss()
    for _ in range(3):
        optimizer.step(model.loss)
    assert model.loss() < before


def test_newton_cannot_share_a_step() -> None:
    newton = PSGDConfig(criterion=NewtonCriterion())
    with pytest.raises(InputError, match="differentiates the loss itself"):
        build_optimizer(made(), Routes(optim=newton, vector=AdamWConfig()))
    with pytest.raises(InputError, match="differentiates the loss itself"):
        other = PSGDConfig(criterion=NewtonCriterion(), update_prob=0.5)
        build_optimizer(made(), Routes(optim=newton, vector=other))


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (Routes(optim=MuonConfig()), "embedding.weight is of the role embedding; give"),
        (Routes(optim=MuonConfig(), embedding=AdamWConfig()), "is of the role vector; give"),
        (Routes(embedding=MuonConfig()), "role embedding"),
    ],
)
def test_muon_is_for_matrices(routes: Routes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_optimizer(made(), routes)


def test_a_route_of_a_role_that_the_model_has_not_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    optimizer = build_optimizer(model, Routes(embedding=AdamWConfig()))
    assert isinstance(optimizer, PSGD)
    assert Routes().of("head") == PSGDConfig()
    assert Same() == Routes().head


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (PSGDConfig(), "psgd refuses .* embedding.weight .*give --embedding psgd --embedding.form"),
        (AdamWConfig(), "adamw refuses .*does not support sparse"),
        (PSGDConfig(form=TouchedRowsForm()), None),
        (SGDConfig(momentum=0.9), None),
    ],
)
def test_sparse_gradients_are_for_optimizers_that_take_them(embedding, message) -> None:
    model = made()
    model.embedding.sparse = True
    expected = nullcontext() if message is None else pytest.raises(InputError, match=message)
    with expected:
        build_optimizer(model, Routes(embedding=embedding))
