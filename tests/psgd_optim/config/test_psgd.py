import copy

import pytest
import torch
from torch import Tensor, nn

from psgd_optim import (
    PSGD,
    Anneal,
    Cautious,
    ClipElement,
    ClipRMS,
    Fitting,
    GradientWhitening,
    Hyperball,
    InputError,
    Kron,
    LowRank,
    MomentumWhitening,
    Newton,
)
from psgd_optim.clipping import ClipJointRMS, TrustRegion
from psgd_optim.config import (
    CRITERIA,
    FORMS,
    ArrowForm,
    CurvatureCriterion,
    DiagonalForm,
    GradientCriterion,
    KronForm,
    LowRankForm,
    NewtonCriterion,
    PermutationForm,
    PSGDConfig,
    TouchedRowsForm,
    build,
    build_psgd,
)
from psgd_optim.geometry import QUAD
from psgd_optim.scope import Joint, Split


def built(config: PSGDConfig, seed: int = 0) -> PSGD:
    optimizer = build(nn.Linear(4, 3).named_parameters(), config, seed)
    assert isinstance(optimizer, PSGD)
    return optimizer


def test_settings_reach_the_optimizer() -> None:
    config = PSGDConfig(
        lr=0.5, momentum=0.8, criterion=GradientCriterion(damping=1e-3), precond_lr=0.3,
        precond_lr_final=0.2, update_prob=0.2, update_every_step_for=7, clip_rms=2.0,
        update_prob_fall=50,
        form=KronForm(max_size=9, max_skew=3.0), clip_element=5.0, init_scale=0.7,
        spread=True, nesterov=True, max_memory_gb=2.0,
    )  # fmt: skip
    optimizer = built(config, seed=4)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["momentum"] == 0.8
    assert optimizer._group_parts[0].nesterov
    assert optimizer.criterion == GradientWhitening(damping=1e-3)
    assert optimizer.form == Kron(max_size=9, max_skew=3.0)
    assert optimizer.clip == (ClipRMS(2.0), ClipElement(5.0))
    assert optimizer.fitting == Fitting(
        precond_lr=Anneal(0.3, 0.2, flat=0), gate=Anneal(1.0, 0.2, flat=7, decay=0.02), spread=True,
        init_scale=0.7, seed=4, max_memory=2.0 * 2**30,
    )  # fmt: skip


def test_the_defaults_are_those_of_the_optimizer() -> None:
    ours, plain = built(PSGDConfig()), PSGD(nn.Linear(4, 3).parameters())
    assert isinstance(ours.criterion, MomentumWhitening)
    for name in ("form", "criterion", "fitting", "clip"):
        assert getattr(ours, name) == getattr(plain, name)
    for name in ("lr", "momentum", "weight_decay"):
        assert ours.param_groups[0][name] == plain.param_groups[0][name]


def test_the_trajectory_and_state_are_those_of_an_optimizer_built_by_hand() -> None:
    first = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    second = copy.deepcopy(first)
    ours = build(first.named_parameters(), PSGDConfig(lr=1e-2, weight_decay=0.1), seed=3)
    matrices = [p for p in second.parameters() if p.ndim == 2]
    vectors = [p for p in second.parameters() if p.ndim == 1]
    plain = PSGD(
        [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ],
        1e-2,
        fitting=Fitting(seed=3),
    )
    x = torch.randn(8, 4)
    for model, optimizer in ((first, ours), (second, plain)):
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    state, expected = ours.state_dict(), plain.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    for index, entries in expected["state"].items():
        assert entries.keys() == state["state"][index].keys()
        assert all(torch.equal(value, state["state"][index][k]) for k, value in entries.items())


def test_clips_are_the_criterions_own_but_for_those_that_are_set() -> None:
    newton = NewtonCriterion()
    assert built(PSGDConfig(criterion=newton)).clip == (ClipJointRMS(0.1),)
    changed = PSGDConfig(criterion=newton, clip_joint_rms=0.5, clip_element=3.0)
    assert built(changed).clip == (ClipJointRMS(0.5), ClipElement(3.0))
    region = PSGDConfig(criterion=CurvatureCriterion(), trust_region=0.01)
    assert built(region).clip == (ClipJointRMS(0.1), TrustRegion(0.01))
    off = PSGDConfig(clip_rms=float("inf"), clip_element=float("inf"))
    assert built(off).clip == ()


