"""Parts of a configuration chosen by name on the command line."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from _choices import choice_flags, choose
from _cli import parse, parse_flags

from psgd_lm.schedules import SCHEDULES, Cosine, Linear, Schedule
from psgd_optim import InputError
from psgd_optim.config import (
    OPTIMIZER_PARTS,
    OPTIMIZERS,
    AdamWConfig,
    KronForm,
    LowRankForm,
    NewtonCriterion,
    OptimizerConfig,
    PermutationForm,
    PSGDConfig,
)


@dataclass(frozen=True, kw_only=True)
class Other:
    name: ClassVar[str] = "other"
    form: str = "no choice here"


@dataclass(frozen=True, kw_only=True)
class Config:
    optim: OptimizerConfig = field(default_factory=PSGDConfig)
    small_ones: OptimizerConfig | Other = field(default_factory=Other)
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=2))
    steps: int = 20

    def __post_init__(self) -> None:
        self.schedule.check(self.steps)


CHOICES = {
    **OPTIMIZER_PARTS,
    "optim": OPTIMIZERS,
    "small_ones": {"other": Other(), **OPTIMIZERS},
    "schedule": SCHEDULES,
}
TUNED = {"tiny": {"adamw": AdamWConfig(lr=0.25), "newton": PSGDConfig(lr=0.75)}}


def parsed(line: str) -> Config:
    return parse(
        {"tiny": Config()},
        ["tiny", *line.split()],
        prog="x",
        about={"tiny": ""},
        choices=CHOICES,
        tuned=TUNED,
    )


def test_names_of_parts_and_of_parts_of_parts() -> None:
    config = parsed("--optim.form low-rank --optim.form.rank 3 --optim.criterion=newton")
    assert config == Config(optim=PSGDConfig(form=LowRankForm(rank=3), criterion=NewtonCriterion()))
    assert parsed("--optim.form butterfly").optim == PSGDConfig(
        form=PermutationForm(group="butterfly")
    )


def test_the_order_of_flags_does_not_matter_but_the_last_of_two_wins() -> None:
    first = parsed("--optim.form.rank 3 --optim.form low-rank --optim psgd")
    assert first.optim == PSGDConfig(form=LowRankForm(rank=3))
    assert parsed("--optim adamw --optim=psgd").optim == PSGDConfig()


def test_a_preset_has_settings_of_its_own_for_a_name() -> None:
    assert parsed("--optim adamw").optim == AdamWConfig(lr=0.25)
    assert parsed("--small-ones adamw --small-ones.beta1 0.5").small_ones == AdamWConfig(
        lr=0.25, beta1=0.5
    )
    assert parsed("--optim newton").optim == PSGDConfig(lr=0.75)
    # The same name stands for a criterion elsewhere.
    assert parsed("--optim.criterion newton").optim == PSGDConfig(criterion=NewtonCriterion())


def test_settings_that_both_choices_inherit_carry_over() -> None:
    assert parsed("--schedule linear").schedule == Linear(warmup=2)
    assert parsed("--schedule linear --schedule.warmup 4").schedule == Linear(warmup=4)


def test_the_whole_is_checked_once_all_flags_are_applied() -> None:
    assert parsed("--schedule wsd --schedule.decay 0.95 --schedule.warmup 1").steps == 20
    with pytest.raises(InputError, match=r"give --schedule.warmup at most"):
        parsed("--schedule wsd --schedule.decay 0.95")


def test_flags_are_those_of_what_is_chosen() -> None:
    chosen, rest = choose(Config(), ["--optim", "adamw", "--steps", "3"], CHOICES)
    assert rest == ["--steps", "3"]
    assert choice_flags(chosen, CHOICES).keys() == {"--optim", "--small-ones", "--schedule"}
    flags = choice_flags(Config(), CHOICES)
    assert list(flags)[:3] == ["--optim", "--optim.form", "--optim.criterion"]
    assert flags["--optim"] == list(OPTIMIZERS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--optim adamv", r"no --optim 'adamv'; did you mean adamw\?"),
        ("--optim.form.kind x", r"no flag --optim.form.kind"),
        ("--schedul wsd", r"no flag --schedul; did you mean --schedule\?"),
        ("--optim adamw --optim.form kron", r"no flag --optim.form"),
        ("--schedule", r"--schedule got no name; give one of: cosine, linear"),
        ("--schedule=", r"--schedule got no name"),
    ],
)
def test_what_is_not_known_is_refused(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(line)


def test_help_lists_names_below_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--optim.form dense --help")
    out = capsys.readouterr().out
    assert "--optim.form.triangular" in out
    assert "--optim.form NAME: kron, kron-dense, scan" in out
    assert out.index("--steps") < out.index("--schedule NAME: cosine")


def test_nothing_is_chosen_without_choices() -> None:
    config = parse_flags(Config(), ["--optim.form.max-skew", "2"], prog="x")
    assert config.optim == PSGDConfig(form=KronForm(max_skew=2.0))
    with pytest.raises(InputError, match="no flag --optim"):
        parse_flags(Config(), ["--optim", "adamw"], prog="x")
