"""Processes that do one short job after the other, and end at once when they are told to."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

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
    # Nothing is ever sent: its end, closed here or by this process's death, is the message.
    reader, writer = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, context, _begin, (reader,))
    futures: list[Future[object]] = []

    def submit(job: Callable[[], object]) -> Future[object]:
        futures.append(executor.submit(job))
        return futures[-1]

    try:
        yield submit
    finally:
        if not all(future.done() for future in futures):
            writer.close()
        executor.shutdown(wait=True, cancel_futures=True)
        writer.close()
        reader.close()


def _begin(reader: Connection) -> None:
    """Prepare a worker: the terminal, and its Ctrl-C, are its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- no progress bars
    threading.Thread(target=_exit_after, args=(reader,), daemon=True).start()


def _exit_after(reader: Connection) -> None:
    reader.poll(None)
    os._exit(1)
