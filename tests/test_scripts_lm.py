"""Every language-model script, from its command line to what it prints, in this process."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import compare
import compare_forms
import evaluate_lm
import pytest
import sample_lm
import train_lm
from _cli import BAD_INPUT, OK, STORAGE, run

from psgd_lm import trainee
from psgd_optim.tools.checkpoint import write_checkpoint


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a script in an empty folder; return its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def call(script, line):
        monkeypatch.setattr("sys.argv", [script.__name__, *line.split()])
        code = run(script.main)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def trained(call):
    assert call(train_lm, "smoke")[0] == OK
    return Path("runs/smoke")


def test_train_evaluate_and_sample(call):
    code, out, err = call(train_lm, "smoke --optim=adamw --optim.lr=3e-3 --run-dir runs/mine")
    assert (code, err) == (OK, "")
    assert "finished: 20 steps of adamw" in out
    summary = json.loads(Path("runs/mine/summary.json").read_text())
    assert summary["lr"] == 3e-3

    code, out, err = call(evaluate_lm, "runs/mine")
    assert (code, err) == (OK, "")
    assert repr(summary["val_loss"]) in out

    code, out, err = call(sample_lm, "runs/mine --prompt The --tokens 25 --top-k 5")
    assert (code, err) == (OK, "")
    assert out.startswith("The")
    assert len(out) == 3 + 25 + 1

    Path("prompt.txt").write_text("The")
    line = "runs/mine --prompt-file prompt.txt --tokens 5 --samples 2 --stop never ever"
    code, out, err = call(sample_lm, line)
    assert (code, err) == (OK, "")
    assert re.fullmatch(
        r"--- sample 1 of 2\nThe[^·]{5}\n--- sample 2 of 2\nThe[^·]{5}\n", out, re.DOTALL
    )


def test_evaluation_takes_a_part_a_stride_and_a_file(call, trained):
    whole = call(evaluate_lm, "runs/smoke --json figures.json")
    assert whole[0] == OK
    assert "figures: figures.json" in whole[1]
    figures = json.loads(Path("figures.json").read_text())
    assert figures["part"] == "validation"
    call(evaluate_lm, "runs/smoke --stride 8 --json strided.json")
    assert json.loads(Path("strided.json").read_text())["loss"] < figures["loss"]
    code, out, _ = call(evaluate_lm, "runs/smoke --dynamic.lr 0.1 --dynamic.rule sgd")
    assert code == OK
    assert "(dynamic evaluation)" in out


def test_training_reports_the_best_checkpoint_on_the_test_part(call, tmp_path):
    text = "the quick brown fox jumps over the lazy dog\n"
    for part, times in (("train", 40), ("valid", 8), ("test", 4)):
        (tmp_path / f"{part}.txt").write_text(text * times)
    code, out, err = call(train_lm, f"smoke --data.path {tmp_path} --run-dir runs/parts")
    assert (code, err) == (OK, "")
    summary = json.loads(Path("runs/parts/summary.json").read_text())
    assert f"(step {summary['best_step']}) {summary['test_loss']:.4f} nats/token" in out


def test_interrupted_training_says_how_to_go_on(call, monkeypatch):
    build = trainee.build_optimizer

    def build_and_interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        return build(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainee, "build_optimizer", build_and_interrupt)
        code, out, _ = call(train_lm, "smoke --seed 3")
    assert code == OK
    assert "interrupted: 0 steps" in out
    python, command = re.search(r"resume with: (\S+) scripts/train_lm.py (.*)", out).groups()
    assert os.path.samefile(python, sys.executable)
    assert command == "smoke --seed 3 --resume"
    code, out, _ = call(train_lm, command)
    assert code == OK
    assert "finished: 20 steps" in out


def test_comparison_of_nothing_but_diverged_runs_is_no_success(call):
    code, out, err = call(compare, "lm smoke --lrs 1e30 --run-dir runs/bad")
    assert code == BAD_INPUT
    assert "| psgd |" in out
    assert err == "error: Every run diverged or failed; try lower learning rates with --lrs.\n"


def test_compare_prints_its_table(call):
    code, out, err = call(compare, "lm smoke --seeds 0 1 --steps 10 --run-dir runs/first")
    assert (code, err) == (OK, "")
    assert out.count("\n| ") == 2
    assert "| psgd |" in out
    assert Path("runs/first/curves.png").is_file()
    again = "lm smoke --seeds 0 1 --steps 10 --run-dir runs/first --resume"
    assert call(compare, again)[1] == out
    assert (
        call(compare, "lm smoke --seeds 0 1 --steps 10 --run-dir runs/first --overwrite")[0] == OK
    )


@pytest.mark.parametrize(
    ("script", "line", "message"),
    [
        (train_lm, "smok", "no preset 'smok'; did you mean smoke?"),
        (train_lm, "smoke --step 3", "no flag --step; did you mean --steps?"),
        (train_lm, "smoke --optim.lrr 3", "no flag --optim.lrr; did you mean --optim.lr?"),
        (train_lm, "smoke --optim adam", "no --optim 'adam'; did you mean adamw?"),
        (train_lm, "smoke --steps 0", "Got steps 0; give --steps 1 or more."),
        (train_lm, "smoke --optim=adamm", "no --optim 'adamm'; did you mean adamw?"),
        (train_lm, "smoke --optim.momentum 2", "PSGD got momentum = 2.0; give a number"),
        (train_lm, "smoke --optim adamw --optim.beta1 2", "Invalid beta parameter"),
        (train_lm, "smoke --optim", "--optim got no name; give one of: psgd, adamw, sgd, muon"),
        (train_lm, "smoke --optim --steps 3", "--optim got no name"),
        (
            train_lm,
            "smoke --optim.form lowrank",
            "no --optim.form 'lowrank'; did you mean low-",
        ),
        (train_lm, "smoke --optim adamw --optim.form kron", "There is no flag --optim.form;"),
        (train_lm, "smoke --optim.max-skew 2", "did you mean --optim.form.max-skew?"),
        (train_lm, "smoke --optim.form.rank 2", "no flag --optim.form.rank"),
        (train_lm, "smoke --optim.form.geometry EQ --optim.form xmat", "no flag --optim.form.geo"),
        (train_lm, "smoke --optim.form touched-rows --optim.criterion newton", "with Newton"),
        (train_lm, "smoke --optim newton", "--grad-clip 0"),
        (train_lm, "smoke --optim.criterion curvature", "give it the criterion newton"),
        (train_lm, "smoke --optim muon", "role embedding; give --embedding adamw"),
        (train_lm, "smoke --optim peer --optim.target no_such.SOAP", "install its package"),
        (train_lm, "smoke --steps x", "Got 'x' for --steps; give INT."),
        (train_lm, "smoke --steps 5 x", "Got 'x' where a flag is expected; usage: train_lm.py smo"),
        (train_lm, "smoke --optim.lr", "Got no value for --optim.lr; give one, as --optim.lr=VAL"),
        (train_lm, "smoke --data.vocab-size x", "Got ['x'] for --data.vocab-size; give {None}|INT"),
        (train_lm, "smoke --model.width 15", "change --model.width or --model.heads."),
        (train_lm, "smoke --data.path none.txt", "Cannot read the text none.txt"),
        (train_lm, "smoke --data.path empty.txt", "empty.txt is empty"),
        (train_lm, "smoke --data.path short.txt", "has 9 tokens, a window takes 17"),
        (train_lm, "smoke --data.path latin.txt", "0xe9 in line 1, at byte offset 3"),
        (train_lm, "smoke --optim.lr 1e30 --schedule.warmup 0", "gradient of step 5 is not finite"),
        (train_lm, "smoke --run-dir other", "other exists and is no run folder"),
        (train_lm, "smoke --resume", "There is no runs/smoke/config.json"),
        (train_lm, "shakespeare-cpu", "Cannot read the text input.txt"),
        (evaluate_lm, "", "There is no run folder; usage: evaluate_lm.py RUN"),
        (evaluate_lm, "--best", "name the run folder before the flags"),
        (evaluate_lm, "nowhere", "There is no nowhere/config.json"),
        (evaluate_lm, "nowhere --bst", "no flag --bst; did you mean --best?"),
        (sample_lm, "nowhere", "There is no nowhere/config.json"),
        (sample_lm, "nowhere --temperature -1", "temperature -1.0; give --temperature 0 or more"),
        (compare, "tetris", "There is no task 'tetris'; known: lm, rl."),
        (compare, "lm smok", "no preset 'smok'; did you mean smoke?"),
        (compare, "lm smoke --seeds 0 x", "Got ['0', 'x'] for --seeds; give [INT [INT ...]]."),
        (compare, "lm smoke --optimizers psgd@3", "give a fraction above 0 and up to 1"),
        (compare, "lm smoke --workers 0", "give --workers 1 or more"),
        (evaluate_lm, "nowhere --part tests", "--part"),
        (evaluate_lm, "nowhere --dynamic.rule rms", "give --dynamic.lr too"),
        (evaluate_lm, "nowhere --json gone/x.json", "give --json a file in a folder there is"),
        (evaluate_lm, "nowhere --json other", "Cannot write other; give --json a file"),
        (evaluate_lm, "nowhere --stride -2", "stride -2; give --stride 0 or more"),
        (sample_lm, "nowhere --top-p 2", "top_p 2.0; give --top-p above 0 and up to 1"),
        (sample_lm, "nowhere --prompt-file gone", "Cannot read gone (No such file"),
        (compare, "lm smoke --seed 1", "give --optimizers, --lrs and --seeds"),
        (compare_forms, "--problems txt", "There is no problem 'txt'; did you mean text?"),
        (compare_forms, "--step 3", "no flag --step; did you mean --steps?"),
        (compare, "lm smoke --optimizers adam", "no optimizer 'adam'; did you mean adamw"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, tmp_path, script, line, message):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "short.txt").write_text("a" * 10)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("work of years")
    code, out, err = call(script, line)
    assert (code, out) == (BAD_INPUT, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert (tmp_path / "other" / "thesis.tex").read_text() == "work of years"


def test_run_folder_that_exists_needs_a_decision(call, trained):
    code, _, err = call(train_lm, "smoke")
    assert code == BAD_INPUT
    assert "give --resume, --overwrite or another --run-dir" in err
    assert call(train_lm, "smoke --overwrite")[0] == OK
    assert call(train_lm, "smoke --resume")[0] == OK


@pytest.mark.parametrize("script", [evaluate_lm, sample_lm])
def test_unusable_checkpoint_is_refused(call, trained, script):
    path = trained / "checkpoint" / "last.pt"
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = call(script, "runs/smoke")
    assert code == BAD_INPUT
    assert "damaged or truncated" in err
    write_checkpoint(path, "psgd_rl", {})
    code, _, err = call(script, "runs/smoke")
    assert code == BAD_INPUT
    assert "checkpoint of 'psgd_rl', not of 'psgd_lm'" in err


def test_unknown_character_in_the_prompt_is_refused(call, trained):
    code, out, err = call(sample_lm, "runs/smoke --prompt 日")
    assert (code, out) == (BAD_INPUT, "")
    assert "'日' at position 0" in err


def test_full_disk_is_exit_code_3(call, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "runs/smoke/checkpoint/last.pt")

    monkeypatch.setattr("psgd_lm.run_state.write_checkpoint", full)
    code, _, err = call(train_lm, "smoke")
    assert code == STORAGE
    assert err.startswith("error: cannot write runs/smoke/checkpoint/last.pt: No space left")


def test_run_folder_below_a_file_is_bad_input(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call(train_lm, "smoke --run-dir file/run")
    assert code == BAD_INPUT
    assert "file/run cannot be made (Not a directory); give another --run-dir." in err


@pytest.mark.parametrize(
    ("script", "line", "words"),
    [
        (train_lm, "--help", ["embedded", "shakespeare-char", "--optim NAME", "psgd, adamw"]),
        (
            train_lm,
            "smoke --optim=adamw --help",
            ["--optim.beta1", "--optim NAME: psgd, adamw"],
        ),
        (
            train_lm,
            "smoke --help",
            [
                "--optim.lr",
                "--optim.form NAME: kron",
                "--optim.form.max-size",
                "--data.path",
                "Windows of text per step,",
            ],
        ),
        (evaluate_lm, "--help", ["--best", "--dynamic.lr", "--part"]),
        (sample_lm, "--help", ["--temperature", "--min-p", "--stop"]),
        (compare_forms, "--help", ["--problems", "Steps of every run"]),
        (compare, "--help", ["TASK [PRESET]", "lm"]),
        (compare, "lm --help", ["--optimizers", "--workers", "--baseline", "train_lm.py"]),
        (compare, "lm smoke --help", ["shakespeare-cpu", "smoke: psgd, adamw, sgd, muon", "soap"]),
    ],
)
def test_help_names_what_there_is(call, capsys, script, line, words):
    with pytest.raises(SystemExit) as stop:
        call(script, line)
    assert stop.value.code in (0, None)
    out = capsys.readouterr().out
    assert all(word in out for word in words)
