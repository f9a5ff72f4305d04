from contextlib import nullcontext

import pytest
import torch
from torch import nn

from psgd_lm.batches import Batch, Streams
from psgd_lm.gpt import GPT, GPTConfig
from psgd_lm.language_model import LanguageModel, Output, token_losses
from psgd_lm.objective import Objective
from psgd_lm.stepping import Stepper
from psgd_lm.timing import PhaseTimer
from psgd_lm.tokens import InMemory
from psgd_optim import PSGD, Newton
from psgd_optim.curvature import Exact, FiniteDifference
from psgd_optim.fitting import Fitting
from psgd_optim.schedules import Every

VOCABULARY, CONTEXT = 11, 8
CPU = torch.device("cpu")


class Recurrent(LanguageModel):
    """A GRU that regularises itself."""

    is_recurrent = True

    def __init__(self):
        super().__init__(VOCABULARY, CONTEXT)
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.cell = nn.GRU(6, 6, batch_first=True)

    def empty_memory(self, rows):
        return (torch.zeros(1, rows, 6, dtype=self.embedding.weight.dtype),)

    def forward(self, tokens, memory=None):
        x, h = self.cell(self.embedding(tokens), None if memory is None else memory[0])
        logits = x @ self.embedding.weight.T
        return Output(logits, None if memory is None else (h,), 0.3 * x.square().mean())

    def twice_differentiable(self):
        return nullcontext()

    def flops_per_token(self):
        return 1.0


def gpt():
    return GPT(GPTConfig(layers=2, heads=2, width=8, context=CONTEXT), VOCABULARY)


def make(kind):
    torch.manual_seed(0)
    return kind().double()


def objective(model, micro_batch=0, precision="float32", compiled=None):
    return Objective(
        model,
        micro_batch=micro_batch,
        precision=precision,
        compiled=compiled,
        timer=PhaseTimer(CPU),
    )


def batch(rows=7, seed=0, begins=True):
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(VOCABULARY, (rows, CONTEXT + 1), generator=generator)
    return Batch(windows[:, :-1], windows[:, 1:], begins=begins)


def gradients(kind, micro_batch):
    """Return loss and gradients of two batches in a row, the second with the first's memory."""
    model = make(kind)
    whole = objective(model, micro_batch)
    found = []
    for seed in (0, 1):
        loss = whole.evaluation(batch(seed=seed, begins=seed == 0))
        for part in loss():
            part.backward()
        whole.advance(loss)
        found.append(loss.value)
    return found, [p.grad for p in model.parameters()]


