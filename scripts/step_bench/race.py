"""One model's measurement: all contenders step on the same gradients, in turns."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

from step_bench.contenders import FIT, Contender, Gate, Refusal
from step_bench.memory import peak_bytes, state_bytes
from step_bench.models import Workload
from step_bench.roofline import Machine, counted_flops, moved_bytes, plan_flops
from step_bench.split import split
from step_bench.timing import Effort, Gradients, Samples, Times, silence, steps_per_sample, timed

Record = dict[str, Any]
"""JSON values."""


class Racer:
    """A contender with its optimizers.

    Args:
        contender: Who.
        workload: Whose parameters they step.
        limit: Most bytes of state.
    """

    def __init__(self, contender: Contender, workload: Workload, limit: float) -> None:
        self.contender = contender
        self.gate = Gate()
        self.optimizers = contender.build(workload.named, self.gate, limit)
        self.samples: dict[str, Samples] = {}
        self._device = workload.device
        self._taken = 0

    def step(self, phase: str) -> None:
        """Take a step of a phase."""
        self.gate.is_open = phase == FIT
        self.gate.now = self._taken
        self._taken += 1
        for optimizer in self.optimizers:
            optimizer.step()

    def timed_step(self, phase: str, gradients: Gradients) -> Times:
        """Take a step on fresh gradients, and return what it took."""
        gradients.restore()
        return timed(partial(self.step, phase), self._device)

    def warm_up(self, gradients: Gradients, effort: Effort) -> None:
        """Take the first steps, and decide how many make a sample.

        Args:
            gradients: What to step on.
            effort: How many.

        Raises:
            Refusal: If a step takes too long.
        """
        is_peer = self.contender.distribution is not None
        for phase in self.contender.phases:
            with silence() if is_peer else nullcontext():
                for number in range(effort.warmup):
                    last = self.timed_step(phase, gradients)
                    # PSGD compiles in the second: the first one starts its rows.
                    is_warm = number > 1 or not self.contender.compiles
                    if is_warm and last.wall > 1000 * effort.longest:
                        raise Refusal(f"a step takes {last.wall / 1000:.0f} s")
            self.samples[phase] = Samples(steps_per_sample(last, self.contender.period))

    def sample(self, gradients: Gradients) -> None:
        """Measure every phase once."""
        for phase, samples in self.samples.items():
            samples.add(self.timed_step(phase, gradients) for _ in range(samples.steps))


def race(
    workload: Workload, chosen: Iterable[Contender], effort: Effort, say: Callable[[str], None]
) -> Record:
    """Measure contenders on one model.

    Args:
        workload: The model.
        chosen: The contenders.
        effort: How much to measure.
        say: Takes a line on progress.

    Returns:
        All samples, as JSON values.
    """
    parameters = [parameter for _, parameter in workload.named]
    machine = Machine(workload.device)
    passes = Samples(steps_per_sample(_warm_pass(workload, effort.warmup)))
    gradients = Gradients(parameters)
    racers, left_out = _start(workload, chosen, effort, gradients, say)
    for repeat in range(effort.repeats):
        passes.add(_timed_pass(workload, repeat) for _ in range(passes.steps))
        machine.sample()
        gradients = Gradients(parameters)
        # Whoever follows the backward pass finds other caches than the rest: not always the same.
        at = repeat % max(1, len(racers))
        for racer in racers[at:] + racers[:at]:
            racer.sample(gradients)
        say(f"{workload.name}: repeat {repeat + 1} of {effort.repeats}")
    return {
        **_sizes(workload),
        "forward_backward": passes.record(),
        "machine": machine.record(),
        "contenders": {
            racer.contender.name: _examine(racer, workload, gradients, effort.repeats)
            for racer in racers
        },
        "left_out": left_out,
    }


def _sizes(workload: Workload) -> Record:
    return {
        "batch": workload.batch,
        "parameters": sum(p.numel() for _, p in workload.named),
        "parameter_bytes": sum(p.nbytes for _, p in workload.named),
    }


def _warm_pass(workload: Workload, passes: int) -> Times:
    """Return what a forward and backward pass takes after some others."""
    for number in range(passes):
        last = _timed_pass(workload, number)
    return last


def _timed_pass(workload: Workload, number: int) -> Times:
    return timed(partial(workload.backward, number), workload.device)


def _start(
    workload: Workload,
    chosen: Iterable[Contender],
    effort: Effort,
    gradients: Gradients,
    say: Callable[[str], None],
) -> tuple[list[Racer], dict[str, str]]:
    """Return the contenders that can step the model, warmed up, and why the others cannot."""
    racers: list[Racer] = []
    left_out: dict[str, str] = {}
    for contender in chosen:
        say(f"{workload.name}: warming up {contender.name}")
        try:
            racer = Racer(contender, workload, effort.max_state)
            racer.warm_up(gradients, effort)
        except Refusal as refusal:
            left_out[contender.name] = str(refusal)
        except Exception as error:
            # What goes wrong in a package of others must not end the run; in ours it must.
            if contender.distribution is None:
                raise
            left_out[contender.name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        else:
            racers.append(racer)
    return racers, left_out


def _examine(racer: Racer, workload: Workload, gradients: Gradients, repeats: int) -> Record:
    """Return a contender's samples, and what is measured outside the repeats."""
    contender = racer.contender
    flops = _flops(racer, workload, gradients)
    phases: Record = {}
    for phase, samples in racer.samples.items():
        step = partial(racer.step, phase)
        gradients.restore()
        phases[phase] = {
            **samples.record(),
            "peak_bytes": peak_bytes(step, workload.device),
            "flops": None if flops is None else flops[phase],
        }
        if contender.form is not None:
            phases[phase]["split_ms"] = split(step, gradients.restore, repeats, workload.device)
    return {
        "phases": phases,
        "state_bytes": state_bytes(racer.optimizers),
        "moved_bytes": moved_bytes(workload.named, contender.moments),
        "note": contender.note,
    }


def _flops(racer: Racer, workload: Workload, gradients: Gradients) -> dict[str, float] | None:
    """Return the FLOPs of a step of every phase: of the plan, else counted in a real step."""
    contender = racer.contender
    planned = None if contender.form is None else plan_flops(contender.form, workload.named)
    if planned is not None:
        return {phase: planned[phase == FIT] for phase in contender.phases}
    if contender.compiles:  # a compiled function does not say what it computes
        return None
    counts: dict[str, float] = {}
    for phase in contender.phases:
        counts[phase] = 0.0
        for _ in range(contender.period):
            gradients.restore()
            counts[phase] += counted_flops(partial(racer.step, phase)) / contender.period
    return counts
