"""What recordings of steps hold, and what becomes of them when one cannot be made."""

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from psgd_optim.capture import Captured, CudaRecorder, Recording, Step
from tests.recorder import Recorder, assert_same_bits, build, outcome, parameters, run

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def device_far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the host read no tensor, as if all were on a device: eager steps do the same then."""
    monkeypatch.setattr("psgd_optim.host.is_readable", lambda x: False)
    monkeypatch.setattr("psgd_optim.linalg.is_readable", lambda x: False)
    yield


class Failing:
    """Records on a CPU, but when it is to fail."""

    def __init__(self) -> None:
        self.fails = False
        self._recorder = Recorder()

    def __call__(self, step: Step, device: torch.device) -> Recording:
        if self.fails:
            raise torch.OutOfMemoryError("no memory")
        return self._recorder(step, device)


def test_a_recording_that_fails_leaves_no_older_one_in_its_place() -> None:
    params, others = parameters(), parameters()
    eager, captured = build(params, {}, None), build(others, {}, None)
    recorder = Failing()
    captured._runner = Captured(recorder)
    run(eager, params, range(40))
    run(captured, others, range(20))
    for p in others:
        p.data = p.data.clone()
    recorder.fails = True
    with pytest.raises(torch.OutOfMemoryError):
        run(captured, others, range(20, 21))
    recorder.fails = False
    run(captured, others, range(20, 40))
    assert_same_bits(outcome(captured, others), outcome(eager, params))


def test_a_recording_does_not_keep_the_products_a_second_time() -> None:
    params = parameters()
    optimizer = build(params, {}, Recorder())
    run(optimizer, params, range(20))
    runner = optimizer._runner
    assert isinstance(runner, Captured)
    held = {
        id(x)
        for own in runner._buffers.values()
        for ps in own.operators.values()
        for x in ps.values()
    }
    recordings = [slot.recording for slot in runner._slots.values() if slot.recording]
    lefts = [left for recording in recordings for left in [*recording.first, *recording.left]]
    products = [x for left in lefts for x in (left.operator or {}).values()]
    assert products
    assert {id(x) for x in products} <= held


class Graph:
    """Stands for a CUDA graph, with the pool of its own that it gets if it is given none."""

    def pool(self) -> Any:
        return self._pool

    def replay(self) -> None:
        """Do nothing."""


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Return the pool and the stream of every capture, on a machine without a device."""
    found: list[tuple[Any, Any]] = []

    class Stream:
        def __init__(self, device: Any = None) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

    def capture(graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        graph._pool = pool or object()
        found.append((pool, stream))
        return nullcontext()

    fakes = {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": nullcontext,
        "device": nullcontext,
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


def test_graphs_share_memory_and_a_stream_while_there_are_any(captures: Any) -> None:
    record = CudaRecorder()
    held = [record(list, CUDA) for _ in range(3)]
    assert captures[0][0] is None
    pool = held[0].replay.__self__.pool()  # type: ignore[attr-defined]
    assert all(other is pool for other, _ in captures[1:])
    assert len({id(stream) for _, stream in captures}) == 1


def test_memory_that_no_graph_uses_any_more_is_not_taken_up_again(captures: Any) -> None:
    # torch fails with an internal error where a pool is in use by tensors alone.
    record = CudaRecorder()
    held = [record(list, CUDA) for _ in range(2)]
    held.clear()
    gc.collect()
    held.append(record(list, CUDA))
    assert captures[2][0] is None
    assert captures[2][1] is not captures[0][1]
