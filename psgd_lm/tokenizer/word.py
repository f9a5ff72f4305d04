"""One token per word between blanks, and one per line end, as in Penn Treebank and WikiText.

The vocabulary is that of a training text; any other word becomes `<unk>`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from psgd_lm.tokenizer.base import places_from_the_end, require_ids, utf8
from psgd_optim.types import InputError

EOS, UNK = "<eos>", "<unk>"
MOST_WORDS = 2_000_000
"""Different words that are counted; their table takes about 300 MB."""


class WordTokenizer:
    """One token per word of a vocabulary, `<unk>` for any other, `<eos>` for a line end.

    Runs of blanks are not kept: text comes back with one blank between words.

    Args:
        words: The vocabulary, whose order gives the ids; with `<eos>` and `<unk>`.
    """

    name: ClassVar[str] = "word"

    def __init__(self, words: Sequence[str]) -> None:
        require_ids(self.name, words)
        self._words = list(words)
        self._ids = {word: i for i, word in enumerate(words)}
        self._eos, self._unk = self._ids[EOS], self._ids[UNK]

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], vocab_size: int | None = None) -> "WordTokenizer":
        """Return the tokenizer of a training text.

        Args:
            pieces: The text, cut anywhere.
            vocab_size: Most tokens, the most frequent words first; None for all words.

        Returns:
            The tokenizer; `<eos>` and `<unk>` are in its vocabulary whether the text has them or
            not.

        Raises:
            InputError: If the text has too many different words to count.
        """
        counts: Counter[str] = Counter()
        rest = ""
        for piece in pieces:
            text = rest + piece
            cut = next(places_from_the_end(text), 0)
            counts.update(text[:cut].split())
            rest = text[cut:]
            if len(counts) > MOST_WORDS:
                raise InputError(
                    f"The training text has more than {MOST_WORDS:,} different words; use the "
                    "tokenizer bpe."
                )
        counts.update(rest.split())
        counts.pop(EOS, None)
        counts.pop(UNK, None)
        # Equally frequent words go by their spelling, so that one text has one vocabulary.
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([EOS, UNK, *words][:vocab_size])

    @property
    def vocab_size(self) -> int:
        """Number of words, `<eos>` and `<unk>` included."""
        return len(self._words)

    @property
    def start_token(self) -> int:
        """The id of `<eos>`."""
        return self._eos

    def encode(self, text: str) -> Tensor:
        """Look every word up.

        Args:
            text: Any text of Unicode characters.

        Returns:
            (n,) int64, the ids; a line end at the end of the text gives the last `<eos>`.
        """
        utf8(text)
        words = text.replace("\n", f" {EOS} ").split()
        ids, unknown = self._ids, self._unk
        return torch.tensor([ids.get(word, unknown) for word in words], dtype=torch.int64)

    def last_cut(self, text: str) -> int:
        """Return the place before the last blank."""
        return next(places_from_the_end(text), 0)

    def stream(self, tokens: Iterable[int], after: str = "") -> Iterator[str]:
        """Yield each word with the blank before it, unless there is one, and line ends."""
        begins = not after or after[-1].isspace()
        for token in tokens:
            if token == self._eos:
                yield "\n"
            else:
                yield self._words[token] if begins else f" {self._words[token]}"
            begins = token == self._eos

    def byte_lengths(self) -> Tensor:
        """Return each word's UTF-8 bytes and one for the blank after it, (vocab_size,) int64.

        `<eos>` is the one byte of a line end; `<unk>` is as long as it is spelled. So where it
        replaces words that the text spells out, bits per byte are too low: they leave out what it
        takes to say which word it was.
        """
        lengths = torch.tensor([len(word.encode()) + 1 for word in self._words])
        lengths[self._eos] = 1
        return lengths

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the vocabulary."""
        return {"name": self.name, "words": self._words}
