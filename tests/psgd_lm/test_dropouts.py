import pytest
import torch

from psgd_lm.dropouts import element_dropout, locked_dropout, weight_dropout, word_dropout

X = torch.ones(4, 5, 30, dtype=torch.float64)
TOKENS = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(0))


def locked(x, dropout, training):
    return locked_dropout(x, dropout, training=training)


def word(x, dropout, training):
    return word_dropout(x, TOKENS, 7, dropout, training=training)


def element(x, dropout, training):
    return element_dropout(x, dropout, training=training)


def weight(x, dropout, training):
    return weight_dropout(x, dropout, training=training)


every_kind = pytest.mark.parametrize("kind", [locked, word, weight, element])


@every_kind
def test_entries_are_dropped_or_scaled_so_that_the_mean_stays(kind):
    torch.manual_seed(0)
    values = torch.stack([kind(X, 0.2, True) for _ in range(200)])
    zero, scaled = values.unique().tolist()
    assert zero == 0
    assert scaled == pytest.approx(1 / (1 - 0.2), abs=2**-16)  # levels of 16 bits
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


@pytest.mark.parametrize("dropout", [2**-16, 0.25, 0.5, 1 - 2**-16, 0.999999])
def test_entries_are_dropped_at_their_rate_and_scaled_by_just_that(dropout):
    torch.manual_seed(0)
    x = torch.ones(2**22, dtype=torch.float64)
    left = element(x, dropout, True)
    rate = min(dropout, 1 - 2**-16)
    count = int((left == 0).sum())
    assert count == pytest.approx(rate * len(x), abs=5 * (rate * (1 - rate) * len(x)) ** 0.5)
    assert left.max().item() == pytest.approx(1 / (1 - rate), rel=1e-12)


def test_neighbouring_entries_are_dropped_independently():
    torch.manual_seed(0)
    kept = (element(torch.ones(2**20), 0.5, True) > 0).double() - 0.5
    for distance in (1, 2, 3, 4):
        together = (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(together) < 5 * 0.25 / 2**10


def test_element_dropout_can_be_differentiated_twice():
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    state = torch.get_rng_state()

    def loss(x):
        torch.set_rng_state(state)
        return element_dropout(x.square(), 0.5, training=True).square().sum()

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


def test_odd_sizes_and_an_empty_tensor_are_dropped_too():
    for count in (0, 1, 2, 3, 5):
        assert element_dropout(torch.ones(count), 0.5, training=True).shape == (count,)