def expected(kind):
    model = make(kind)
    memory = model.empty_memory(7) if model.is_recurrent else None
    losses = []
    for seed in (0, 1):
        inputs, targets, *_ = batch(seed=seed)
        output = model(inputs) if memory is None else model(inputs, memory)
        loss = token_losses(output.logits, targets).mean()
        losses.append(loss.detach())
        if output.penalty is not None:
            loss = loss + output.penalty
            memory = (output.memory[0].detach(),)
        loss.backward()
    return losses, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("micro_batch", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("kind", [gpt, Recurrent])
def test_gradients_do_not_depend_on_the_parts(kind, micro_batch):
    losses, grads = gradients(kind, micro_batch)
    right_losses, right_grads = expected(kind)
    torch.testing.assert_close(losses, right_losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(grads, right_grads, rtol=1e-12, atol=1e-15)  # sums in another order


@pytest.mark.parametrize("source", [Exact(), FiniteDifference()], ids=["exact", "difference"])
@pytest.mark.parametrize("kind", [gpt, Recurrent])
def test_newton_steps_do_not_depend_on_the_parts(kind, source):
    found = []
    for micro_batch in (0, 3):
        model = make(kind)
        optimizer = PSGD(model.parameters(), criterion=Newton(source=source))
        stepper = Stepper(
            optimizer,
            objective(model, micro_batch),
            max_norm=0.0,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            timer=PhaseTimer(CPU),
        )
        taken = [stepper.take(batch(seed=s, begins=s == 0)) for s in range(3)]
        found.append(([*model.parameters()], [t.loss for t in taken], stepper.objective.memories))
    (whole, losses, memories), (parts, part_losses, part_memories) = found
    # Differences divide rounding by their size, the root of the machine epsilon.
    tolerance = 1e-10 if isinstance(source, Exact) else 1e-5
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(part_losses, losses, rtol=tolerance, atol=0)
    if memories is not None:
        rows = torch.cat([memory[0] for memory in part_memories], dim=1)
        torch.testing.assert_close(rows, memories[0][0], rtol=tolerance, atol=tolerance)


def test_newton_sees_the_same_dropout_in_every_evaluation():
    torch.manual_seed(0)
    config = GPTConfig(layers=1, heads=1, width=8, context=CONTEXT, dropout=0.5)
    model = GPT(config, VOCABULARY).double()
    seen = []

    class Spy(Objective):
        def part(self, *arguments, **settings):
            losses, penalty, left = super().part(*arguments, **settings)
            seen.append(float(losses.detach()))
            return losses, penalty, left

    spy = Spy(model, micro_batch=4, precision="float32", compiled=None, timer=PhaseTimer(CPU))
    loss = spy.evaluation(batch())
    source = FiniteDifference(central=True)
    nothing = {p: torch.zeros_like(p) for p in model.parameters()}
    source.evaluate(loss, list(model.parameters()), nothing)
    assert len(seen) == 6  # three evaluations of two parts
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]


def test_memory_is_carried_and_begins_anew_with_the_text():
    model = make(Recurrent)
    tokens = torch.randint(VOCABULARY, (61,), generator=torch.Generator().manual_seed(3))
    batches = Streams(InMemory(tokens), rows=2, context=CONTEXT, seed=0, is_variable=True)
    whole = objective(model)
    in_pieces = []
    steps = batches.steps_in(1)
    for step in range(steps + 1):
        piece = batches.at(step)
        loss = whole.evaluation(piece)
        for part in loss():
            assert part.requires_grad
        whole.advance(loss)
        assert not whole.memories[0][0].requires_grad
        in_pieces.append(loss.value * piece.targets.numel())
    rows = torch.stack([tokens[:31], tokens[30:61]])
    output = model(rows[:, :-1], model.empty_memory(2))
    losses = token_losses(output.logits, rows[:, 1:])
    torch.testing.assert_close(sum(in_pieces[:-1]), losses.sum().detach(), rtol=1e-12, atol=0)
    first = batches.at(steps)  # of the second epoch, from an empty memory
    again = objective(model).evaluation(first)
    list(again())
    assert again.value * first.targets.numel() == in_pieces[-1]


def test_a_batch_that_is_left_out_still_begins_the_text():
    model = make(Recurrent)
    whole = objective(model)
    for piece in (batch(seed=0), batch(seed=1, begins=False)):
        loss = whole.evaluation(piece)
        list(loss())
        whole.advance(loss)
    whole.leave_out(batch(begins=False))
    assert whole.memories is not None
    whole.leave_out(batch(begins=True))
    assert whole.memories is None


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_of_the_model_alone(precision):
    torch.manual_seed(0)
    model = gpt()
    found = objective(model, 2, precision).evaluation(batch())
    for part in found():
        assert part.dtype == torch.float32
        part.backward()
    exact = objective(model).evaluation(batch())
    list(exact())
    assert found.value.dtype == torch.float32
    assert found.value != exact.value
    # The logits, of size 0.1 here, are rounded to 8 or 11 bits.
    torch.testing.assert_close(found.value, exact.value, rtol=2e-3, atol=0)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_loss_of_half_precision_is_summed_in_float32():
    # A sum in bfloat16 would move in steps of 2^-8: the mean of 8 bits of many losses.
    losses = {
        float(_mean(objective(gpt(), 0, "bfloat16"), batch(rows=64, seed=s))) for s in range(20)
    }
    assert len({round(x * 2**12) for x in losses}) > 15


def _mean(whole, some):
    loss = whole.evaluation(some)
    list(loss())
    return loss.value


def test_what_is_differentiated_twice_is_not_compiled():
    model = make(gpt)
    calls = []

    def compiled(tokens):
        calls.append(len(tokens))
        return model(tokens)

    whole = objective(model, 0, "float32", compiled)
    list(whole.evaluation(batch())())
    assert calls == [7]
    parts = list(whole.evaluation(batch(), twice=True)())
    assert calls == [7]
    (grad, *_) = torch.autograd.grad(parts[0], list(model.parameters()), create_graph=True)
    torch.autograd.grad(grad.square().sum(), list(model.parameters()), allow_unused=True)


def test_newton_steps_that_do_not_fit_are_compiled():
    model = make(gpt)
    calls = []

    def compiled(tokens):
        calls.append(len(tokens))
        return model(tokens)

    # Q is fitted in every second step.
    optimizer = PSGD(model.parameters(), criterion=Newton(), fitting=_every_second())
    stepper = Stepper(
        optimizer,
        objective(model, 0, "float32", compiled),
        max_norm=0.0,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        timer=PhaseTimer(CPU),
    )
    compiled_calls = []
    for step in range(4):
        fits = stepper.fits_next
        stepper.take(batch(seed=step))
        compiled_calls.append((fits, len(calls)))
        calls.clear()
    assert set(compiled_calls) == {(True, 0), (False, 1)}


def _every_second():

    return Fitting(gate=Every(2))
