"""Processes that do one short job after the other, and end at once when they are told to."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from psgd_optim.types import InputError

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that a terminal or `timeout` sends to a whole group; the parent alone answers them."""
Submit = Callable[[Callable[[], object]], "Future[object]"]


@contextmanager
def pool(workers: int) -> Iterator[Submit]:
    """Start processes; at the end of the block they end, whatever they do.

    Args:
        workers: How many.

    Yields:
        A function that takes a job and returns its future; the job can be pickled.

    Raises:
        InputError: If a process was killed from outside, which a machine without memory does.
    """
    context = multiprocessing.get_context("spawn")
    # Nothing is ever sent: its end, closed here or by this process's death, is the message.
    reader, writer = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, context, _begin, (reader,))
    futures: list[Future[object]] = []

    def submit(job: Callable[[], object]) -> Future[object]:
        # The first job starts the processes, which inherit the mask: none can be hit before
        # `_begin` is reached. Starting the tracker lifts a mask, so that comes before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            futures.append(executor.submit(job))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return futures[-1]

    try:
        yield submit
    except BrokenProcessPool as error:
        # Their executor asks the others to end with a signal that they ignore.
        writer.close()
        raise InputError("A worker was killed; the same command goes on.") from error
    finally:
        if not all(future.done() for future in futures):
            writer.close()
        executor.shutdown(wait=True, cancel_futures=True)
        writer.close()
        reader.close()


def _begin(reader: Connection) -> None:
    """Prepare a worker: to be interrupted is its parent's business."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- no progress bars
    threading.Thread(target=_exit_after, args=(reader,), daemon=True).start()


def _exit_after(reader: Connection) -> None:
    reader.poll(None)
    os._exit(1)
