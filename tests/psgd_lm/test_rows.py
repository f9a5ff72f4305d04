import json
import math

import pytest

from psgd_lm.rows import LMMember, Mean, best_rows, make_rows, with_target


def member(optimizer, lr, seed, losses, *, status="finished", ms=10.0, wd=0.0, test=None):
    """Make up a run: its losses are those of the evaluations after 0, 10, 20 ... steps."""
    summary = {
        "status": status,
        "val_loss": losses[-1],
        "bits_per_byte": losses[-1] * 2,
        "perplexity": math.exp(losses[-1]),
        "ms_per_step": ms,
        "parameters": 1234,
    }
    return LMMember(
        name=f"{optimizer}-{lr}-{seed}",
        optimizer=optimizer,
        lr=lr,
        weight_decay=wd,
        status=status,
        failure="out of luck" if status == "failed" else "",
        summary=summary if test is None else {**summary, "test_loss": test},
        evaluations=[
            {
                "step": 10 * i,
                "validation/loss": loss,
                "train/tokens": 640 * i,
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
    # Two values 0.4 apart: standard deviation 0.2 * sqrt(2), standard error 0.2.
    assert slow.val_loss == pytest.approx((2.2, 0.2))
    assert (slow.steps, slow.tokens) == (20, 1280)
    assert slow.training_seconds == pytest.approx(0.2)
    assert slow.curve.steps == [0, 10, 20]
    assert slow.curve.mean == pytest.approx([4, 3.1, 2.2])
    assert slow.curve.lowest == pytest.approx([4, 3.0, 2.0])
    assert slow.curve.highest == pytest.approx([4, 3.2, 2.4])
    assert (bad.finished, bad.diverged, bad.curve) == (0, 1, None)
    assert bad.val_loss == (math.inf, None)


def test_weight_decays_are_rows_of_their_own():
    runs = [member("a", 0.1, 0, [2.0], wd=wd) for wd in (0.0, 0.1, None)]
    # An optimizer without a weight decay has none in all its rows.
    assert [row.weight_decay for row in make_rows(runs[:2])] == [0.0, 0.1]
    assert [row.label for row in make_rows(runs[:2])] == ["a, lr 0.1", "a, lr 0.1, wd 0.1"]
    assert make_rows(runs[2:])[0].weight_decay is None


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_row_without_a_seed_comes_after_whole_ones(status):
    lucky = [member("a", 0.3, 0, [1.0]), member("a", 0.3, 1, [4.0], status=status)]
    whole = [member("a", 0.1, seed, [2.0]) for seed in (0, 1)]
    rows = make_rows([*lucky, *whole])
    assert [row.lr for row in rows] == [0.1, 0.3]
    assert (rows[1].finished, rows[1].diverged, rows[1].failed) == (
        1,
        int(status == "diverged"),
        int(status == "failed"),
    )
    assert rows[1].val_loss == Mean(1.0, None)
    assert [row.lr for row in best_rows(rows)] == [0.1]


def test_target_is_reached_at_the_first_evaluation_at_or_below_it():
    fast, slow, bad = (with_target(row, 2.0) for row in make_rows(RUNS))
    assert fast.reached.count == 2
    assert fast.reached.steps == (15, 5)  # 10 and 20
    assert fast.reached.tokens == (960, 320)
    assert fast.reached.seconds == pytest.approx((0.3, 0.1))
    assert slow.reached.count == 1
    assert slow.reached.steps == (20, None)
    assert bad.reached is None
    assert with_target(slow, 1.5).reached is not None  # kept from before
    assert with_target(make_rows(RUNS)[1], 1.5).reached is None


def test_test_losses_are_averaged_but_choose_nothing():
    runs = [
        member("a", 0.1, 0, [2.0], test=1.0),
        member("a", 0.2, 0, [1.9], test=3.0),
    ]
    best = best_rows(make_rows(runs))[0]
    assert (best.lr, best.test_loss) == (0.2, (3.0, None))


def test_figures_are_strict_json():
    rows = [with_target(row, 2.0).figures() for row in make_rows(RUNS)]
    read = json.loads(json.dumps(rows, allow_nan=False))
    assert read[2]["val_loss"] is None
    assert read[1]["val_loss"] == pytest.approx(2.2)
    assert read[1]["val_loss_standard_error"] == pytest.approx(0.2)
    assert read[0]["reached"]["steps_standard_error"] == 5
    assert "curve" not in read[0]
    assert "runs" not in read[0]
