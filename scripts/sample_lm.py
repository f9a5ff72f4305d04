"""Write text with a trained language model."""

from collections.abc import Sequence
from pathlib import Path

from _cli import parse_run, run

from psgd_lm.sample import SampleConfig, read_prompt, sample_run, sample_texts


def main(args: Sequence[str]) -> None:
    """Print the prompt and what the model adds to it; a single text as it comes."""
    run_dir, config = parse_run(SampleConfig(), args, prog="sample_lm.py")
    if config.samples > 1:
        for number, text in enumerate(sample_texts(Path(run_dir), config), start=1):
            print(f"--- sample {number} of {config.samples}")
            print(read_prompt(config) + text)
        return
    pieces = sample_run(Path(run_dir), config)
    print(read_prompt(config), end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    raise SystemExit(run(main))
