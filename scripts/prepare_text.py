"""Turn text into shards of tokens: prepare_text.py INPUT ... [--flag value ...]."""

import itertools
import sys
from collections.abc import Sequence

from _cli import parse_flags, run
from tqdm import tqdm

from psgd_lm.prepare import STANDARD_INPUT, PrepareConfig, prepare


def main(args: Sequence[str]) -> None:
    """Prepare the inputs, and print what was written."""
    inputs = tuple(
        itertools.takewhile(lambda arg: arg == STANDARD_INPUT or not arg.startswith("-"), args)
    )
    config = parse_flags(
        PrepareConfig(inputs=inputs), args[len(inputs) :], prog="prepare_text.py INPUT ..."
    )
    # With disable=None it is shown on a terminal only.
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False) as bar:
        result = prepare(config, sys.stdin.buffer, bar.update)
    counts = ", ".join(f"{name} {part.tokens:,}" for name, part in result.parts.items())
    print(
        f"{result.tokens:,} tokens ({counts}) of a vocabulary of {result.vocab_size:,} from "
        f"{result.bytes:,} bytes in {result.seconds:.1f} s "
        f"({result.tokens / result.seconds:,.0f} tokens/s): {config.out}"
    )


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--out"))
