"""The tokenizer of GPT-2, from files on this machine: nothing is ever downloaded.

The vocabulary is read here and not by tiktoken, which asks the network for files it does not find
and copies those that it does.
"""

import base64
import hashlib
import os
import tempfile
from pathlib import Path
from typing import ClassVar, final

from psgd_lm.tokenizer.bpe import END_OF_TEXT, BPETokenizer
from psgd_optim.types import InputError

RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
"""Of the file r50k_base.tiktoken, which tiktoken checks too."""
RANKS_FILES = ("r50k_base.tiktoken", "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4")
"""The ranks with their tokens in base64; also as tiktoken names it in its cache."""
MERGES_FILES = ("vocab.bpe", "merges.txt", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
"""The merges in GPT-2's own spelling; the last name is the cache's."""


@final
class GPT2Tokenizer(BPETokenizer):
    """GPT-2's 50,257 tokens; the last one ends a document, whether the text has any or not."""

    name: ClassVar[str] = "gpt2"

    def _special(self) -> list[str]:
        return [self.separator or END_OF_TEXT]


def load_gpt2(folder: str | None, separator: str | None = None) -> GPT2Tokenizer:
    """Return GPT-2's tokenizer.

    Args:
        folder: With r50k_base.tiktoken or vocab.bpe; None for tiktoken's cache.
        separator: Text that is encoded as the token `<|endoftext|>`; None for none.

    Returns:
        The tokenizer.

    Raises:
        InputError: If the files are not there or are not GPT-2's.
    """
    places = [Path(folder)] if folder else cache_folders()
    for place in places:
        for name in RANKS_FILES + MERGES_FILES:
            file = place / name
            if file.is_file():
                tokens = _read_ranks(file) if name in RANKS_FILES else _read_merges(file)
                return GPT2Tokenizer(_checked(tokens, file), separator)
    where = " or ".join(map(str, places)) or "tiktoken's cache, which is switched off"
    raise InputError(
        f"There is no GPT-2 vocabulary in {where}; give --gpt2-files (--data.gpt2-files) a folder "
        "with r50k_base.tiktoken or vocab.bpe, or set TIKTOKEN_CACHE_DIR to a cache of tiktoken's."
    )


def cache_folders() -> list[Path]:
    """Return the folder where tiktoken keeps its files; none where its cache is switched off."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return [Path(os.environ[variable])] if os.environ[variable] else []
    return [Path(tempfile.gettempdir()) / "data-gym-cache"]


def _read_ranks(file: Path) -> list[bytes]:
    """Read lines of a token in base64 and its rank, which is also the line's number."""
    lines = file.read_bytes().splitlines()
    return [_from_base64(line.split(b" ")[0]) for line in lines]


def _from_base64(token: bytes) -> bytes:
    try:
        return base64.b64decode(token, validate=True)
    except ValueError:
        return b""  # no token: the checksum refuses the file


def _read_merges(file: Path) -> list[bytes]:
    """Read lines of two tokens that become one; bytes are spelled as printable characters."""
    # Bytes that print stand for themselves and have the first ids, in their order; the others
    # are spelled as the characters from U+0100 on.
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    spelled |= {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens = [bytes([byte]) for byte in printable + others]
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    merges = (line.replace(" ", "") for line in lines[1:] if line)  # the first names a version
    return tokens + [bytes(spelled.get(c, 0) for c in merge) for merge in merges]


def _checked(tokens: list[bytes], file: Path) -> list[bytes]:
    """Refuse tokens that are not GPT-2's."""
    lines = (b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
    if hashlib.sha256(b"".join(lines)).hexdigest() != RANKS_SHA256:
        raise InputError(f"{file} is not GPT-2's vocabulary, or damaged; restore it from a copy.")
    return tokens
