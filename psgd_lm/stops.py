"""Text that ends where a stop string begins, handed on as soon as that is certain."""

from collections.abc import Iterable, Iterator, Sequence


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Hand text on up to the first stop string, which is left out.

    The end of the text so far is held back while a stop string may begin in it.

    Args:
        pieces: The text; read no further than the stop string's end.
        stops: Strings that are not empty.

    Yields:
        The text, in pieces.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            if first := min(found):
                yield held[:first]
            return
        certain = len(held) - _open_end(held, stops)
        if certain:
            yield held[:certain]
            held = held[certain:]
    if held:
        yield held


def _open_end(text: str, stops: Sequence[str]) -> int:
    """Return how much of the end of a text may be the beginning of a stop string."""
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
