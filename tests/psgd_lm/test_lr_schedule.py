import pytest

from psgd_lm.lr_schedule import lr_factor


def factors(steps=100, warmup=10, final=0.1):
    return [lr_factor(s, steps=steps, warmup=warmup, final=final) for s in range(steps)]


def test_lr_grows_then_falls_to_its_final_part():
    values = factors()
    assert values[0] == pytest.approx(1 / 11)
    assert max(values) == values[10] == 1
    assert values[-1] == pytest.approx(0.1)
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)


def test_lr_of_the_shortest_runs():
    assert factors(steps=1, warmup=0) == [1]
    assert factors(steps=2, warmup=1) == [0.5, 1]
    assert set(factors(final=1.0)[10:]) == {1.0}
