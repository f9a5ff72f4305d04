import pytest

from psgd_optim.tools.grid import Entry, Grid, edge_of_grid, parse_entry


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("psgd", Entry(name="psgd")),
        ("psgd@0.45", Entry(name="psgd", fraction=0.45)),
        ("psgd:1e-3", Entry(name="psgd", lrs=(1e-3,))),
        ("psgd:1e-3,2e-3@0.5", Entry(name="psgd", lrs=(1e-3, 2e-3), fraction=0.5)),
    ],
)
def test_entry_is_read(text, entry):
    assert parse_entry(text, {"psgd": None}) == entry


def test_learning_rates_are_the_entrys_then_those_of_all_then_its_own():
    own, tuned = 0.5, {"psgd": (1.0, 2.0, 3.0)}
    entry = Entry(name="psgd", lrs=(7.0,))
    assert Grid(lrs=(0.1,)).learning_rates(entry, own, tuned) == (7.0,)
    entry = Entry(name="psgd")
    assert Grid(lrs=(0.1,)).learning_rates(entry, own, tuned) == (0.1,)
    assert Grid().learning_rates(entry, own, tuned) == (0.5,)
    assert Grid(grid=True).learning_rates(entry, own, tuned) == (1.0, 2.0, 3.0)
    assert Grid(grid=True).learning_rates(entry, own, {}) == (0.25, 0.5, 1.0)


def test_best_rate_at_an_edge_is_told():
    assert edge_of_grid([0.1, 0.2, 0.3], 0.2) == edge_of_grid([0.1], 0.1) == ""
    assert "smallest lr: a smaller one" in edge_of_grid([0.3, 0.1], 0.1)
    assert "largest lr: a larger one" in edge_of_grid([0.3, 0.1], 0.3)
