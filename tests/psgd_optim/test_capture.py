"""Steps that are recorded and replayed: on a CPU with a recorder that does as CUDA graphs do."""

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from psgd_optim import PSGD, Cautious, Diagonal, Fitting, Hyperball, Kron, MatchRMS, Split
from psgd_optim.averages import Nesterov
from psgd_optim.capture import Captured
from psgd_optim.clipping import ClipJointRMS, TrustRegion
from psgd_optim.criteria import GradientWhitening, Newton, UnbiasedFisher
from psgd_optim.curvature import Given
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.geometry import EQ
from psgd_optim.runners import Compiled
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import Joint
from tests.recorder import Recorder, assert_same_bits, build, outcome, parameters, run

STEPS = 50
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def device_far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the host read no tensor, as if all were on a device: eager steps do the same then."""
    monkeypatch.setattr("psgd_optim.host.is_readable", lambda x: False)
    monkeypatch.setattr("psgd_optim.linalg.is_readable", lambda x: False)
    yield


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": Nesterov(0.8), "form": Kron(geometry=EQ)},
        {"momentum": 0.0, "criterion": GradientWhitening(), "form": Diagonal()},
        {"form": Kron(dtype=torch.bfloat16), "weight_decay": Cautious(0.1)},
        {"form": Split(Kron(max_skew=math.inf), 3), "weight_decay": Hyperball()},
        {"form": Joint(LowRank(rank=2)), "clip": (MatchRMS(), ClipJointRMS(0.1))},
        {"momentum": Nesterov(0.8), "clip": (TrustRegion(1e-3),)},
        {"fitting": Fitting(gate=0.4, precond_lr=Adaptive()), "form": Diagonal()},
        {
            "criterion": UnbiasedFisher(batch_size=4),
            "fitting": Fitting(gate=0.4, update_first=False),
        },
    ],
    ids=[
        "default",
        "nesterov",
        "plain",
        "bf16",
        "split",
        "joint",
        "region",
        "adaptive",
        "fisher-late",
    ],
)
def test_replays_have_the_bits_of_eager_steps(settings: Settings) -> None:
    params, others = parameters(), parameters()
    recorder = Recorder()
    eager, captured = build(params, settings, None), build(others, settings, recorder)
    for first in range(0, STEPS, 10):
        steps = range(first, first + 10)
        assert_same_bits(run(captured, others, steps), run(eager, params, steps))
        assert_same_bits(outcome(captured, others), outcome(eager, params))
    assert recorder.recorded == 2  # with and without a fit
    assert recorder.replayed == STEPS - 1 - 2  # the first one starts all rows


def test_a_step_with_a_number_as_lr_differs_by_rounding_alone() -> None:
    found = []
    for recorder in (None, Recorder()):
        params = [p.detach().double().requires_grad_() for p in parameters()]
        optimizer = build(params, {}, recorder)
        for step in range(STEPS):
            rng = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            optimizer.step()
        found.append([p.detach() for p in params])
    # Rounding errors of 1e-16 in 50 steps.
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_a_step_without_a_gradient_is_eager_and_the_next_one_replayed() -> None:
    params, others = parameters(), parameters()
    recorder = Recorder()
    eager, captured = build(params, {}, None), build(others, {}, recorder)
    for missing in (20, 21, 30):
        steps = range(missing - 10, missing + 5)
        run(eager, params, steps, missing)
        run(captured, others, steps, missing)
        assert_same_bits(outcome(captured, others), outcome(eager, params))
    assert recorder.recorded == 2


@pytest.mark.parametrize("remade", ["load", "copy", "pickle"])
def test_a_run_goes_on_from_what_was_saved(remade: str) -> None:
    params, others = parameters(), parameters()
    recorder = Recorder()
    eager, captured = build(params, {}, None), build(others, {}, recorder)
    run(eager, params, range(40))
    run(captured, others, range(20))
    if remade == "load":
        saved = copy.deepcopy(captured.state_dict())
        held = [p.detach().clone() for p in others]
        run(captured, others, range(100, 105))
        with torch.no_grad():
            for p, old in zip(others, held, strict=True):
                p.copy_(old)
        captured.load_state_dict(saved)
    else:
        twin: Callable[[Any], Any] = copy.deepcopy
        if remade == "pickle":
            twin = lambda x: pickle.loads(pickle.dumps(x))  # noqa: E731
        captured._runner = Captured()  # a recorder of the test cannot be remade
        captured, others = twin((captured, others))
        captured._runner = Captured(recorder)
    run(captured, others, range(20, 40))
    assert_same_bits(outcome(captured, others), outcome(eager, params))
    assert recorder.recorded == 4  # anew after the load


@pytest.mark.parametrize("kind", ["compiled", "captured"])
def test_blocks_that_a_load_replaces_are_let_go(kind: str) -> None:
    params = parameters()
    optimizer = build(params, {}, Recorder())
    if kind == "compiled":
        optimizer._runner = Compiled()
        # Admitted is enough: nothing has to be compiled for it.
        optimizer._runner.run_whole = lambda *args: []  # type: ignore[method-assign]
    with suppress(ValueError):
        run(optimizer, params, range(4))
    old = weakref.ref(next(iter(optimizer._store)))
    optimizer.load_state_dict(optimizer.state_dict())
    gc.collect()
    assert old() is None


def test_a_parameter_that_moves_in_memory_is_recorded_again() -> None:
    params, others = parameters(), parameters()
    recorder = Recorder()
    eager, captured = build(params, {}, None), build(others, {}, recorder)
    run(eager, params, range(40))
    run(captured, others, range(20))
    for p in others:
        p.data = p.data.clone()
    run(captured, others, range(20, 40))
    assert_same_bits(outcome(captured, others), outcome(eager, params))
    assert recorder.recorded == 4


def halve(optimizer: PSGD, param: Tensor) -> None:
    """Write to the state of a parameter."""
    optimizer.state_dict()
    for name, x in optimizer.state[param].items():
        if name.startswith("q"):
            x.mul_(0.5)


def test_whoever_writes_to_the_state_is_heard() -> None:
    params, others = parameters(), parameters()
    found = [build(params, {}, None), build(others, {}, Recorder())]
    for optimizer, own in zip(found, (params, others), strict=True):
        run(optimizer, own, range(20))
        halve(optimizer, own[0])
        run(optimizer, own, range(20, 40))
    assert_same_bits(outcome(found[1], others), outcome(found[0], params))


def test_parameters_that_come_later_are_recorded_with_the_rest() -> None:
    params, others = parameters(), parameters()
    recorder = Recorder()
    eager, captured = build(params, {}, None), build(others, {}, recorder)
    for optimizer, own in ((eager, params), (captured, others)):
        run(optimizer, own, range(10))
        late = torch.ones(3, 2, requires_grad=True)
        own.append(late)
        optimizer.add_param_group({"params": [late]})
        run(optimizer, own, range(10, 30))
    assert_same_bits(outcome(captured, others), outcome(eager, params))
    assert recorder.recorded == 4


def test_fits_that_are_spread_are_eager() -> None:
    params, others = parameters(), parameters()
    settings: Settings = {"fitting": Fitting(gate=0.5, spread=True)}
    recorder = Recorder()
    eager, captured = build(params, settings, None), build(others, settings, recorder)
    run(eager, params, range(20))
    run(captured, others, range(20))
    assert_same_bits(outcome(captured, others), outcome(eager, params))


@pytest.mark.parametrize("place", ["stack", "noise", "draws", "operators"])
def test_buffers_that_are_not_where_they_were_would_be_seen(place: str) -> None:
    """A replay reads and writes fixed places: this is what the other tests would find."""
    params, others = parameters(), parameters()
    eager, captured = build(params, {}, None), build(others, {}, Recorder())
    for optimizer, own in ((eager, params), (captured, others)):
        run(optimizer, own, range(20))
    runner = captured._runner
    assert isinstance(runner, Captured)
    for buffers in runner._buffers.values():
        setattr(buffers, place, copy.deepcopy(getattr(buffers, place)))
    for optimizer, own in ((eager, params), (captured, others)):
        halve(optimizer, own[0])  # copies to the operators' places
        run(optimizer, own, range(20, 40))
    with pytest.raises(AssertionError):
        assert_same_bits(outcome(captured, others), outcome(eager, params))


def test_pairs_are_stepped_without_a_recording() -> None:
    params = parameters()
    recorder = Recorder()
    settings: Settings = {"criterion": Newton(source=Given()), "momentum": 0.0}
    optimizer = build(params, settings, recorder)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        v = [torch.ones_like(p) for p in params]
        optimizer.step(pair=(v, [2 * x for x in v]) if optimizer.fits_next else None)
    assert recorder.recorded == 0


def test_waiting_in_a_step_is_an_error_that_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Diagonal.apply

    def waiting(self: Diagonal, state: Any, x: Tensor) -> Tensor:
        float(x.sum())
        return plain(self, state, x)

    monkeypatch.setattr(Diagonal, "apply", waiting)
    params = parameters()
    optimizer = build(params, {"form": Diagonal()}, Recorder())
    with pytest.raises(RuntimeError, match="not permitted") as caught:
        run(optimizer, params, range(3))
    assert any("leave capturable=True out" in note for note in caught.value.__notes__)


def test_parameters_on_a_cpu_are_refused_in_the_first_step() -> None:
    params = parameters()
    optimizer = PSGD(params, capturable=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="parameters on cpu; move the model to a CUDA device"):
            run(optimizer, params, range(1))


def test_they_are_refused_after_a_load_too() -> None:
    params, others = parameters(), parameters()
    plain = PSGD(params, 0.02)
    run(plain, params, range(3))
    optimizer = PSGD(others, 0.02, capturable=True)
    optimizer.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="parameters on cpu; move the model to a CUDA device"):
        run(optimizer, others, range(3, 4))


@pytest.mark.parametrize("other", [{"fitting": Fitting(overlap=True)}, {"compile": True}])
def test_what_does_not_go_together_is_refused(other: Settings) -> None:
    with pytest.raises(ValueError, match=r"capturable=True.* leave one of them out"):
        PSGD(parameters(), capturable=True, **other)


@pytest.mark.gpu
@pytest.mark.parametrize("form", [Kron(), Diagonal(), Split(Kron(max_skew=math.inf), 3)])
def test_cuda_graphs_have_the_bits_of_eager_steps(form: Any) -> None:
    found = []
    for capturable in (False, True):
        params = [p.detach().cuda().requires_grad_() for p in parameters()]
        lr = torch.tensor(0.02, dtype=torch.float64, device="cuda")
        fitting = Fitting(gate=0.4)
        optimizer = PSGD(params, lr, form=form, fitting=fitting, capturable=capturable)
        for step in range(STEPS):
            lr.fill_(0.02 / (1 + step))
            rng = torch.Generator("cuda").manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=rng, device="cuda")
            if step == 20:
                params[1].grad = None
            optimizer.step()
        found.append(outcome(optimizer, params))
        if isinstance(optimizer._runner, Captured):
            assert len(optimizer._runner._slots) == 2
    assert_same_bits(found[1], found[0])
