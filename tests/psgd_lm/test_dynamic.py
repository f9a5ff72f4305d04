import copy

import pytest
import torch

from psgd_lm.dynamic import DynamicConfig, evaluate_dynamically
from psgd_lm.evaluate import Reading, evaluate
from psgd_lm.tokens import InMemory
from psgd_optim.types import InputError

LENGTHS = torch.ones(11, dtype=torch.int64)
TEXT = torch.randint(11, (60,), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
TRAIN = torch.randint(11, (90,), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


@pytest.fixture(params=["gpt", "recurrent"])
def model(request):
    return request.getfixturevalue(f"tiny_{'model' if request.param == 'gpt' else 'recurrent'}")


def segments(model, text):
    """Yield inputs and targets of every segment of eight tokens, and whether a memory goes on."""
    for start in range(0, len(text) - 1, 8):
        part = text[start : start + 9].long()
        yield part[None, :-1], part[None, 1:], model.is_recurrent and start > 0


def by_hand(model, text, config, scales=None):
    """Evaluate dynamically in the simplest way; return all losses and the last parameters."""
    model = copy.deepcopy(model).double()
    scales = scales or [1.0] * len(list(model.parameters()))
    trained = [p.detach().clone() for p in model.parameters()]
    losses, memory = [], None
    for inputs, targets, goes_on in segments(model, text):
        if model.is_recurrent and not goes_on:
            memory = tuple(part.double() for part in model.empty_memory(1))
        output = model(inputs, memory)
        row = torch.nn.functional.cross_entropy(output.logits[0], targets[0], reduction="none")
        model.zero_grad()
        row.mean().backward()
        memory = tuple(part.detach() for part in output.memory) if memory is not None else None
        losses += row.tolist()
        with torch.no_grad():
            for p, start, scale in zip(model.parameters(), trained, scales, strict=True):
                p -= config.lr * p.grad.to_dense() / scale
                p += config.decay * (start - p)
    return sum(losses) / len(losses), [p.detach() for p in model.parameters()]


def test_segments_are_scored_before_they_are_learned_from(model):
    config = DynamicConfig(lr=0.5, decay=0.1)
    expected, _ = by_hand(model, TEXT, config)
    result = evaluate_dynamically(model, InMemory(TEXT), LENGTHS, config)
    assert result.tokens == 59
    # Single precision over eight steps.
    assert result.loss == pytest.approx(expected, rel=1e-5)
    fixed = evaluate(model, InMemory(TEXT), LENGTHS, Reading(streams=1))
    assert result.loss != pytest.approx(fixed.loss, rel=2e-4)


def test_no_step_is_plain_evaluation(model):
    fixed = evaluate(model, InMemory(TEXT), LENGTHS, Reading(streams=1))
    result = evaluate_dynamically(model, InMemory(TEXT), LENGTHS, DynamicConfig(lr=0.0))
    assert result.loss == pytest.approx(fixed.loss, rel=1e-6)


def test_model_is_left_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    model.train()
    config = DynamicConfig(lr=0.5, rule="rms")
    evaluate_dynamically(model, InMemory(TEXT), LENGTHS, config, InMemory(TRAIN))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_rms_divides_by_what_gradients_were_in_training(model):
    config = DynamicConfig(lr=0.01, rule="rms", statistics=5)
    twin = copy.deepcopy(model).double()
    squares, memory = [torch.zeros_like(p) for p in twin.parameters()], None
    for inputs, targets, goes_on in list(segments(twin, TRAIN))[:5]:
        if twin.is_recurrent and not goes_on:
            memory = tuple(part.double() for part in twin.empty_memory(1))
        output = twin(inputs, memory)
        memory = tuple(part.detach() for part in output.memory) if memory is not None else None
        twin.zero_grad()
        torch.nn.functional.cross_entropy(output.logits[0], targets[0]).backward()
        for square, p in zip(squares, twin.parameters(), strict=True):
            square += p.grad.to_dense().square() / 5
    scales = [square.sqrt() + config.eps for square in squares]
    expected, _ = by_hand(model, TEXT, config, scales)
    result = evaluate_dynamically(model, InMemory(TEXT), LENGTHS, config, InMemory(TRAIN))
    # Where a gradient is almost 0 in single precision, eps decides: few such entries.
    assert result.loss == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_full_decay_with_sgd_forgets_at_once(model, rule):
    # decay 1 goes all the way back after every segment; rms does so for large mean squares only.
    config = DynamicConfig(lr=0.01, rule=rule, decay=1.0)
    fixed = evaluate(model, InMemory(TEXT), LENGTHS, Reading(streams=1))
    result = evaluate_dynamically(model, InMemory(TEXT), LENGTHS, config, InMemory(TRAIN))
    is_same = result.loss == pytest.approx(fixed.loss, rel=1e-6)
    assert is_same == (rule == "sgd")


def test_short_segments_have_something_before_them(tiny_model):
    # Without learning, segments of 3 in windows of 8 are strided evaluation.
    strided = evaluate(tiny_model, InMemory(TEXT), LENGTHS, Reading(stride=3))
    result = evaluate_dynamically(tiny_model, InMemory(TEXT), LENGTHS, DynamicConfig(segment=3))
    assert result.loss == pytest.approx(strided.loss, rel=1e-6)


def test_learning_helps_on_a_text_that_repeats(model):
    text = InMemory(torch.arange(5, dtype=torch.uint8).repeat(60))
    fixed = evaluate(model, text, LENGTHS).loss
    learned = evaluate_dynamically(model, text, LENGTHS, DynamicConfig(lr=0.5)).loss
    assert learned < fixed - 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "give --dynamic.lr 0 or more"),
        ({"decay": 2.0}, "give --dynamic.decay 1 or less"),
        ({"statistics": 0}, "give --dynamic.statistics 1 or more"),
    ],
)
def test_impossible_setting_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        DynamicConfig(**changes)


def test_what_does_not_fit_the_model_is_refused(tiny_model):
    with pytest.raises(InputError, match="segments of 9 with a context of 8"):
        evaluate_dynamically(tiny_model, InMemory(TEXT), LENGTHS, DynamicConfig(lr=1, segment=9))
    with pytest.raises(InputError, match="rms without a training text"):
        evaluate_dynamically(tiny_model, InMemory(TEXT), LENGTHS, DynamicConfig(lr=1, rule="rms"))
