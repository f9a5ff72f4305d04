"""Processes that do one short job after the other, and end at once when they are told to."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event

Submit = Callable[[Callable[[], object]], "Future[object]"]


@contextmanager
def pool(workers: int) -> Iterator[Submit]:
    """Start processes; at the end of the block they end, whatever they do.

    Args:
        workers: How many.

    Yields:
        A function that takes a job and returns its future; the job can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(workers, context, _begin, (stop,))
    try:
        yield executor.submit
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(stop: Event) -> None:
    """Prepare a worker: the terminal's Ctrl-C is its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for ends in (stop.wait, _wait_for_parent):
        threading.Thread(target=_exit_after, args=(ends,), daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()


def _exit_after(ends: Callable[[], object]) -> None:
    ends()
    os._exit(1)
