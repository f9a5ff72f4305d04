"""A film of an evaluation's first episode, drawn by gymnasium's own environment."""

import contextlib
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import imageio.v2
import mujoco

from psgd_optim.types import InputError
from psgd_rl.config import FIRST_EVALUATION_SEED
from psgd_rl.distributions import ActionArray
from psgd_rl.envs.gymnasium_spaces import decode_actions
from psgd_rl.envs.make import GymEnv
from psgd_rl.envs.tasks import TASKS

Film = Any
"""A writer of imageio's, which has no types."""

T = TypeVar("T")

MOST_FRAMES = 50
"""Per second: players show GIF files of more at another speed. Frames are left out instead."""


def check_film(path: Path) -> None:
    """Check that a film can be written under a name.

    Args:
        path: The file to write.

    Raises:
        InputError: If its suffix is of no film, or what writes such films is not installed.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise InputError(f"{path} names no film; give a name that ends in .mp4 or .gif.")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError(
            f"{path} needs imageio-ffmpeg; pip install 'psgd-toolkit[video]', or give a name that "
            "ends in .gif."
        )


def film_episode(path: Path, env_id: str, actions: Sequence[ActionArray]) -> float:
    """Write a film of the first episode of an evaluation.

    Args:
        path: The file to write, whole or not at all; its suffix decides the format.
        env_id: gymnasium's name of the environment.
        actions: (a,) or () each, as `evaluate` hands them to its `watch`.

    Returns:
        The sum of the rewards: that of the evaluation's episode, unless the environment gives
        other rewards for the same seed and actions.

    Raises:
        InputError: If there is no writer for the format, or gymnasium cannot draw or step the
            environment.
    """
    check_film(path)
    # Without a display, mujoco's default of a window cannot draw.
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("MUJOCO_GL", "egl")
    env = _call(env_id, lambda: _make(env_id))
    try:
        with _writer(path, env.metadata.get("render_fps", 30)) as (film, every):
            return _play(env, env_id, actions, film, every)
    finally:
        env.close()


def _play(
    env: GymEnv, env_id: str, actions: Sequence[ActionArray], film: Film, every: int
) -> float:
    """Take the actions, with a frame before every `every`-th one and after the last."""
    _, decode = decode_actions(env_id, env.action_space)
    _call(env_id, lambda: env.reset(seed=FIRST_EVALUATION_SEED))
    total = 0.0
    for number, action in enumerate(actions):
        if number % every == 0:
            film.append_data(_call(env_id, env.render))
        step = partial(env.step, decode(action[None])[0])
        total += float(_call(env_id, step)[1])
    film.append_data(_call(env_id, env.render))
    return total


def _make(env_id: str) -> GymEnv:
    # Runners leave the default camera's view within two seconds. Models without a camera of that
    # name are drawn by the default one.
    options = {"camera_name": "track"} if env_id in TASKS else {}
    with warnings.catch_warnings():
        # That a newer version of the environment exists changes nothing here.
        warnings.simplefilter("ignore", DeprecationWarning)
        # What mujoco says of its models' files would go to a log in the working directory.
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            return gymnasium.make(env_id, render_mode="rgb_array", **options)
        finally:
            mujoco.set_mju_user_warning(None)


@contextlib.contextmanager
def _writer(path: Path, rate: float) -> Iterator[tuple[Film, int]]:
    """Open a film that gets its name when it is complete.

    Args:
        path: The name.
        rate: Steps per second.

    Yields:
        The film, and the steps from one frame to the next.

    Raises:
        InputError: If there can be no such file.
        OSError: If it cannot be written; it names the file.
    """
    every = math.ceil(rate / MOST_FRAMES)
    seconds = every / rate
    is_gif = path.suffix == ".gif"
    timing = {"duration": 1000 * seconds, "loop": 0} if is_gif else {"fps": 1 / seconds}
    unnamed = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with imageio.v2.get_writer(unnamed, **timing) as film:
            yield film, every
        unnamed.replace(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be made ({error.strerror}); give another name.") from error
    except OSError as error:
        # The message of a full disk names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if unnamed.is_file():
            unnamed.unlink()


def _call(env_id: str, act: Callable[[], T]) -> T:
    """Do something with the environment, in one line if that fails."""
    try:
        return act()
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise InputError(
            f"gymnasium cannot film {env_id}: {type(error).__name__}: {why}"
        ) from error
