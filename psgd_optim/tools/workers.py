"""Jobs in processes of their own, several at a time: one that crashes leaves the others alone."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path

from psgd_optim.tools.runtime import Interrupt

POLL_SECONDS = 0.2
"""Between two looks for an interruption."""


def run_jobs(
    jobs: Mapping[str, Callable[[], object]],
    workers: int,
    logs: Path,
    interrupt: Interrupt,
) -> dict[str, int]:
    """Run jobs, and wait for all of them.

    A job gets SIGTERM once if the interruption is requested, or if this process dies; jobs that
    have not begun by then do not begin. SIGINT reaches no job: the terminal sends it to all
    processes at once, and a second signal would cut a job off while it saves.

    Args:
        jobs: By name; they can be pickled, and do not depend on each other.
        workers: How many run at a time.
        logs: Folder for what the jobs print, one text file each.
        interrupt: Of this process.

    Returns:
        The exit codes by name, of the jobs that began: 0, or 1 for an exception, or minus the
        signal that ended it.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(jobs.items())
    running: dict[str, SpawnProcess] = {}
    codes: dict[str, int] = {}
    is_told = False
    try:
        while running or (waiting and not interrupt.requested):
            while waiting and len(running) < workers and not interrupt.requested:
                name, job = waiting.pop(0)
                running[name] = _start(job, log_path(logs, name))
            connection.wait([process.sentinel for process in running.values()], POLL_SECONDS)
            for name in [name for name, process in running.items() if not process.is_alive()]:
                codes[name] = running.pop(name).exitcode or 0
            if interrupt.requested and not is_told:
                is_told = True
                for process in running.values():
                    process.terminate()
    finally:
        for process in running.values():
            process.kill()
            process.join()
    return codes


def log_path(logs: Path, name: str) -> Path:
    """Return the file with what a job printed."""
    return logs / f"{name}.txt"


def _start(job: Callable[[], object], log: Path) -> SpawnProcess:
    """Start a job; it does not inherit this process's memory or threads."""
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(job, log))
    # Starting the tracker unblocks signals; it is running when the mask is set.
    resource_tracker.ensure_running()
    with _blocked(signal.SIGINT):
        process.start()
    return process


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Hold a signal back for a while; a process started meanwhile never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(job: Callable[[], object], log: Path) -> None:
    """Do a job in the new process."""
    # A group of its own: a SIGTERM to the parent's whole group would come twice.
    os.setsid()
    with log.open("ab") as file:
        # The descriptors, for native code prints too. A file is no terminal: no progress bars.
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    job()


def _stop_with_parent() -> None:
    """Wait for the parent's end, then ask this process to save and stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
