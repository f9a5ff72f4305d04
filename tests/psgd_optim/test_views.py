"""Every view writes through to the parameters, and its rows hold each element exactly once."""

import pytest
import torch
from torch import Tensor

from psgd_optim.views import Box, Joined, Pieces, Stacked, View, squeezed


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=rng, dtype=dtype).requires_grad_() for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng, dtype=dtype)
    return params


def halves() -> list[tuple[slice, ...]]:
    return [(slice(0, 2), slice(0, 3)), (slice(2, 4), slice(0, 3))]


def mixed() -> list[tuple[torch.Tensor, list[Box]]]:
    """One piece of a parameter that is one, two of a longer one."""
    small, long = parameters((2, 3), (4, 1, 3))
    return [(small, halves()[:1]), (long, halves())]


def views() -> dict[str, View]:
    channels_last = parameters((2, 2, 3, 2))[0].detach().to(memory_format=torch.channels_last)
    boxes = [(slice(0, 2), slice(0, 2), slice(0, 3), slice(i, i + 1)) for i in range(2)]
    return {
        "stacked": Stacked(parameters((4, 1, 3), (4, 3))),
        "stacked-number": Stacked(parameters((), (1, 1))),
        "stacked-transposed": Stacked([parameters((3, 4))[0].detach().mT]),
        "joined": Joined(parameters((4, 3), (), (2, 1))),
        "joined-transposed": Joined([parameters((3, 4))[0].detach().mT]),
        "pieces": Pieces([(p, halves()) for p in parameters((4, 1, 3), (4, 3))]),
        "pieces-transposed": Pieces([(parameters((3, 4))[0].detach().mT, halves())]),
        "pieces-channels-last": Pieces([(channels_last, boxes)]),
        "pieces-of-two-shapes": Pieces(mixed()),
        "pieces-number": Pieces([(p, [(slice(0, 1),)]) for p in parameters((), (1, 1))]),
    }


@pytest.mark.parametrize("name", views())
def test_what_is_added_to_the_pairs_is_what_gather_then_shows(name: str) -> None:
    view = views()[name]
    for p in view.params:
        p.grad = torch.ones_like(p)  # a joined view moves only what has a gradient
    before = view.gather(lambda p: p.detach())
    assert before.shape == (view.rows, *view.shape)
    assert before.numel() == sum(p.numel() for p in view.params)
    change = torch.arange(1.0, before.numel() + 1, dtype=torch.float64).view(before.shape)
    with torch.no_grad():
        for p, row in zip(*view.pairs(change), strict=True):
            assert p.shape == row.shape
            p.add_(row)
    after = view.gather(lambda p: p.detach())
    torch.testing.assert_close(after, before + change, rtol=0, atol=0)


@pytest.mark.parametrize("name", views())
def test_gather_returns_a_copy_and_counts_nothing_as_zero(name: str) -> None:
    view = views()[name]
    held = [p.detach().clone() for p in view.params]
    view.gather(lambda p: p.detach()).zero_()
    assert all(torch.equal(x, p.detach()) for x, p in zip(held, view.params, strict=True))
    assert not view.gather(lambda p: None).any()


def test_a_stack_is_in_row_order_whatever_the_strides() -> None:
    p = torch.arange(6.0).view(3, 2).mT
    for view in (Stacked([p]), Joined([p])):
        assert view.gather(lambda q: q).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_parameter_without_a_gradient_is_no_pair_of_a_joined_view() -> None:
    params = parameters((2, 2), (3,), ())
    params[1].grad = None
    moved, rows = Joined(params).pairs(torch.arange(8.0)[None])
    assert [p is q for p, q in zip(moved, (params[0], params[2]), strict=True)] == [True, True]
    assert rows[0].tolist() == [[0, 1], [2, 3]]
    assert float(rows[1]) == 7


def test_the_view_of_some_units_has_their_rows() -> None:
    params = parameters((4, 3), (4, 3), (4, 3))
    whole = Pieces([(p, halves()) for p in params])
    part = whole.only([0, 2])
    assert (part.rows, part.shape, part.prefix) == (4, (2, 3), "2x3/")
    rows = whole.gather(lambda p: p.detach())[[0, 1, 4, 5]]
    torch.testing.assert_close(part.gather(lambda p: p.detach()), rows, rtol=0, atol=0)
    other = Pieces(mixed())
    assert (other.counts, other.rows, other.only([1]).rows) == ([1, 2], 3, 2)
    rows = other.gather(lambda p: p.detach())[1:]
    torch.testing.assert_close(other.only([1]).gather(lambda p: p.detach()), rows, rtol=0, atol=0)
    assert Stacked(params).only([1]).params[0] is params[1]
    joined = Joined(params)
    assert joined.only([0]) is joined


def test_axes_of_one_element_are_dropped_but_for_a_single_number() -> None:
    assert squeezed((1, 1)) == (1,)
    assert squeezed((2, 1, 3, 1)) == (2, 3)
