"""Evaluate a trained agent over fixed episodes, with mean actions and frozen statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _cli import command, parse_run, run

from psgd_rl.distributions import ActionArray
from psgd_rl.evaluate import evaluate_checkpoint, find_checkpoint, load_agent
from psgd_rl.exported import check_export, export_agent, read_statement
from psgd_rl.video import check_film, film_episode


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Evaluate an agent; RUN is a run's folder, an exported agent's, or a checkpoint file."""

    episodes: int | None = None
    """Episodes; by default as many as the run took, which gives its own number again."""
    best: bool = False
    """Take the checkpoint with the best evaluation instead of the last one."""
    video: Path | None = None
    """Film the first episode, .mp4 or .gif."""
    export: Path | None = None
    """Write the agent alone to this folder, with where it is from and this evaluation."""


def main(args: Sequence[str]) -> None:
    """Evaluate, and print the return."""
    run_dir, flags = parse_run(Flags(), args, prog="evaluate_rl.py")
    # What cannot be done is said before anything takes time.
    checkpoint = find_checkpoint(Path(run_dir), best=flags.best)
    statement = read_statement(Path(run_dir))
    if flags.video:
        check_film(flags.video)
    if flags.export:
        check_export(flags.export, Path(run_dir), best=flags.best)
    actions: list[ActionArray] = []
    evaluation = evaluate_checkpoint(checkpoint, flags.episodes, watch=actions.append)
    print(f"return {evaluation.return_mean} +- {evaluation.return_std}")
    count, length = len(evaluation.returns), evaluation.lengths.mean()
    error = f", standard error {evaluation.standard_error:.4g}" if count > 1 else ""
    print(f"over {count} episode{'s' * (count > 1)} of {length:.0f} steps{error}")
    if statement:
        print(statement.verdict(evaluation.return_mean))
    if flags.export:
        line = command("evaluate_rl.py", args)
        export_agent(Path(run_dir), flags.export, evaluation, best=flags.best, command=line)
        print(f"exported: {flags.export}")
    if flags.video:
        total = film_episode(flags.video, load_agent(checkpoint).env_id, actions)
        print(f"film: {flags.video}, return {total}")
        first = float(evaluation.returns[0])
        if total != first:
            print(f"The evaluation's first episode had {first}: the environment is not repeatable.")


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--export or --video"))
