import pytest
import torch
from torch import nn

from psgd_optim import PSGD, Anneal, GradientWhitening, InputError, MomentumWhitening
from psgd_optim.config import OPTIMIZERS, AdamWConfig, KronConfig, build
from psgd_optim.forms.kron import Kron
from psgd_optim.geometry import QUAD
from psgd_optim.scope import Split


def test_every_optimizer_is_built_by_name_and_steps() -> None:
    for name, config in OPTIMIZERS.items():
        assert config.name == name
        model = nn.Linear(4, 3)
        optimizer = build(model.named_parameters(), config)
        assert isinstance(optimizer, torch.optim.Optimizer)
        before = model.weight.detach().clone()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(before, model.weight.detach())


@pytest.mark.parametrize("config", [KronConfig(weight_decay=0.1), AdamWConfig(weight_decay=0.1)])
def test_only_parameters_with_two_axes_decay(config: KronConfig | AdamWConfig) -> None:
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
    groups = build(model.named_parameters(), KronConfig()).param_groups
    assert [p for group in groups for p in group["params"]] == [model.bias]


def test_settings_reach_the_optimizer() -> None:
    config = KronConfig(
        lr=0.5, momentum=0.8, whiten="gradient", precond_lr=0.3, precond_lr_final=0.2,
        update_prob=0.2, update_every_step_for=7, max_size=9, max_skew=3.0, clip_rms=2.0,
        clip_element=5.0,
    )  # fmt: skip
    optimizer = build(nn.Linear(4, 3).named_parameters(), config, seed=4)
    assert isinstance(optimizer, PSGD)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["momentum"] == 0.8
    assert isinstance(optimizer.criterion, GradientWhitening)
    assert optimizer.fitting.precond_lr == Anneal(0.3, 0.2, flat=0)
    assert optimizer.fitting.gate(7) == 1.0
    assert optimizer.fitting.gate(100_000) == 0.2
    assert optimizer.fitting.seed == 4
    assert optimizer.form.max_size == 9
    assert optimizer.form.max_skew == 3.0
    assert [clip.limit for clip in optimizer.clip] == [2.0, 5.0]


def test_pieces_and_their_geometry_are_settings() -> None:
    config = KronConfig(block_size=64, geometry="QUAD", max_skew=4.0)
    optimizer = build(nn.Linear(4, 3).named_parameters(), config)
    assert isinstance(optimizer, PSGD)
    assert optimizer.form == Split(Kron(max_skew=4.0, geometry=QUAD), 64)
    with pytest.raises(InputError, match="size -1"):
        KronConfig(block_size=-1)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (KronConfig, "lr", -1.0),
        (KronConfig, "momentum", 1.5),
        (KronConfig, "precond_lr", 1.5),
        (KronConfig, "update_prob", 2.0),
        (KronConfig, "clip_rms", 0.0),
        (AdamWConfig, "lr", -1.0),
        (AdamWConfig, "beta2", 1.0),
    ],
)
def test_settings_outside_their_range_are_refused_when_they_are_made(
    kind: type, setting: str, value: float
) -> None:
    with pytest.raises(InputError, match=str(value)):
        kind(**{setting: value})


def test_the_defaults_are_those_of_the_optimizer() -> None:
    built = build(nn.Linear(4, 3).named_parameters(), KronConfig())
    plain = PSGD(nn.Linear(4, 3).parameters())
    assert isinstance(built, PSGD)
    assert isinstance(built.criterion, MomentumWhitening)
    for name in ("form", "criterion", "fitting", "clip"):
        assert getattr(built, name) == getattr(plain, name)
    for name in ("lr", "momentum", "weight_decay"):
        assert built.param_groups[0][name] == plain.param_groups[0][name]
