"""A prepared text: a folder with shards of tokens, their tokenizer, and a manifest."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psgd_lm.file_tokens import FileTokens
from psgd_lm.shards import open_shard
from psgd_lm.text_measure import combined_sha256
from psgd_lm.tokenizer import Tokenizer, saved_sha256, tokenizer_from_dict, tokenizer_sha256
from psgd_optim.tools.run_folder import read_json, write_json
from psgd_optim.types import InputError

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
FORMAT = 1
KIND = "psgd_lm text"
NEEDED = {"sha256", "tokenizer_sha256", "parts", "zlib_bits_per_byte"}
"""What a manifest is of no use without."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the manifest says about a part of a text."""

    shards: list[str]
    """Files in the folder."""
    tokens: int
    bytes: int
    """Of the text as UTF-8."""
    sha256: str
    """Of the text."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared text, open for reading."""

    path: Path
    tokenizer: Tokenizer
    tokens: Mapping[str, FileTokens]
    """By part: train, validation, and test if there is one."""
    manifest: Mapping[str, Any]


def write_prepared(
    folder: Path, tokenizer: Tokenizer, parts: Mapping[str, Part], about: Mapping[str, Any]
) -> None:
    """Write what belongs to the shards in a folder.

    Args:
        folder: With the shards.
        tokenizer: Of them.
        parts: By name.
        about: What else the manifest says, as JSON values.
    """
    write_json(folder / TOKENIZER, tokenizer.to_dict())
    write_json(
        folder / MANIFEST,
        {
            "kind": KIND,
            "format": FORMAT,
            "sha256": combined_sha256({name: part.sha256 for name, part in parts.items()}),
            "tokenizer": tokenizer.name,
            "tokenizer_sha256": tokenizer_sha256(tokenizer),
            "vocab_size": tokenizer.vocab_size,
            "parts": {name: asdict(part) for name, part in parts.items()},
            **about,
        },
    )


def is_prepared(folder: Path) -> bool:
    """Tell whether a folder has a prepared text."""
    return (folder / MANIFEST).is_file()


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared text.

    Args:
        folder: That `prepare` wrote.

    Returns:
        The text.

    Raises:
        InputError: If a file is missing, damaged, or does not belong to the others.
    """
    again = "prepare the text again"
    read = functools.partial(read_json, wanted="a folder that prepare_text.py wrote", again=again)
    manifest = read(folder / MANIFEST)
    if manifest.get("kind") != KIND or manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder / MANIFEST} is of kind {manifest.get('kind')!r}, format "
            f"{manifest.get('format')}; this version reads {KIND!r}, format {FORMAT}: {again}."
        )
    if missing := NEEDED - manifest.keys():
        raise InputError(f"{folder / MANIFEST} has no {', '.join(sorted(missing))}; {again}.")
    saved_tokenizer = read(folder / TOKENIZER)
    sha256 = saved_sha256(saved_tokenizer)
    if sha256 != manifest["tokenizer_sha256"]:
        raise InputError(f"{folder / TOKENIZER} is not the one that the shards have; {again}.")
    tokenizer = tokenizer_from_dict(saved_tokenizer)
    tokens: dict[str, FileTokens] = {}
    for name, saved in manifest["parts"].items():
        part = Part(**saved)
        shards = [open_shard(folder / file, sha256, tokenizer.vocab_size) for file in part.shards]
        tokens[name] = FileTokens(shards)
        if len(tokens[name]) != part.tokens:
            raise InputError(
                f"The {name} shards of {folder} have {len(tokens[name]):,} tokens, the manifest "
                f"says {part.tokens:,}; {again}."
            )
    return Prepared(path=folder, tokenizer=tokenizer, tokens=tokens, manifest=manifest)
