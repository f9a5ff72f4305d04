"""The merges of a byte-level BPE, learned from a text.

A text is cut into pre-tokens by a pattern; each starts as its bytes, and the pair of neighbours
that occurs most often becomes one token, again and again. Pairs are counted once and then only
where a merge has changed something; a heap with entries that may be out of date finds the most
frequent one.

Source: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword units",
section 3.2, on bytes instead of characters. Of equally frequent pairs the one first in the order
of bytes is taken, so that one text has one result.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from psgd_lm.tokenizer.base import utf8

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""Pre-tokens of GPT-2: endings such as 's, runs of letters, digits or signs, and blanks."""

MOST_BYTES = 2**26
"""Bytes at the beginning of a text that merges are learned from."""
MOST_PRETOKENS = 1_000_000
"""Different pre-tokens after which no more text is read; memory stays below a GB."""
KEPT_PRETOKENS = 200_000
"""The most frequent pre-tokens, from which merges are learned."""

Pair = tuple[int, int]


def train_bpe(pieces: Iterable[str], merges: int, separator: str | None = None) -> list[bytes]:
    """Learn the tokens of a text.

    Args:
        pieces: The text; a pre-token across two pieces counts as two.
        merges: Most tokens beside the 256 bytes. There are fewer where no pair occurs twice.
        separator: Text that is no part of any token.

    Returns:
        The tokens, in the order of their merging; the first 256 are the bytes.
    """
    return Merger(count_pretokens(pieces, separator)).run(merges)


def count_pretokens(pieces: Iterable[str], separator: str | None = None) -> dict[bytes, int]:
    """Count the pre-tokens of a text, or of as much of its beginning as memory allows.

    Args:
        pieces: The text.
        separator: Text between documents, not counted.

    Returns:
        The most frequent ones with their counts.
    """
    pattern = regex.compile(GPT2_PATTERN)
    counts: Counter[str] = Counter()
    size = 0
    for piece in pieces:
        for document in piece.split(separator) if separator else [piece]:
            counts.update(pattern.findall(document))
            size += len(utf8(document))
        if size >= MOST_BYTES or len(counts) >= MOST_PRETOKENS:
            break
    kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:KEPT_PRETOKENS]
    return {text.encode(): count for text, count in kept}


class Merger:
    """Pre-tokens as runs of token ids, and where each pair of neighbours stands.

    Args:
        counts: How often each pre-token occurs.
    """

    def __init__(self, counts: dict[bytes, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self._runs = [list(text) for text in counts]
        self._run_counts = list(counts.values())
        self._pair_counts: defaultdict[Pair, int] = defaultdict(int)
        self._runs_with: defaultdict[Pair, set[int]] = defaultdict(set)
        for i, run in enumerate(self._runs):
            for pair in pairwise(run):
                self._pair_counts[pair] += self._run_counts[i]
                self._runs_with[pair].add(i)
        self._heap = [self._entry(pair) for pair in self._pair_counts]
        heapq.heapify(self._heap)

    def run(self, merges: int) -> list[bytes]:
        """Merge the most frequent pair until there are enough tokens.

        Args:
            merges: Tokens to add; fewer are where no pair occurs twice.

        Returns:
            All tokens.
        """
        enough = len(self.tokens) + merges
        while len(self.tokens) < enough and (pair := self._most_frequent()):
            self._merge(pair)
        return self.tokens

    def _entry(self, pair: Pair) -> tuple[int, bytes, bytes, Pair]:
        left, right = pair
        return -self._pair_counts[pair], self.tokens[left], self.tokens[right], pair

    def _most_frequent(self) -> Pair | None:
        """Take the most frequent pair off the heap; None if none occurs twice."""
        while self._heap:
            negative, *_, pair = heapq.heappop(self._heap)
            count = self._pair_counts[pair]
            if count == -negative:
                return pair if count >= 2 else None
            # Every rise has an entry of its own, so a wrong one is of a pair that has got rarer.
            if 0 < count < -negative:
                heapq.heappush(self._heap, self._entry(pair))
        return None

    def _merge(self, pair: Pair) -> None:
        """Make one token of a pair wherever it stands."""
        # These bytes are no token yet: wherever a run keeps its ends on both sides of them, it has
        # gone through the same merges between, so they were two tokens at one time in all runs.
        new = len(self.tokens)
        self.tokens.append(self.tokens[pair[0]] + self.tokens[pair[1]])
        changes: defaultdict[Pair, int] = defaultdict(int)
        for i in self._runs_with.pop(pair):
            run, count = self._runs[i], self._run_counts[i]
            merged = replace_pair(run, pair, new)
            for old in pairwise(run):
                changes[old] -= count
            for now in pairwise(merged):
                changes[now] += count
                if now[0] == new or now[1] == new:
                    self._runs_with[now].add(i)
            self._runs[i] = merged
        for changed, difference in changes.items():
            if not difference:
                continue
            self._pair_counts[changed] += difference
            if not self._pair_counts[changed]:
                del self._pair_counts[changed]
            elif difference > 0:
                heapq.heappush(self._heap, self._entry(changed))


def replace_pair(run: list[int], pair: Pair, new: int) -> list[int]:
    """Return a run with every occurrence of a pair, from left to right, as one token.

    >>> replace_pair([1, 1, 1, 2], (1, 1), 3)
    [3, 1, 2]
    """
    merged: list[int] = []
    at, last = 0, len(run) - 1
    while at <= last:
        if at < last and run[at] == pair[0] and run[at + 1] == pair[1]:
            merged.append(new)
            at += 2
        else:
            merged.append(run[at])
            at += 1
    return merged
