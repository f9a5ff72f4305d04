"""Films have the frames and the return of the evaluation's first episode."""

import importlib.util

import gymnasium
import imageio.v2
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

from psgd_optim.types import InputError
from psgd_rl.agent import Agent
from psgd_rl.config import FIRST_EVALUATION_SEED, NetworkConfig
from psgd_rl.envs.tasks import HALF_CHEETAH
from psgd_rl.evaluate import evaluate
from psgd_rl.video import check_film, film_episode


class Drawn(gymnasium.Env):
    """Draws its step as a shade of grey; numbers its actions from 5."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2, start=5)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012 -- gymnasium's
    render_mode = "rgb_array"

    def __init__(self, render_mode=None, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, 7 if seed == FIRST_EVALUATION_SEED else 9
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.broken and self.steps == 3:
            raise ZeroDivisionError("no such state\nat all")
        reward = float(self.np_random.normal()) + float(action)
        return (
            np.full(1, self.steps, dtype=np.float32),
            reward,
            self.steps == self.length,
            False,
            {},
        )

    def render(self):
        return np.full((16, 16, 3), 30 * self.steps, dtype=np.uint8)


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register("Drawn-v0", Drawn)
    gymnasium.register("Broken-v0", Drawn, kwargs={"broken": True})
    yield
    for name in ("Drawn-v0", "Broken-v0"):
        del gymnasium.registry[name]


def test_film_has_every_second_frame_of_100_a_second_and_the_return(tmp_path):
    actions = [np.int64(i % 2) for i in range(7)]
    total = film_episode(tmp_path / "new" / "a.gif", "Drawn-v0", actions)
    frames = imageio.v2.mimread(tmp_path / "new" / "a.gif")
    assert [frame[0, 0].max() for frame in frames] == pytest.approx([0, 60, 120, 180, 210], abs=4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gif"]
    env = Drawn()
    env.reset(seed=FIRST_EVALUATION_SEED)
    assert total == sum(env.step(5 + action)[1] for action in actions)


@pytest.mark.usefixtures("short_episodes")
def test_return_is_that_of_the_first_episode_among_several(tmp_path, monkeypatch):
    cameras = []

    def draw(renderer, *_):
        cameras.append(renderer.camera_id)
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(MujocoRenderer, "render", draw)
    sizes = (17, 8, 6)
    generator = torch.Generator().manual_seed(0)
    agent = Agent.build(HALF_CHEETAH.env_id, sizes, NetworkConfig(), generator)
    with torch.no_grad():
        agent.actor.layers[-1].weight.mul_(1000)  # so that actions are clipped
    actions = []
    evaluation = evaluate(agent, 4, watch=actions.append)
    assert len(actions) == 20
    assert np.abs(actions).max() == 1.0
    assert film_episode(tmp_path / "a.gif", agent.env_id, actions) == evaluation.returns[0]
    assert cameras == [0] * 21  # the one that follows the runner, not -1, the free one
    np.testing.assert_array_equal(evaluate(agent, 4).returns, evaluation.returns)


def test_only_the_first_episode_is_watched():
    agent = Agent.build("Drawn-v0", (1, 4, 2), NetworkConfig(), torch.Generator(), is_discrete=True)
    actions = []
    assert evaluate(agent, 2, watch=actions.append).lengths.tolist() == [7, 9]
    assert len(actions) == 7


def test_refuses_what_it_cannot_film(tmp_path, monkeypatch):
    actions = [np.int64(0)] * 5
    with pytest.raises(InputError, match=r"a.avi names no film; give .* .mp4 or .gif"):
        check_film(tmp_path / "a.avi")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find(name)
    )
    with pytest.raises(InputError, match=r"needs imageio-ffmpeg; pip install 'psgd-toolkit\[vide"):
        film_episode(tmp_path / "a.mp4", "Drawn-v0", actions)
    check_film(tmp_path / "a.gif")
    with pytest.raises(InputError, match=r"film Broken-v0: ZeroDivisionError: no such state$"):
        film_episode(tmp_path / "a.gif", "Broken-v0", actions)
    with pytest.raises(InputError, match="gymnasium cannot film nothing"):
        film_episode(tmp_path / "a.gif", "nothing.Else-v0", actions)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        film_episode(tmp_path / "file" / "a.gif", "Drawn-v0", actions)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
