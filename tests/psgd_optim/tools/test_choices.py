import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from psgd_optim import InputError
from psgd_optim.config import (
    OPTIMIZERS,
    AdamWConfig,
    KronForm,
    LowRankForm,
    OptimizerConfig,
    PeerConfig,
    PSGDConfig,
)
from psgd_optim.tools.choices import (
    choice_from_dict,
    choice_name,
    config_from_dict,
    config_to_dict,
)
from psgd_optim.tools.run_folder import RunFolder, first_difference


@dataclass(frozen=True, kw_only=True)
class Sizes:
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (0.5, "x")


@dataclass(frozen=True, kw_only=True)
class Config:
    optim: OptimizerConfig = field(default_factory=PSGDConfig)
    sizes: Sizes = field(default_factory=Sizes)
    path: Path = Path("runs/x")
    limit: float | None = None
    other: Path | None = None
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Person:
    name: str = "no choice"
    kind: ClassVar[str] = "person"


EXAMPLES = [
    Config(),
    Config(
        optim=PSGDConfig(form=LowRankForm(rank=3)),
        sizes=Sizes(widths=(4,), pair=(math.inf, "y")),
        path=Path("a/b"),
        limit=0.25,
        other=Path("c"),
        mode="b",
    ),
    *(Config(optim=optim) for optim in OPTIMIZERS.values()),
]


@pytest.mark.parametrize("config", EXAMPLES)
def test_json_and_back_is_the_same(config: Config) -> None:
    values = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(Config, values) == config


def test_every_choice_keeps_its_name() -> None:
    values = config_to_dict(Config())
    assert values["optim"]["name"] == "psgd"
    assert values["optim"]["form"]["name"] == "kron"
    assert values["optim"]["criterion"]["name"] == "momentum"
    assert "name" not in values["sizes"]
    assert config_to_dict(AdamWConfig())["name"] == "adamw"


def test_a_field_called_name_is_no_choice() -> None:
    assert choice_name(Person()) is None
    assert choice_name(3) is None
    assert choice_name(KronForm) == choice_name(KronForm()) == "kron"
    assert config_to_dict(Person()) == {"name": "no choice"}
    assert config_from_dict(Person, {"name": "x"}) == Person("x")


def test_choices_are_found_by_name() -> None:
    for optim in OPTIMIZERS.values():
        assert choice_from_dict(OPTIMIZERS, config_to_dict(optim)) == optim
    with pytest.raises(InputError, match="part named adamv; did you mean adamw"):
        choice_from_dict(OPTIMIZERS, {"name": "adamv"})


def test_what_is_missing_takes_its_default_and_what_is_unknown_is_refused() -> None:
    assert config_from_dict(Config, {"limit": 2}) == Config(limit=2)
    assert config_from_dict(AdamWConfig, {"lr": 0.5}) == AdamWConfig(lr=0.5)
    for values, message in (
        ({"optim": {"name": "adamw", "gamma": 1}}, "adamw was saved with the setting gamma"),
        ({"steps": 1}, "Config was saved with the setting steps"),
        ({"optim": {"lr": 1.0}}, "part named None"),
    ):
        with pytest.raises(InputError, match=message):
            config_from_dict(Config, values)
    with pytest.raises(InputError, match="settings of peer, not of adamw"):
        config_from_dict(AdamWConfig, config_to_dict(PeerConfig()))


def test_another_form_is_another_run(tmp_path: Path) -> None:
    first, second = Config(), Config(optim=PSGDConfig(form=LowRankForm()))
    found: Any = first_difference(config_to_dict(first), config_to_dict(second))
    assert found == "optim.form.name = kron, got low-rank"
    RunFolder(tmp_path / "run", "app", first).close()
    with pytest.raises(InputError, match=r"started with optim\.form\.name = kron, got low-rank"):
        RunFolder(tmp_path / "run", "app", second, resume=True)
