"""The command line that the scripts share: presets, nested flags, one-line errors, exit codes."""

import contextlib
import dataclasses
import errno
import io
import itertools
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import tyro
from _choices import Choices, choice_flags, choose

from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

Config = TypeVar("Config")
OK, BAD_INPUT, STORAGE, INTERRUPTED = 0, 2, 3, 130
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
    errno.EPERM,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)
UNPARSED = re.compile(
    r"Error parsing (?P<flag>--\S+): .*?(?P<got>\[.*?\]|(?P<quote>['\"]).*?(?P=quote))"
)
MISSING = re.compile(r"Missing value for argument '(?P<flag>--\S+)'")
"""Complaints of tyro's that are put more simply."""
SETTINGS = (tyro.conf.AvoidSubcommands,)


def parse(
    presets: Mapping[str, Config],
    args: Sequence[str],
    *,
    prog: str,
    about: Mapping[str, str],
    choices: Choices,
    tuned: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Build a configuration from `PRESET [--flag value ...]`.

    A part that is chosen by name takes it as `--FIELD NAME`, its settings as
    `--FIELD.setting value`.

    Args:
        presets: The named starting points.
        args: The command line after the program's name.
        prog: The program's name in `--help`.
        about: A line on each preset.
        choices: What there is to choose, by field and name.
        tuned: Per preset, what names stand for instead.

    Returns:
        The preset with the flags applied.

    Raises:
        InputError: If the preset, a flag or a value is not known.
    """
    if not args or args[0] in ("-h", "--help"):
        lines = [f"usage: {prog} PRESET [--flag value ...]", "", "presets:"]
        lines += [f"  {name:<{max(map(len, presets))}}  {about[name]}" for name in presets]
        lines += ["", f"{prog} PRESET --help lists the flags.", ""]
        lines += [_told(choice_flags(next(iter(presets.values())), choices))]
        print("\n".join(lines))
        raise SystemExit(OK if args else BAD_INPUT)
    name, *rest = args
    if name not in presets:
        raise InputError(f"There is no preset {name!r}; {closest(name, list(presets))}")
    own = (tuned or {}).get(name, {})
    return parse_flags(
        presets[name],
        rest,
        prog=f"{prog} {name}",
        choices={field: {**known, **_alike(own, known)} for field, known in choices.items()},
    )


def _alike(tuned: Mapping[str, object], known: Mapping[str, object]) -> dict[str, object]:
    """Return the tuned settings of what is known: a name may stand for something else there."""
    kinds = {type(choice) for choice in known.values()}
    return {name: value for name, value in tuned.items() if name in known and type(value) in kinds}


def _told(flags: Mapping[str, Sequence[str]]) -> str:
    """Return the names that flags choose from, for a person to read."""
    if not flags:
        return ""
    lines = ["chosen by name, with settings of their own (--FLAG.setting value):"]
    for flag, names in flags.items():
        text = f"  {flag} NAME: {', '.join(names)}"
        lines += textwrap.wrap(text, width=90, subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines)


def parse_run(default: Config, args: Sequence[str], *, prog: str) -> tuple[str, Config]:
    """Parse `RUN [--flag value ...]`, the command line of a script that reads a run folder.

    Args:
        default: The configuration that the flags change.
        args: The command line after the program's name.
        prog: The program's name in `--help`.

    Returns:
        The run folder and the changed configuration.

    Raises:
        InputError: If the folder is not named first, or a flag or a value is not known.
    """
    if args and args[0] not in ("-h", "--help"):
        if args[0].startswith("-"):
            raise InputError(f"Got {args[0]} first; name the run folder before the flags.")
        return args[0], parse_flags(default, args[1:], prog=f"{prog} RUN")
    if args:
        parse_flags(default, args, prog=f"{prog} RUN")
    raise InputError(f"There is no run folder; usage: {prog} RUN [--flag value ...].")


def parse_flags(
    default: Config, args: Sequence[str], *, prog: str, choices: Choices = MappingProxyType({})
) -> Config:
    """Apply flags to a configuration.

    Args:
        default: The configuration that the flags change.
        args: The flags.
        prog: The program's name in `--help`.
        choices: What its parts can be, by field and name.

    Returns:
        The changed configuration.

    Raises:
        InputError: If a flag or a value is not known.
    """
    chosen, rest = choose(default, args, choices)
    flags = choice_flags(chosen, choices)
    config, unknown = parse_known(chosen, rest, prog=prog, more_help=_told(flags))
    if unknown and not unknown[0].startswith("-"):
        raise InputError(
            f"Got {unknown[0]!r} where a flag is expected; usage: {prog} [--flag value ...]."
        )
    if unknown:
        known = [*_flags(chosen), *flags]
        raise InputError(f"There is no flag {unknown[0]}; {closest(unknown[0], known)}")
    return config


def _flags(config: object, prefix: str = "--") -> list[str]:
    """Return the flags of a configuration, those of nested ones with their field's name."""
    flags: list[str] = []
    for name, value in vars(config).items():
        flag = prefix + name.replace("_", "-")
        flags += _flags(value, f"{flag}.") if dataclasses.is_dataclass(value) else [flag]
    return flags


def parse_known(
    default: Config, args: Sequence[str], *, prog: str, more_help: str = ""
) -> tuple[Config, list[str]]:
    """Apply the flags that a configuration has.

    Args:
        default: The configuration that the flags change.
        args: The flags, of this configuration and of others.
        prog: The program's name in `--help`.
        more_help: What `--help` says below its list of flags.

    Returns:
        The changed configuration, and the arguments that are not its own.

    Raises:
        InputError: If a value is not known.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                default=default,
                args=list(args),
                prog=prog,
                return_unknown_args=True,
                config=SETTINGS,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            print(more_help, end="\n" if more_help else "")
            raise
        raise InputError(_message(complaint.getvalue())) from None


def _message(box: str) -> str:
    """Return tyro's first complaint as one line: the box's text between its title and a rule."""
    # The box is drawn in Unicode, or with blanks and hyphens where the output takes ASCII only.
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
    text = " ".join(itertools.takewhile(lambda line: not line or line.strip("─╰╯-"), body))
    # A complaint of our own already names the flag.
    text = re.sub(r"^Error parsing [A-Za-z]\S*: ", "", text)
    if found := UNPARSED.match(text):
        # Below the complaint, the box has the flag's line of the help: its name and its type.
        takes = [line.removeprefix(f"{found['flag']} ") for line in lines if found["flag"] in line]
        return f"Got {found['got']} for {found['flag']}; give {takes[-1]}."
    if found := MISSING.match(text):
        flag = found["flag"]
        return f"Got no value for {flag}; give one, as {flag}=VALUE if it begins with a hyphen."
    return text or "The flags cannot be parsed."


def again(script: str, args: Sequence[str]) -> str:
    """Return the line that says how to go on with an interrupted run.

    Args:
        script: The script's file name.
        args: The command line after it.

    Returns:
        The same command with `--resume`, for the Python that runs now.
    """
    kept = [arg for arg in args if arg not in ("--resume", "--overwrite")]
    return "resume with: " + same_command(script, [*kept, "--resume"])


def same_command(script: str, args: Sequence[str]) -> str:
    """Return a script's command line for the Python that runs now.

    Args:
        script: The script's file name.
        args: The command line after it.
    """
    near = os.path.relpath(sys.executable)
    python = sys.executable if near.startswith("..") else near
    return shlex.join([python, f"scripts/{script}", *args])


def command(script: str, args: Sequence[str]) -> str:
    """Return a script's command line as it may be published.

    Args:
        script: The script's file name.
        args: The command line after it.

    Returns:
        The command, with absolute paths as seen from here, or cut to their last part.
    """
    return shlex.join(["python", f"scripts/{script}", *map(_without_machine, args)])


def _without_machine(arg: str) -> str:
    flag, equals, value = arg.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return arg
    here = Path.cwd()
    return flag + equals + str(path.relative_to(here) if path.is_relative_to(here) else path.name)


def run(main: Callable[[Sequence[str]], None], *, folder_flag: str = "--run-dir") -> int:
    """Run a script's `main` on the command line and turn what it raises into an exit code.

    Args:
        main: Takes the arguments after the program's name.
        folder_flag: The flag that says where the script writes.

    Returns:
        0 done or cleanly interrupted, 2 bad input, 3 storage, 130 cut off by a second signal;
        anything else raises, which exits with 1.
    """
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has seen enough, as in `sample_lm.py RUN | head`.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- until the exit
        return OK
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        print(
            f"error: cannot write {error.filename}: {error.strerror}; free space or give another "
            f"{folder_flag}.",
            file=sys.stderr,
        )
        return STORAGE
    return OK
