"""Evaluate a trained language model on a whole part of its text."""

from collections.abc import Sequence
from pathlib import Path

from _cli import parse_run, run

from psgd_lm.evaluate_run import EvaluateConfig, evaluate_run
from psgd_optim.tools.run_folder import write_json


def main(args: Sequence[str]) -> None:
    """Evaluate, and print the figures."""
    run_dir, config = parse_run(EvaluateConfig(), args, prog="evaluate_lm.py")
    figures = evaluate_run(Path(run_dir), config)
    how = " (dynamic evaluation)" if config.dynamic.lr else ""
    print(f"checkpoint of step {figures['step']}, {figures['tokens']:,} {config.part} tokens{how}")
    print(f"loss            {figures['loss']!r} nats/token")
    print(f"standard error  {figures['block_standard_error']:.4f} over blocks of the text")
    print(f"                {figures['standard_error']:.4f} over tokens as if independent")
    print(f"perplexity      {figures['perplexity']:.4f}")
    print(f"bits per byte   {figures['bits_per_byte']:.4f}")
    if "zlib_bits_per_byte" in figures:
        print(f"zlib -9         {figures['zlib_bits_per_byte']:.4f} bits/byte, the floor to beat")
    if config.json:
        write_json(config.json, figures)
        print(f"figures: {config.json}")


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--json"))
