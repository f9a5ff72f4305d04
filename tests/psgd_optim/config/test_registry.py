from dataclasses import replace

import pytest
import torch
from torch import nn

from psgd_optim import PSGD, InputError
from psgd_optim.config import (
    OPTIMIZERS,
    AdamWConfig,
    MuonConfig,
    OptimizerConfig,
    PSGDConfig,
    SGDConfig,
    build,
)
from psgd_optim.named import kron_newton
from psgd_optim.tools.stepping import take_step


def deep_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_built_by_name_and_lowers_a_loss(name: str) -> None:
    model = deep_model()
    x, y = torch.randn(8, 4), torch.randn(8, 3)
    optimizer = build(model.named_parameters(), OPTIMIZERS[name])
    losses = [
        take_step(optimizer, model.parameters(), lambda: (model(x) - y).square().mean(), 0.0)
        for _ in range(4)
    ]
    assert losses[-1] < losses[0]


def test_a_configuration_has_its_name_or_is_settings_of_another() -> None:
    others = {name: config.name for name, config in OPTIMIZERS.items() if config.name != name}
    assert others == {"newton": "psgd"}


@pytest.mark.parametrize(
    "config",
    [PSGDConfig(weight_decay=0.1), AdamWConfig(weight_decay=0.1), SGDConfig(weight_decay=0.1)],
)
def test_only_parameters_with_two_axes_decay(config: OptimizerConfig) -> None:
    model = nn.Linear(4, 3)
    decay = {
        p: group["weight_decay"]
        for group in build(model.named_parameters(), config).param_groups
        for p in group["params"]
    }
    assert decay == {model.weight: 0.1, model.bias: 0.0}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(4, 3)
    model.weight.requires_grad_(False)
    groups = build(model.named_parameters(), PSGDConfig()).param_groups
    assert [p for group in groups for p in group["params"]] == [model.bias]


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (PSGDConfig, "lr", -1.0),
        (AdamWConfig, "lr", -1.0),
        (AdamWConfig, "beta2", 1.0),
        (AdamWConfig, "weight_decay", -0.5),
        (SGDConfig, "momentum", -1.0),
        (SGDConfig, "lr", 0.0),
        (MuonConfig, "iterations", 100),
        (MuonConfig, "momentum", -0.5),
    ],
)
def test_settings_outside_their_range_are_refused_when_they_are_made(
    kind: type, setting: str, value: float
) -> None:
    with pytest.raises(InputError, match=str(value)):
        kind(**{setting: value})


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(InputError, match="sgd: Nesterov momentum requires a momentum"):
        SGDConfig(nesterov=True)


def test_muon_refuses_what_is_no_matrix_and_says_where_to_put_it() -> None:
    with pytest.raises(InputError, match=r"shape \(3,\); give .* --vector adamw"):
        build(nn.Linear(4, 3).named_parameters(), MuonConfig())


def test_muon_is_torchs() -> None:
    config = MuonConfig(lr=0.3, momentum=0.5, nesterov=False, adjust="match-rms-adamw")
    models = [deep_model(), deep_model()]
    plain = torch.optim.Muon(
        models[1].parameters(),
        lr=0.3, momentum=0.5, nesterov=False, weight_decay=0.0, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    for model, optimizer in zip(
        models, (build(models[0].named_parameters(), config), plain), strict=True
    ):
        for _ in range(3):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_newton_is_the_named_optimizer() -> None:
    ours = build(nn.Linear(4, 3).named_parameters(), OPTIMIZERS["newton"])
    named = kron_newton(nn.Linear(4, 3).parameters())
    assert isinstance(ours, PSGD)
    for part in ("form", "criterion", "clip"):
        assert getattr(ours, part) == getattr(named, part)
    for name in ("lr", "momentum", "weight_decay"):
        assert ours.param_groups[0][name] == named.param_groups[0][name]
    for step in (0, 1, 5000):
        assert ours.fitting.rate(0, step) == named.fitting.rate(0, step)


def test_a_configuration_can_be_changed_and_compared() -> None:
    assert replace(PSGDConfig(), lr=0.5) == PSGDConfig(lr=0.5)
    assert PSGDConfig(lr=0.5) != PSGDConfig()
