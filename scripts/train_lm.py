"""Train a language model: train_lm.py PRESET [--flag value ...]."""

from collections.abc import Sequence

from _cli import again, parse, run

from psgd_lm.presets import ABOUT, CHOICES, PRESETS, TUNED
from psgd_lm.train import train


def main(args: Sequence[str]) -> None:
    """Train, and print where the run stands."""
    config = parse(PRESETS, args, prog="train_lm.py", about=ABOUT, choices=CHOICES, tuned=TUNED)
    result = train(config)
    summary = result.summary
    print(
        f"{result.status}: {summary['steps']} steps of {summary['optimizer']} in "
        f"{summary['seconds']:.1f} s ({summary['ms_per_step']:.1f} ms/step), "
        f"{summary['parameters']:,} parameters"
    )
    print(
        f"validation loss {summary['val_loss']:.4f} nats/token (step {summary['val_step']}), "
        f"perplexity {summary['perplexity']:.3f}, {summary['bits_per_byte']:.4f} bits/byte; "
        f"zlib -9: {summary['zlib_bits_per_byte']:.4f} bits/byte"
    )
    if "test_loss" in summary:
        print(
            f"test loss of the best checkpoint (step {summary['test_step']}) "
            f"{summary['test_loss']:.4f} nats/token, perplexity {summary['test_perplexity']:.3f}, "
            f"{summary['test_bits_per_byte']:.4f} bits/byte"
        )
    if summary["steps_left_out"]:
        print(f"steps left out as not finite: {', '.join(map(str, summary['steps_left_out']))}")
    print(f"run folder: {result.run_dir}")
    if result.status == "interrupted":
        print(again("train_lm.py", args))


if __name__ == "__main__":
    raise SystemExit(run(main))
