import io
import math

import pytest
import torch
from torch import Tensor, nn

from psgd_lm.averaging import AverageConfig, Averaging, first_averaged_step
from psgd_optim import InputError


def history(*losses: float) -> list[tuple[int, float]]:
    return [(10 * (i + 1), loss) for i, loss in enumerate(losses)]


def reference(losses: list[float], window: int) -> int | None:
    """The loop of AWD-LSTM's main.py: compare, then remember."""
    seen: list[float] = []
    for i, loss in enumerate(losses):
        if len(seen) > window and loss > min(seen[:-window]):
            return 10 * (i + 1)
        seen.append(loss)
    return None


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("seed", range(20))
def test_the_start_is_that_of_the_original_loop(window: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    falling = torch.linspace(1, 0, 30) + 0.3 * torch.rand(30, generator=generator)
    losses = falling.tolist()
    config = AverageConfig(start="non-monotone", window=window)
    assert first_averaged_step(config, 1000, history(*losses)) == reference(losses, window)


def test_later_evaluations_never_move_the_start() -> None:
    config = AverageConfig(start="non-monotone", window=1)
    losses = [3.0, 2.0, 3.5, 1.0, 9.0]
    found = [first_averaged_step(config, 99, history(*losses[:n])) for n in range(6)]
    assert found == [None, None, None, 30, 30, 30]
    assert first_averaged_step(config, 99, history(3.0, 2.0, math.nan)) == 30


def test_other_starts() -> None:
    assert first_averaged_step(AverageConfig(), 100, history(1.0, 2.0, 3.0)) is None
    assert first_averaged_step(AverageConfig(start="fraction", fraction=0.75), 10, []) == 8


def run(model: nn.Module, averaging: Averaging, steps: range, seen: list[list[Tensor]]) -> None:
    for step in steps:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.full_like(p, float(step) ** 1.5))
        averaging.update(model, step, [])
        seen.append([p.detach().double() for p in model.parameters()])


def test_swapped_weights_are_the_mean_and_come_back_to_the_bit() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    averaging = Averaging(AverageConfig(start="fraction", fraction=0.5), 8)
    seen: list[list[Tensor]] = []
    run(model, averaging, range(1, 5), seen)
    assert averaging.count == 0
    before = [p.detach().clone() for p in model.parameters()]
    with averaging.swapped(model):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    run(model, averaging, range(5, 9), seen)
    assert averaging.count == 4
    before = [p.detach().clone() for p in model.parameters()]
    places = [p.data_ptr() for p in model.parameters()]
    x = torch.ones(1, 3)
    trained = model(x)
    with averaging.swapped(model):
        for i, p in enumerate(model.parameters()):
            mean = torch.stack([step[i] for step in seen[4:]]).mean(0)
            torch.testing.assert_close(p.detach().double(), mean, rtol=1e-6, atol=1e-6)
        assert not torch.equal(model(x), trained)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == places


def test_weights_come_back_after_an_error() -> None:
    model = nn.Linear(3, 2)
    averaging = Averaging(AverageConfig(start="fraction", fraction=0.0), 8)
    run(model, averaging, range(1, 4), [])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), averaging.swapped(model):
        1 / 0  # noqa: B018
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_half_precision_weights_have_a_precise_mean() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    averaging = Averaging(AverageConfig(start="fraction", fraction=0.0), 300)
    for step in range(1, 301):
        with torch.no_grad():
            model.weight.fill_(1.0 + (step % 2) / 128)
        averaging.update(model, step, [])
    mean = averaging.state_dict()["means"]["weight"]
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(1 + 1 / 256, abs=1e-6)


def test_saved_and_loaded_it_goes_on_bit_for_bit() -> None:
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    averaging = Averaging(AverageConfig(start="fraction", fraction=0.0), 8)
    run(model, averaging, range(1, 4), [])
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "average": averaging.state_dict()}, buffer)
    run(model, averaging, range(4, 8), [])

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = nn.Linear(3, 2)
    other.load_state_dict(saved["model"])
    resumed = Averaging(AverageConfig(start="fraction", fraction=0.0), 8)
    resumed.load_state_dict(saved["average"], other)
    run(other, resumed, range(4, 8), [])
    assert resumed.count == averaging.count == 7
    for name, mean in averaging.state_dict()["means"].items():
        assert torch.equal(mean, resumed.state_dict()["means"][name])
    with pytest.raises(ValueError, match="of another model"):
        resumed.load_state_dict(saved["average"], nn.Linear(4, 2))


def test_tied_weights_are_one_and_frozen_ones_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    averaging = Averaging(AverageConfig(start="fraction", fraction=0.0), 8)
    averaging.update(model, 1, [])
    assert averaging.state_dict()["means"].keys() == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"window": 0}, "--average.window 1 or more"), ({"fraction": 1.0}, "--average.fraction in")],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AverageConfig(**settings)  # type: ignore[arg-type]
