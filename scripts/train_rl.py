"""Train a PPO agent: train_rl.py PRESET [--flag value ...]."""

from collections.abc import Sequence

from _cli import again, parse, run

from psgd_rl import PRESETS, TUNED, train
from psgd_rl.presets import ABOUT, CHOICES


def main(args: Sequence[str]) -> None:
    """Train, and print where the run stands."""
    config = parse(PRESETS, args, prog="train_rl.py", about=ABOUT, choices=CHOICES, tuned=TUNED)
    result = train(config)
    print(
        f"{result.status}: {result.steps} steps of {config.actor.name} in {result.seconds:.1f} s "
        f"({result.steps / result.seconds:.0f} steps/s)"
    )
    if result.evaluation is not None:
        evaluation = result.evaluation
        print(f"return {evaluation.return_mean} +- {evaluation.return_std}")
    print(f"run folder: {result.run_dir}")
    if result.status == "interrupted":
        print(again("train_rl.py", args))


if __name__ == "__main__":
    raise SystemExit(run(main))