@pytest.mark.parametrize(
    ("decay", "rate", "expected"),
    [("cautious", 0.1, Cautious(0.1)), ("hyperball", 0.0, Hyperball())],
)
def test_decays_are_for_matrices_only(decay: str, rate: float, expected: object) -> None:
    optimizer = built(PSGDConfig(decay=decay, weight_decay=rate))  # type: ignore[arg-type]
    assert optimizer._group_parts[0].decay == expected
    assert optimizer._group_parts[1].decay.rate == 0.0
    assert not isinstance(optimizer._group_parts[1].decay, Hyperball)


@pytest.mark.filterwarnings("ignore:TouchedRows got a dense gradient")
@pytest.mark.parametrize("name", FORMS)
def test_every_form_takes_steps(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False)
    form = FORMS[name]
    optimizer = build(model.named_parameters(), PSGDConfig(form=form, lr=1e-2))
    x = torch.randn(8, 4)
    losses: list[Tensor] = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]


def test_names_of_forms_are_those_of_their_class_or_of_its_settings() -> None:
    aliases = {name for name, form in FORMS.items() if form.name != name}
    assert aliases == {"kron-dense", "scan", "scaw", "dense-triangle", "xmat", "butterfly"}
    assert all(form.name in FORMS for form in FORMS.values())


def test_settings_of_forms_reach_them() -> None:
    assert KronForm(block_size=64, geometry="QUAD", max_skew=4.0).build() == Split(
        Kron(max_skew=4.0, geometry=QUAD), 64
    )
    assert LowRankForm(rank=3).build() == Joint(LowRank(rank=3))
    assert LowRankForm(joint=False, dtype="bfloat16").build() == LowRank(dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": KronForm(block_size=-1)}, "size -1"),
        ({"form": KronForm(triangular=True)}, "Kron got .* geometry Q0.5EQ1.5"),
        ({"form": LowRankForm(rank=-1)}, "rank = -1"),
        ({"form": PermutationForm(group="cyclic", order=0)}, "size = 0"),
        ({"form": ArrowForm(size=0)}, "size = 0"),
        ({"form": TouchedRowsForm(), "criterion": NewtonCriterion()}, "TouchedRows with Newton"),
        ({"criterion": NewtonCriterion(source="gradient-difference")}, "init_scale"),
        ({"criterion": NewtonCriterion(), "spread": True}, "spread"),
        ({"overlap": True, "compile": True}, "overlap=True"),
        ({"decay": "hyperball", "weight_decay": 0.1}, "Hyperball got the rate"),
        ({"max_memory_gb": 1e-12}, "max_memory"),
        ({"momentum": 0.0}, "momentum = 0"),
        ({"momentum": 1.5}, "momentum = 1.5"),
        ({"precond_lr": 1.5}, "precond_lr"),
        ({"update_prob": 2.0}, "update_prob = 2.0"),
        ({"update_prob_fall": 0}, "update_prob_fall = 0"),
        ({"clip_rms": 0.0}, "limit 0.0"),
        ({"trust_region": 0.0}, "TrustRegion got the limit 0.0"),
        ({"lr": float("nan")}, "lr = nan"),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_made(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PSGDConfig(**settings)  # type: ignore[arg-type]


def test_what_does_not_fit_the_model_is_refused_in_one_line() -> None:
    config = PSGDConfig(form=PermutationForm(group="cyclic", order=7))
    build(nn.Linear(7, 3, bias=False).named_parameters(), config)
    with pytest.raises(InputError, match=r"^psgd: .*multiple of 7") as caught:
        build(nn.Linear(3, 1, bias=False).named_parameters(), config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_built_by_name(name: str) -> None:
    criterion = built(PSGDConfig(criterion=CRITERIA[name])).criterion
    assert CRITERIA[name].name == name
    assert isinstance(criterion, Newton) == (name in ("newton", "curvature"))


def test_one_optimizer_takes_settings_of_groups_but_not_of_its_own() -> None:
    model = nn.Linear(4, 3)
    first, second = PSGDConfig(), PSGDConfig(lr=0.5, form=DiagonalForm(), momentum=0.5)
    optimizer = build_psgd([(first, [model.weight]), (second, [model.bias])], seed=0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.5]
    assert [group["layout"].split("(")[0] for group in optimizer.param_groups] == [
        "Kron",
        "Diagonal",
    ]
    with pytest.raises(ValueError, match=r"update_prob = 0.03 and 0.5"):
        build_psgd([(first, [model.weight]), (PSGDConfig(update_prob=0.5), [model.bias])], seed=0)
