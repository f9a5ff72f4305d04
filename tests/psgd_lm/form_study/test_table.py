"""The tables of the measurement."""

from psgd_lm.form_study.table import markdown

TIMES = {"median": 2.0, "min": 1.0, "max": 3.0, "ratio": 1.5}


def row(name, mean, lr=2.0):
    return {
        "name": name,
        "lr": lr,
        "grid": [[1.0, 5.0], [2.0, 4.0], [3.0, None]],
        "mean": mean,
        "std": None if mean is None else 0.125,
        "ms": {"fitting": TIMES, "between fits": TIMES},
        "state_bytes_per_parameter_byte": 2.0,
    }


def test_rows_are_sorted_by_loss_and_the_grid_s_edge_is_marked():
    rows = [row("diverged", None), row("b", 0.5, lr=1.0), row("a", 0.25)]
    record = {"about": "Task", "steps": 7, "rows": rows, "cpu_seconds": 1.0}
    lines = markdown([record]).splitlines()
    assert lines[0] == "**Task; 7 steps**"
    assert lines[-3:] == [
        "| a | 2 | 0.2500 ± 0.1250 | 2.0 (1.0-3.0) | 1.50 | 2.0 | 1.50 | 2.00 |",
        "| b | 1* | 0.5000 ± 0.1250 | 2.0 (1.0-3.0) | 1.50 | 2.0 | 1.50 | 2.00 |",
        "| diverged | 2 | diverged | 2.0 (1.0-3.0) | 1.50 | 2.0 | 1.50 | 2.00 |",
    ]


def test_iterations_tell_how_many_seeds_failed():
    rows = [
        {"name": "none", "iterations": [9, 9]},
        {"name": "some", "iterations": [4, 9]},
        {"name": "all", "iterations": [3, 5]},
    ]
    record = {"about": "Task", "steps": 9, "rows": rows, "cpu_seconds": 1.0}
    assert markdown([record]).splitlines()[-3:] == [
        "| all | 4 (3-5) |",
        "| some | 6.5 (4-9), 1 of 2 not |",
        "| none | none of 2 in 9 |",
    ]


def test_problems_that_are_not_finished_have_no_table():
    assert markdown([{"about": "Task", "steps": 1, "rows": []}]) == ""
