"""Train a PPO agent: `train_rl.py PRESET [--flag value ...]`."""

import shlex
from collections.abc import Sequence

from _cli import parse, run

from psgd_rl import PRESETS, train


def main(args: Sequence[str]) -> None:
    """Train as the command line says and print how it went."""
    config = parse(PRESETS, args, prog="train_rl.py")
    result = train(config)
    speed = result.steps / result.seconds
    print(f"{result.steps} steps in {result.seconds:.1f} s, {speed:.0f} steps/s")
    if result.evaluation is None:
        flags = [arg for arg in args if arg not in ("--resume", "--overwrite")]
        print(f"interrupted; continue with: train_rl.py {shlex.join(flags)} --resume")
        return
    evaluation = result.evaluation
    print(f"return {evaluation.return_mean} +- {evaluation.return_std} ({result.run_dir})")


if __name__ == "__main__":
    raise SystemExit(run(main))
