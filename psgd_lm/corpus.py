"""Text to train on: the corpus that comes with Python, or a file of the user.

The embedded corpus needs no download and is not redistributed: it is read from the running
Python, whose version decides its exact wording. Hence every run records the text's SHA-256.
"""

import hashlib
import importlib
import platform
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from psgd_lm.text_files import TextFile
from psgd_optim.types import InputError

TOPICS = "pydoc_data.topics"
STANDARD_LIBRARY = "standard library source"
SOURCE_BYTES = 1_000_000
"""Size at which the standard library's source is cut; about twice that of the topics."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text and where it comes from."""

    text: str = field(repr=False)
    source: str
    """A module's name, or the path of a file."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text as UTF-8, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def provenance(self) -> dict[str, str | int]:
        """Return what a run records about its text, as JSON values."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "bytes": len(self.text.encode()),
            "python": platform.python_version(),
        }


def load_corpus(path: str | None) -> Corpus:
    """Read a text.

    Args:
        path: A UTF-8 text file, or None for the embedded corpus.

    Returns:
        The text.
    """
    return embedded_corpus() if path is None else read_corpus(Path(path))


def embedded_corpus() -> Corpus:
    """Return English prose that every CPython has: the topics of its `help()`.

    Some distributions strip that module; they get the standard library's source code instead.

    Topics quote each other; a paragraph is kept where it stands first, so that what a model is
    evaluated on does not stand in what it was trained on.

    Returns:
        The topics' paragraphs in the order of the topics' names, or the source.
    """
    module = _topics_module()
    if module is None:
        return standard_library_corpus(Path(sysconfig.get_path("stdlib")))
    topics: dict[str, str] = module.topics
    paragraphs = (p.strip("\n") for name in sorted(topics) for p in topics[name].split("\n\n"))
    once = dict.fromkeys(p for p in paragraphs if p.strip())
    return Corpus(text="\n\n".join(once) + "\n", source=TOPICS)


def _topics_module() -> ModuleType | None:
    try:
        return importlib.import_module(TOPICS)
    except ModuleNotFoundError:
        return None


def standard_library_corpus(folder: Path) -> Corpus:
    """Join the modules at the top of a library folder, in the order of their names.

    Args:
        folder: The folder with the `.py` files.

    Returns:
        Their text, cut at the first module that reaches `SOURCE_BYTES`.

    Raises:
        InputError: If the folder has no readable module.
    """
    parts: list[str] = []
    size = 0
    for file in sorted(folder.glob("*.py")):
        if size >= SOURCE_BYTES:
            break
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
    if not size:
        raise InputError(f"{folder} has no Python source to train on; give --data.path FILE.")
    return Corpus(text="\n".join(parts), source=STANDARD_LIBRARY)


def read_corpus(path: Path) -> Corpus:
    """Read a user's text file as it is, line ends included.

    Args:
        path: The file, plain or compressed with xz or gzip.

    Returns:
        Its text.

    Raises:
        InputError: If the file cannot be read, is no UTF-8, or is empty.
    """
    text = "".join(TextFile(path, str(path)).pieces())
    if not text:
        raise InputError(f"{path} is empty; give --data.path a file with text.")
    return Corpus(text=text, source=str(path))
