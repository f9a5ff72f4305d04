"""Jobs are code strings: what a test module defines cannot be imported in another process."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from psgd_optim.tools.runtime import Interrupt
from psgd_optim.tools.workers import run_jobs

# Every process imports torch, which takes seconds on a busy machine.
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
# Reports that it began, waits for SIGTERM, and reports that it saved; gives up after a minute.
WAIT = """
import pathlib, signal, time
saved = []
signal.signal(signal.SIGTERM, lambda *_: saved.append(1))
pathlib.Path({begun!r}).write_text("")
end = time.monotonic() + 60
while not saved and time.monotonic() < end:
    time.sleep(0.01)
pathlib.Path({saved!r}).write_text(str(len(saved)))
"""


def job(code):
    return partial(exec, code, {})


def waiting_job(folder, name):
    return job(
        WAIT.format(begun=str(folder / f"{name}.begun"), saved=str(folder / f"{name}.saved"))
    )


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def test_jobs_run_apart_and_a_crash_is_an_exit_code(tmp_path):
    jobs = {
        "good": job("import os; print('pid', os.getpid())"),
        "raises": job("raise RuntimeError('no luck')"),
        "killed": job("import os; os.kill(os.getpid(), 9)"),
    }
    with Interrupt() as interrupt:
        codes = run_jobs(jobs, 2, tmp_path / "logs", interrupt)
    assert codes == {"good": 0, "raises": 1, "killed": -9}
    printed = (tmp_path / "logs" / "good.txt").read_text()
    assert printed.startswith("pid ")
    assert int(printed.split()[1]) != os.getpid()
    last = (tmp_path / "logs" / "raises.txt").read_text().splitlines()[-1]
    assert last == "RuntimeError: no luck"


def test_interruption_tells_running_jobs_once_and_begins_no_others(tmp_path):
    jobs = {name: waiting_job(tmp_path, name) for name in ("a", "b", "c")}

    def interrupt_when_begun():
        wait_for(tmp_path / "a.begun")
        wait_for(tmp_path / "b.begun")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_begun)
    with Interrupt() as interrupt:
        thread.start()
        codes = run_jobs(jobs, 2, tmp_path / "logs", interrupt)
    thread.join()
    assert codes == {"a": 0, "b": 0}
    assert (tmp_path / "a.saved").read_text() == "1"
    assert (tmp_path / "b.saved").read_text() == "1"


def test_second_interruption_leaves_no_process_behind(tmp_path):
    jobs = {
        "deaf": job(
            "import os, pathlib, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"pathlib.Path({str(tmp_path / 'pid.partial')!r}).write_text(str(os.getpid()))\n"
            f"os.rename({str(tmp_path / 'pid.partial')!r}, {str(tmp_path / 'pid')!r})\n"
            "time.sleep(60)"
        )
    }

    def interrupt_twice():
        wait_for(tmp_path / "pid")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_twice)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        thread.start()
        run_jobs(jobs, 1, tmp_path / "logs", interrupt)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


PARENT = """
from functools import partial
from pathlib import Path
from psgd_optim.tools.runtime import Interrupt
from psgd_optim.tools.workers import run_jobs
if __name__ == "__main__":
    with Interrupt() as interrupt:
        run_jobs({{"a": partial(exec, {code!r}, {{}})}}, 1, Path({logs!r}), interrupt)
"""


@pytest.mark.parametrize("to_group", [False, True])
def test_jobs_save_when_the_parent_dies_or_the_terminal_interrupts(tmp_path, to_group):
    code = WAIT.format(begun=str(tmp_path / "begun"), saved=str(tmp_path / "saved"))
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(code=code, logs=str(tmp_path / "logs")))
    parent = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    wait_for(tmp_path / "begun")
    if to_group:  # as Ctrl-C does
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(timeout=60) == 0
    else:
        parent.kill()
        parent.wait(timeout=60)
    wait_for(tmp_path / "saved")
    end = time.monotonic() + 60
    while not (tmp_path / "saved").read_text() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "saved").read_text() == "1"
