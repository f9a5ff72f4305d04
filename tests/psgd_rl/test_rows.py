import numpy as np
import pytest

from psgd_optim.tools.comparison import Member
from psgd_rl.picture import draw_curves, draw_efficiency, estimate_profile, steps_to
from psgd_rl.report import comparison_table
from psgd_rl.rows import best_rows, find_baseline, make_rows


def member(optimizer, lr, seed, returns, status="finished"):
    """Make up a run that evaluates after every 100 steps of a hundredth of a second."""
    summary = {
        "return_mean": returns[-1],
        "steps_per_second": 100.0,
        "seconds": float(len(returns)),
    }
    return Member(
        name=f"{optimizer}-{seed}",
        optimizer=optimizer,
        lr=lr,
        status=status,
        failure="",
        summary=summary if status == "finished" else {},
        evaluations=[
            {"step": 100 * i, "eval/return_mean": value, "seconds": float(i)}
            for i, value in enumerate(returns, start=1)
        ],
    )


RUNS = [
    member("slow", 0.1, 0, [0.0, 20.0, 10.0]),
    member("slow", 0.1, 1, [0.0, 10.0, 30.0]),
    member("fast", 0.2, 0, [5.0, 25.0, 20.0]),
    member("fast", 0.2, 1, [5.0, 25.0, 40.0]),
    member("fast", 0.4, 0, [5.0, 99.0, 99.0]),
    member("fast", 0.4, 1, [5.0], status="failed"),
    member("none", 0.1, 0, [5.0], status="failed"),
]


@pytest.fixture
def rows():
    return make_rows(RUNS)


def test_rows_are_over_seeds_best_first_and_whole_ones_before_others(rows):
    assert [(row.optimizer, row.lr) for row in rows] == [
        ("fast", 0.2),
        ("slow", 0.1),
        ("fast", 0.4),
        ("none", 0.1),
    ]
    fast, slow, none = best_rows(rows)
    assert (fast.lr, len(fast.runs), none.failed) == (0.2, 2, 1)
    assert (slow.final.tolist(), slow.best.tolist()) == ([10, 30], [20, 30])
    assert slow.iqm.value == 20
    assert slow.steps.tolist() == [100, 200, 300]
    assert slow.seconds.tolist() == [1, 2, 3]
    # (20, 40) against (10, 30): three of four pairs.
    assert fast.improvement(slow).value == 0.75
    assert find_baseline(rows, "slow") is slow
    assert find_baseline(rows, "none") is find_baseline(rows, "other") is None


def test_table_has_the_best_of_every_optimizer(rows):
    lines = comparison_table(rows, find_baseline(rows, "slow"), workers=2).splitlines()
    assert "P(> slow)" in lines[0]
    cells = "30.0 [20.0, 40.0] | 30.0 +- 14.1 | 32.5 [25.0, 40.0] | 0.75 [0.00, 1.00] | 100 | 3.0"
    assert lines[2] == f"| fast | 0.2 | 2 | {cells} |"
    assert lines[3].startswith("| slow | 0.1 | 2 | 20.0 [10.0, 30.0] |")
    assert lines[4] == "| none | 0.1 | 1 failed | - | - | - | - | - | - |"
    assert {line.count("|") for line in lines[:5]} == {10}
    assert (
        "lr 0.2 30.0, lr 0.4 99.0; chosen on the same seeds. The best is the smallest" in lines[-2]
    )
    assert lines[-1].startswith("2 runs at a time")


def test_table_without_baseline_and_with_one_seed_claims_nothing():
    lines = comparison_table(make_rows(RUNS[:1]), None).splitlines()
    assert "P(>" not in "".join(lines)
    assert lines[2] == "| slow | 0.1 | 1 | 10.0 | 10.0 | 20.0 | 100 | 3.0 |"


@pytest.mark.parametrize(
    ("size", "shown"), [(7000.0, "7000"), (250.0, "250"), (-4.125, "-4.12"), (-0.03, "-0.0300")]
)
def test_small_returns_keep_three_digits(size, shown):
    lines = comparison_table(make_rows([member("one", 0.1, 0, [size])]), None).splitlines()
    assert lines[2].split(" | ")[3] == shown


def test_steps_to_a_return_are_of_the_first_evaluation_there(rows):
    slow = find_baseline(rows, "slow")
    steps = steps_to(np.array([0.0, 10.0, 25.0]), slow)
    assert steps.tolist() == [[100, 200, np.inf], [100, 200, 300]]


def test_profile_is_the_part_of_the_runs_above(rows):
    profile = estimate_profile(np.array([5.0, 10.0, 30.0]), find_baseline(rows, "slow"))
    assert profile.value.tolist() == [1.0, 0.5, 0.0]
    assert profile.low.tolist() == [1.0, 0.0, 0.0]


def test_pictures_are_drawn_of_any_number_of_optimizers(rows, tmp_path):
    for drawn in ([row for row in best_rows(rows) if row.runs], []):
        for draw in (draw_curves, draw_efficiency):
            draw(drawn, tmp_path / "a.png")
            assert (tmp_path / "a.png").stat().st_size > 5_000
            (tmp_path / "a.png").unlink()
