"""The step benchmark: its figures on made-up samples, and tiny runs of all of it."""

import io
import json
import math
from contextlib import redirect_stderr
from types import SimpleNamespace

import bench_step
import pytest
import torch
from _cli import BAD_INPUT, OK, run
from step_bench import split as split_module
from step_bench.contenders import ADAMW_FUSED, APPLY, FIT, OURS, STANDARD, WHOLE
from step_bench.figures import Spread, lines, mean_spread
from step_bench.memory import peak_bytes, state_bytes
from step_bench.models import MODELS, make_workload
from step_bench.peers import MODULES, PEERS, installed
from step_bench.race import race
from step_bench.report import number, table
from step_bench.roofline import limits_ms, moved_bytes, plan_flops
from step_bench.split import OTHER, PARTS, PHASES, PartClock, find, split
from step_bench.study import CONTENDERS
from step_bench.timing import Effort, Gradients, Times, silence, steps_per_sample

from psgd_optim import PSGD, Diagonal, Fitting, Kron, Split
from psgd_optim.geometry import QUAD

CPU = torch.device("cpu")
BY_NAME = {contender.name: contender for contender in CONTENDERS}
TINY = Effort(repeats=2, warmup=1)


def quiet(line):
    pass


def chosen(*names):
    return [BY_NAME[name] for name in names]


@pytest.fixture(scope="module")
def record():
    torch.manual_seed(0)
    found = chosen(ADAMW_FUSED, "muon", "psgd-long-diagonal", "psgd-diagonal")
    return race(make_workload("mlp-64", CPU), found, TINY, quiet)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the script in an empty folder; return its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def call(line):
        monkeypatch.setattr("sys.argv", ["bench_step.py", *line.split()])
        code = run(bench_step.main)
        return code, *capsys.readouterr()

    return call


def test_script_writes_what_it_prints(call, tmp_path):
    line = "--models mlp-64 --contenders adamw-fused psgd-scal* kron-torch --repeats 7 --threads 1"
    # As if no peer were there.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("step_bench.study.installed", lambda names: {})
        code, out, err = call(f"{line} --out {tmp_path}/a/b")
    assert code == OK
    assert "mlp-64: repeat 7 of 7" in err
    text = (tmp_path / "a/b.json").read_text()
    assert str(tmp_path) not in text
    written = json.loads(text)
    facts = written["facts"]
    assert facts["config"]["repeats"] == 7
    assert {"command", "date", "commit", "machine", "device", "versions"} <= set(facts)
    assert {"python", "torch"} <= set(facts["versions"])
    assert facts["not_installed"] == ["kron-torch"]
    assert list(written["models"]) == ["mlp-64"]
    markdown = (tmp_path / "a/b.md").read_text()
    assert out.startswith(markdown)
    assert "## mlp-64: 11,085 parameters, batch of 64 samples" in markdown
    assert "Not installed: kron-torch." in markdown
    assert markdown.count("| psgd-scalar") == 2 + 2  # p = 0.03 and 1; apply and fit


def test_record_has_every_sample(record):
    assert json.loads(json.dumps(record)) == record
    assert record["parameters"] == 11_085
    assert record["parameter_bytes"] == 4 * 11_085
    assert all(len(values) == 2 for values in record["machine"].values())
    assert len(record["forward_backward"]["wall_ms"]) == 2
    assert record["left_out"] == {}
    assert set(record["contenders"][ADAMW_FUSED]["phases"]) == {WHOLE}
    contender = record["contenders"]["psgd-long-diagonal"]
    assert set(contender["phases"]) == {APPLY, FIT}
    for phase in contender["phases"].values():
        assert len(phase["wall_ms"]) == len(phase["cpu_ms"]) == 2
        assert phase["steps_per_sample"] >= 1
        assert set(phase["split_ms"]) == {*PARTS, OTHER}
        assert phase["peak_bytes"] > 0
    assert contender["phases"][FIT]["flops"] > contender["phases"][APPLY]["flops"] > 0


