"""Evaluate a trained language model on its whole validation text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _cli import parse_run, run

from psgd_lm.evaluate import evaluate_run


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Evaluate a run's checkpoint on the validation part of its text."""

    best: bool = False
    """Take the checkpoint with the lowest evaluation instead of the last one."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1 ..."""


def main(args: Sequence[str]) -> None:
    """Evaluate, and print the figures."""
    run_dir, flags = parse_run(Flags(), args, prog="evaluate_lm.py")
    figures = evaluate_run(Path(run_dir), best=flags.best, device=flags.device)
    print(f"checkpoint of step {figures['step']}, {figures['tokens']:,} validation tokens")
    print(f"loss            {figures['loss']!r} +- {figures['standard_error']:.4f} nats/token")
    print(f"perplexity      {figures['perplexity']:.4f}")
    print(f"bits per byte   {figures['bits_per_byte']:.4f}")
    print(f"zlib -9         {figures['zlib_bits_per_byte']:.4f} bits/byte, the floor to beat")


if __name__ == "__main__":
    raise SystemExit(run(main))
