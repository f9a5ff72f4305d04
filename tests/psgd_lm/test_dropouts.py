import pytest
import torch

from psgd_lm.dropouts import locked_dropout, weight_dropout, word_dropout

X = torch.ones(4, 5, 30, dtype=torch.float64)
TOKENS = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(0))


def locked(x, dropout, training):
    return locked_dropout(x, dropout, training=training)


def word(x, dropout, training):
    return word_dropout(x, TOKENS, 7, dropout, training=training)


def weight(x, dropout, training):
    return weight_dropout(x, dropout, training=training)


every_kind = pytest.mark.parametrize("kind", [locked, word, weight])


@every_kind
def test_entries_are_dropped_or_scaled_so_that_the_mean_stays(kind):
    torch.manual_seed(0)
    values = torch.stack([kind(X, 0.2, True) for _ in range(200)])
    assert set(values.unique().tolist()) == {0.0, 1 / (1 - 0.2)}
    # Each call draws at least 5 masks: a thousand draws with standard deviation 0.5.
    assert values.mean().item() == pytest.approx(1, abs=4 * 0.5 / 1000**0.5)


@every_kind
@pytest.mark.parametrize(("dropout", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_and_nothing_drawn(kind, dropout, training):
    before = torch.get_rng_state()
    assert kind(X, dropout, training) is X
    assert torch.equal(torch.get_rng_state(), before)


@every_kind
def test_draws_are_those_of_the_global_generator(kind):
    torch.manual_seed(3)
    first, second = kind(X, 0.5, True), kind(X, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(kind(X, 0.5, True), first)
    assert not torch.equal(first, second)


def test_locked_dropout_drops_features_of_a_row_at_all_positions():
    torch.manual_seed(0)
    dropped = locked(X, 0.5, True)
    assert (dropped == dropped[:, :1]).all()
    assert not (dropped == dropped[:1]).all()
    assert not (dropped == dropped[..., :1]).all()


def test_word_dropout_drops_a_word_at_all_of_its_places():
    torch.manual_seed(0)
    dropped = word(X, 0.5, True)
    assert (dropped == dropped[..., :1]).all()
    kept = {word: {v.item() for v in dropped[word == TOKENS].unique()} for word in range(7)}
    assert all(len(values) == 1 for values in kept.values())
    assert len(set.union(*kept.values())) == 2