def test_split_sees_the_gate(record):
    phases = record["contenders"]["psgd-long-diagonal"]["phases"]
    assert phases[APPLY]["split_ms"]["update"] == [0, 0]
    for part in ("gather", "update", "apply", "write", OTHER):
        assert min(phases[FIT]["split_ms"][part]) > 0, part


def test_lines(record):
    adamw, muon, *ours = lines(record, 0.03)
    assert (adamw.probability, adamw.to_adamw, adamw.apply, adamw.fit) == (None, 1.0, None, None)
    assert muon.to_muon == 1.0
    assert [(line.contender, line.probability) for line in ours] == [
        ("psgd-long-diagonal", 0.03),
        ("psgd-long-diagonal", 1.0),
        ("psgd-diagonal", 0.03),
        ("psgd-diagonal", 1.0),
    ]
    sometimes, always, *_ = ours
    assert always.wall.middle == always.fit == sometimes.fit
    assert sometimes.wall.middle == pytest.approx(0.97 * sometimes.apply + 0.03 * sometimes.fit)
    assert sometimes.compute_limit < always.compute_limit
    assert sometimes.to_limit > 0
    assert sometimes.state_share > 1  # the momentum alone is 1
    # AdamW moves one average more.
    assert adamw.move_limit == pytest.approx(7 / 5 * always.move_limit)
    assert [line.probability for line in lines(record, 1.0)] == [None, None, 1.0, 1.0]


def test_mean_of_steps_with_and_without_a_fit():
    got = mean_spread([1.0, 3.0, 2.0], [10.0, 30.0, 50.0], 0.25)
    assert got == Spread(0.75 * 2 + 0.25 * 30, 0.75 * 1 + 0.25 * 10, 0.75 * 3 + 0.25 * 50)


