import json
import math

import pytest

from psgd_lm.report import Member, comparison_table, make_rows


def member(optimizer, lr, seed, losses, *, status="finished", ms=10.0):
    """Make up a run: its losses are those of the evaluations after 0, 10, 20 ... steps."""
    return Member(
        name=f"{optimizer}-{lr}-{seed}",
        optimizer=optimizer,
        lr=lr,
        summary={
            "status": status,
            "val_loss": losses[-1],
            "bits_per_byte": losses[-1] * 2,
            "perplexity": math.exp(losses[-1]),
            "seconds": 1.0 + seed,
            "ms_per_step": ms,
            "parameters": 1234,
        },
        evaluations=[
            {
                "step": 10 * i,
                "validation/bits_per_byte": loss * 2,
                "time/training": 10 * i * ms / 1000,
            }
            for i, loss in enumerate(losses)
        ],
    )


RUNS = [
    member("slow", 0.1, 0, [4.0, 3.0, 2.0]),
    member("fast", 0.1, 0, [4.0, 1.9, 1.0], ms=20.0),
    member("slow", 0.1, 1, [4.0, 3.2, 2.4]),
    member("fast", 0.1, 1, [4.0, 2.3, 1.2], ms=20.0),
    member("fast", 9.0, 0, [4.0], status="diverged"),
]


def test_rows_are_means_over_seeds_best_first():
    fast, slow, bad = make_rows(RUNS)
    assert (fast.optimizer, slow.optimizer, bad.lr) == ("fast", "slow", 9.0)
    assert slow.val_loss == pytest.approx(2.2)
    assert slow.seconds == pytest.approx(1.5)
    # Two values 0.4 apart: standard deviation 0.2 * sqrt(2), standard error 0.2.
    assert slow.standard_error == pytest.approx(0.2)
    assert slow.curve.steps == [0, 10, 20]
    assert slow.curve.mean == pytest.approx([8, 6.2, 4.4])
    assert slow.curve.lowest == pytest.approx([8, 6.0, 4.0])
    assert slow.curve.highest == pytest.approx([8, 6.4, 4.8])
    assert (bad.finished, bad.diverged, bad.curve) == (0, 1, None)


def test_diverged_seed_is_counted_and_left_out_of_the_means():
    runs = [*RUNS, member("slow", 0.1, 2, [4.0], status="diverged")]
    slow = next(row for row in make_rows(runs) if row.optimizer == "slow")
    assert (slow.finished, slow.diverged) == (2, 1)
    assert slow.val_loss == pytest.approx(2.2)


def test_table_is_markdown_and_says_who_was_sooner():
    table = comparison_table(make_rows(RUNS), 2.1)
    lines = table.splitlines()
    assert {line.count("|") for line in lines[:5]} == {10}
    assert lines[2].startswith("| fast | 0.1 | 2 | 1.1000 +- 0.1000 | 2.2000 |")
    assert lines[4].startswith("| fast | 9 | 1 diverged | - |")
    # fast's mean after 10 steps is 2.1, slow's last is 2.2.
    assert "fast, lr 0.1 reaches the final loss of slow, lr 0.1 by step 10 of 20" in table
    assert "in 0.2 s of training instead of 0.2 s" in table
    assert "zlib -9 takes 2.1000" in table


def test_figures_are_strict_json():
    rows = [row.figures() for row in make_rows(RUNS)]
    text = json.dumps(rows, allow_nan=False)
    assert json.loads(text)[2]["val_loss"] is None


def test_comparison_of_failures_alone_has_a_table():
    runs = [member("fast", 9.0, 0, [4.0], status="diverged")]
    assert "1 diverged" in comparison_table(make_rows(runs), 2.1)
