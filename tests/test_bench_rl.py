"""bench_rl.py at toy size: who runs, in which order, and what is written."""

import json
from types import SimpleNamespace

import bench_rl
import pytest
from rl_bench import end_to_end, raw
from rl_bench.end_to_end import EndToEndConfig, run_end_to_end, run_worker
from rl_bench.raw import RawConfig, run_raw
from rl_bench.worker import PSGD, SB3, train_ours

from psgd_optim.types import InputError


def test_environments_are_timed_in_turns(tmp_path, capsys, monkeypatch):
    stepped: list[str] = []

    def recorded(name, make):
        def recording(config):
            contender = make(config)

            def step(action):
                assert action.shape == (2, 3)
                stepped.append(name)
                contender.step(action)

            return raw.Contender(step, contender.close)

        return recording

    for name, make in list(raw.MAKERS.items()):
        monkeypatch.setitem(raw.MAKERS, name, recorded(name, make))
    out = tmp_path / "out"
    flags = "--env-id Hopper-v5 --num-envs 2 --steps 3 --repeats 2 --contenders psgd_rl sync"
    bench_rl.main(["raw", *flags.split(), "--out", str(out)])
    assert stepped == (["psgd_rl"] * 3 + ["sync"] * 3) * 3
    record = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(s) for name, s in record["steps_per_second"].items()} == {
        "psgd_rl": 2,
        "sync": 2,
    }
    assert (record["threads"], record["num_envs"]) == (1, 2)
    table = (tmp_path / "out.md").read_text().splitlines()[2:]
    assert table[2].startswith("| psgd_rl |") and table[2].endswith("| 1.00 |")
    assert "\n".join(table) in capsys.readouterr().out


def test_runs_are_timed_in_turns_and_the_other_process_ends(tmp_path, monkeypatch):
    ran, speeds = [], iter([100.0, 50.0, 300.0, 150.0, 200.0, 100.0])
    started = []

    class Process:
        def __init__(self, command):
            started.append(self)
            self.calls = []

        def kill(self):
            self.calls.append("kill")

        def wait(self):
            self.calls.append("wait")

    def worker(name, config, seed):
        ran.append((name, seed))
        return next(speeds)

    monkeypatch.setattr(end_to_end, "run_worker", worker)
    monkeypatch.setattr(end_to_end, "subprocess", SimpleNamespace(Popen=Process))
    config = EndToEndConfig(repeats=3, contenders=(PSGD, SB3), busy=True, out=tmp_path / "out")
    table = run_end_to_end(config, "python scripts/bench_rl.py end-to-end", lambda line: None)
    assert ran == [(name, seed) for seed in range(3) for name in (PSGD, SB3)]
    assert [process.calls for process in started] == [["kill", "wait"]]
    assert table.splitlines()[-1] == "| stable-baselines3 | 100 | 50 to 150 | 2.00 |"


def test_our_worker_trains():
    assert train_ours(PSGD, "smoke", 128, 0, 1) > 0


def test_a_failing_worker_is_named(monkeypatch):
    monkeypatch.setattr(end_to_end, "PRESET", "no such preset")
    with pytest.raises(InputError, match="psgd_rl, psgd failed: KeyError: 'no such preset'"):
        run_worker(PSGD, EndToEndConfig(), 0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RawConfig(contenders=("envpol",)), r"'envpol'; did you mean envpool\?"),
        (lambda: RawConfig(threads=0), "--threads 0; give 1 to 256"),
        (lambda: RawConfig(steps=0), "steps = 0; give 1 or more"),
        (lambda: EndToEndConfig(contenders=("sb3",)), "no contender 'sb3'; known: psgd_rl"),
        (lambda: EndToEndConfig(repeats=0), "repeats = 0; give 1 or more"),
        (lambda: bench_rl.main([]), "known: raw, end-to-end"),
        (lambda: run_raw(RawConfig(env_id="CartPole-v1"), "", print), "actions in Discrete"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()