def test_clocks_are_exclusive(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr(split_module, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = PartClock(CPU)
    inner = clock.around("apply", lambda: "done")
    outer = clock.around("update", lambda: inner())
    assert outer() == "done"
    assert clock.seconds == {"apply": 3.0, "update": 3.0}


def test_parts_add_up_to_the_step_and_leave_no_clock_behind(monkeypatch):
    taken = []
    clock = split_module.time.perf_counter
    model = torch.nn.Linear(8, 8)
    optimizer = PSGD(model.parameters(), fitting=Fitting(gate=1.0))
    model(torch.ones(2, 8)).sum().backward()
    before = [getattr(*find(module, path)) for module, path, _ in PHASES]

    def step():
        begin = clock()
        optimizer.step()
        taken.append(1000 * (clock() - begin))

    samples = split(step, lambda: None, 3, CPU)
    for i, whole in enumerate(taken):
        assert 0 < sum(samples[part][i] for part in PARTS) <= whole
        assert sum(values[i] for values in samples.values()) >= whole
    assert [getattr(*find(module, path)) for module, path, _ in PHASES] == before


@pytest.mark.parametrize(("module", "path", "part"), PHASES)
def test_functions_of_the_phases_exist(module, path, part):
    owner, name = find(module, path)
    assert callable(getattr(owner, name))
    assert part in PARTS


@pytest.mark.parametrize("path", ["nothing", "Block.nothing", "Nothing.step", "Block.catch_up.x"])
def test_phase_without_its_function_says_so(path):
    with pytest.raises(LookupError, match=r"There is no psgd_optim\.blocks\..* PHASES"):
        find("psgd_optim.blocks", path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--models mlp-65", "There is no model 'mlp-65'; did you mean mlp-64?"),
        ("--models resnet", "There is no model 'resnet'; known: gpt-0.8m,"),
        ("--contenders adamw-fuse", "no contender 'adamw-fuse'; did you mean adamw-fused?"),
        ("--contenders xyz*", "There is no contender 'xyz*'; --help lists the known."),
        ("--repeats 3", "Got repeats 3 and warmup 3; give --repeats 7 or more"),
        ("--warmup 0", "--warmup 1 or more."),
        ("--update-prob 1.5", "Got update-prob 1.5; give --update-prob in [0, 1]."),
        ("--threads 0", "Got --threads 0; give 1 to"),
        ("--device tpu", "The device 'tpu' cannot be used here"),
        ("--repeat 9", "no flag --repeat; did you mean --repeats?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, line, message):
    code, out, err = call(line)
    assert (code, out) == (BAD_INPUT, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_help_lists_models_and_contenders(call, capsys):
    with pytest.raises(SystemExit):
        call("--help")
    out = "".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in out for name in (*MODELS, *BY_NAME))


def test_names_are_unique():
    assert len(BY_NAME) == len(CONTENDERS) == len(STANDARD) + len(OURS) + 2 + len(PEERS)


def test_every_form_steps_or_says_why_not():
    # A dense matrix for each parameter takes seconds per fit.
    forms = [contender for contender in OURS if contender.name != "psgd-dense"]
    effort = Effort(repeats=1, warmup=1)
    record = race(make_workload("mlp-64", CPU), forms, effort, quiet)
    assert list(record["left_out"]) == ["psgd-butterfly"]
    assert "no multiple of 2" in record["left_out"]["psgd-butterfly"]
    assert len(record["contenders"]) == len(forms) - 1
    always = [name for name in record["contenders"] if name.endswith("-every-step")]
    assert len(always) == 2  # with one line instead of two
    assert len(lines(record, 0.5)) == 2 * len(record["contenders"]) - len(always)
    assert all(contender["state_bytes"] > 0 for contender in record["contenders"].values())


def test_what_does_not_fit_is_left_out():
    effort = Effort(repeats=1, warmup=1, max_state=1e6)
    found = chosen("muon", "psgd-both-dense")
    left_out = race(make_workload("conv", CPU), found, effort, quiet)["left_out"]
    assert left_out["muon"] == "the model has no hidden matrix"
    assert "max_memory is" in left_out["psgd-both-dense"]
    effort = Effort(repeats=1, warmup=1, longest=0.0)
    left_out = race(make_workload("mlp-64", CPU), chosen(ADAMW_FUSED), effort, quiet)["left_out"]
    assert left_out == {ADAMW_FUSED: "a step takes 0 s"}


@pytest.mark.parametrize("name", ["gpt-0.8m", "lstm-ptb", "mlp-64", "conv"])
def test_models_give_every_parameter_a_gradient(name):
    workload = make_workload(name, CPU)
    workload.backward(7)
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in workload.named)


def test_gradients_come_back_whatever_became_of_them():
    params = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3)]
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, i + 1.0)
    kept = Gradients(params)
    params[0].grad.zero_()
    params[1].grad = None
    params[2].grad.transpose_(0, 1)
    kept.restore()
    for i, p in enumerate(params):
        assert torch.equal(p.grad, torch.full((2, 3), i + 1.0))


def test_flops_of_a_plan():
    named = [
        ("a", torch.nn.Parameter(torch.zeros(10, 4))),
        ("b", torch.nn.Parameter(torch.ones(5))),
    ]
    # 10 x 4 has a dense factor on its short side, 5 a diagonal one.
    product, norm = 2 * 40 * 4, 2 * 32 * 8 * 4**2
    # A Gram matrix and the step, two products and a norm of the rotation, P.
    short = product + 2 * 4**3 + (4 * 4**3 + 2 * 40 * 4**2) + 2 * 4**3
    assert plan_flops(Kron(), named) == (product, 2 * product + short + norm)
    # The long side takes two products with the sample instead of the Gram matrix and the step.
    long = 4 * 40 * 10 + (4 * 10**3 + 2 * 40 * 10**2) + 2 * 10**3
    both = 2 * 40 * (4 + 10)
    of_both = plan_flops(Kron(max_skew=math.inf), named[:1])
    assert of_both == (both, 2 * both + short + long + norm)
    # QUAD moves both sides of a factor, and does not rotate.
    quad = Kron(max_skew=math.inf, geometry=QUAD)
    moves = (product + 2 * 2 * 4**3 + 2 * 4**3) + (4 * 40 * 10 + 2 * 10**3)
    assert plan_flops(quad, named[:1]) == (both, 2 * both + moves + norm)
    pieces, _ = plan_flops(Split(Kron(max_skew=math.inf), 5), named)
    assert pieces == 2 * (2 * 20 * (5 + 4)) + 2 * 5 * 5
    assert plan_flops(Diagonal(), named) is None


