"""Write text with a trained language model."""

from collections.abc import Sequence
from pathlib import Path

from _cli import parse_run, run

from psgd_lm.sample import SampleConfig, sample_run


def main(args: Sequence[str]) -> None:
    """Print the prompt and what the model adds to it, as it comes."""
    run_dir, config = parse_run(SampleConfig(), args, prog="sample_lm.py")
    pieces = sample_run(Path(run_dir), config)
    print(config.prompt, end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    raise SystemExit(run(main))