def test_limits():
    machine = {"matmul_gflops": [1.0, 2.0, 9.0], "copy_gigabytes_per_second": [4.0]}
    assert limits_ms(machine, 4e6, 8e6) == (2.0, 2.0)
    assert limits_ms(machine, None, 8e6) == (None, 2.0)
    named = [("a", torch.nn.Parameter(torch.zeros(10)))]
    assert moved_bytes(named, moments=1) == 10 * 4 * 5
    assert moved_bytes(named, moments=2) == 10 * 4 * 7


def test_state_is_counted_once_per_storage():
    parameter = torch.nn.Parameter(torch.zeros(6))
    optimizer = torch.optim.SGD([parameter])
    stack = torch.zeros(3, 100)
    optimizer.state[parameter] = {"a": stack[0], "b": [stack[1], {"c": parameter}], "d": 3}
    assert state_bytes([optimizer]) == 1200


def test_peak_is_the_most_at_once():
    def act():
        x = torch.zeros(1000)
        y = x + 1
        del x
        z = y + 1
        del y, z
        torch.zeros(500)

    assert peak_bytes(act, CPU) == pytest.approx(8000, abs=200)


def test_samples_are_whole_periods_and_not_too_short():
    assert steps_per_sample(Times(wall=100.0, cpu=0.0)) == 1
    assert steps_per_sample(Times(wall=2.0, cpu=0.0)) == 5
    assert steps_per_sample(Times(wall=0.0, cpu=0.0)) == 20
    assert steps_per_sample(Times(wall=100.0, cpu=0.0), period=10) == 10
    assert steps_per_sample(Times(wall=0.0, cpu=0.0), period=10) == 20


def test_installed_peers_have_versions():
    assert set(installed(MODULES)) <= set(MODULES)
    assert {contender.distribution for contender in PEERS} == set(MODULES)


def test_silence_ends():
    stream = io.StringIO()
    with redirect_stderr(stream):
        with silence():
            print("lost")
        print("kept", file=stream)
    assert stream.getvalue() == "kept\n"


def test_numbers():
    given = [0.01234, 12.345, 99.96, 12345.6, 2.0, 0, 1e-5, None]
    assert [*map(number, given)] == [
        "0.0123", "12.3", "100", "12,346", "2.00", "0", "<0.001", "-",
    ]  # fmt: skip


def test_table_is_aligned():
    assert table(("name", "ms"), [["a", "10.0"], ["long name", "2"]]) == (
        "| name      |   ms |\n| --------- | ---: |\n| a         | 10.0 |\n| long name |    2 |"
    )


@pytest.mark.gpu
def test_race_on_cuda():
    workload = make_workload("mlp-64", torch.device("cuda"), autocast=True)
    record = race(workload, chosen(ADAMW_FUSED, "psgd-long-diagonal"), TINY, quiet)
    assert len(lines(record, 0.03)) == 3


def test_graphs_of_a_device_are_refused_where_there_is_none():
    workload = make_workload("mlp-64", CPU)
    found = race(workload, chosen("psgd-long-diagonal-captured"), TINY, quiet)
    assert "no CUDA graphs" in found["left_out"]["psgd-long-diagonal-captured"]
    assert found["contenders"] == {}


@pytest.mark.gpu
def test_a_captured_step_is_measured_on_a_gpu():
    workload = make_workload("mlp-64", torch.device("cuda"))
    found = race(workload, chosen("psgd-long-diagonal-captured"), TINY, quiet)
    assert set(found["contenders"]) == {"psgd-long-diagonal-captured"}
