"""The vector environment against gymnasium, bit for bit."""

from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import mujoco
import numpy as np
import pytest
from mujoco.batch import SimulationError

from psgd_optim.types import InputError
from psgd_rl.envs import Step
from psgd_rl.envs.mujoco_env import MujocoEnv, load_model
from psgd_rl.envs.tasks import HALF_CHEETAH, TASKS


@pytest.fixture(autouse=True)
def _in_temporary_folder(tmp_path, monkeypatch):
    """gymnasium's own loading of the model writes a log file into the working directory."""
    monkeypatch.chdir(tmp_path)


def random_actions(env: MujocoEnv, seed: int = 0):
    generator = np.random.default_rng(seed)
    while True:
        # Beyond the bounds too: the physics clips, the cost does not.
        yield generator.uniform(-1.5, 1.5, (env.num_envs, env.actions.size))


@pytest.mark.parametrize(
    ("env_id", "threads"),
    [*((env_id, 1) for env_id in TASKS), ("HalfCheetah-v5", 2)],
)
def test_equals_gymnasium_bit_for_bit(env_id, threads):
    is_large = env_id.startswith(("Ant", "Humanoid"))
    seeds = [7] if is_large else [7, 123456]
    peers = [gymnasium.make(env_id) for _ in seeds]
    expected = np.stack([peer.reset(seed=s)[0] for peer, s in zip(peers, seeds, strict=True)])
    env = MujocoEnv(TASKS[env_id], seeds, threads=threads)
    np.testing.assert_array_equal(env.observation, expected)
    resets = 0
    for _, action in zip(range(1010), random_actions(env), strict=False):
        got = env.step(action)
        for i, peer in enumerate(peers):
            observation, reward, terminated, truncated, _ = peer.step(action[i].astype(np.float32))
            np.testing.assert_array_equal(got.final_observation[i], observation)
            assert got.reward[i] == reward
            assert (got.terminated[i], got.truncated[i]) == (terminated, truncated)
            assert got.is_real[i]
            if terminated or truncated:
                observation, _ = peer.reset()
                resets += 1
            np.testing.assert_array_equal(got.observation[i], observation)
    assert resets >= len(seeds)


@pytest.mark.parametrize("xml_file", ["half_cheetah.xml", "humanoid.xml"])
def test_model_equals_the_deprecated_loading(xml_file):
    assets = gymnasium.__path__[0] + "/envs/mujoco/assets/"
    expected = mujoco.MjModel.from_xml_path(assets + xml_file)
    got = load_model(xml_file)
    pairs = [(got, expected), (got.opt, expected.opt), (got.stat, expected.stat)]
    compared = 0
    for one, two in pairs:
        for name in dir(two):
            value = getattr(two, name)
            if not name.startswith("_") and isinstance(value, np.ndarray | float | int):
                np.testing.assert_array_equal(getattr(one, name), value, err_msg=name)
                compared += 1
    assert compared > 300


def test_loading_is_silent(tmp_path, capfd):
    load_model("half_cheetah.xml")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def assert_equal_steps(one: Step, two: Step) -> None:
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5"])
def test_restored_state_continues_bit_for_bit(env_id):
    task = replace(TASKS[env_id], max_episode_steps=60)
    env = MujocoEnv(task, [1, 2, 3], threads=2)
    actions = [action for _, action in zip(range(200), random_actions(env), strict=False)]
    for action in actions[:50]:
        env.step(action)
    state = env.state_dict()
    expected = [env.step(action) for action in actions[50:]]
    restored = MujocoEnv(task, [9, 9, 9], threads=1)
    restored.load_state_dict(state)
    for action, step in zip(actions[50:], expected, strict=True):
        assert_equal_steps(restored.step(action), step)
    assert sum(step.truncated.any() for step in expected) >= 3


def test_only_the_done_rows_are_reset():
    def fails(motion):
        return motion.now.qpos[:, 0] > 0.02

    env = MujocoEnv(replace(HALF_CHEETAH, is_terminated=fails), [1, 2, 3, 4])
    seen = 0
    for _, action in zip(range(100), random_actions(env), strict=False):
        step = env.step(action)
        done = step.terminated
        same = (step.observation == step.final_observation).all(axis=1)
        np.testing.assert_array_equal(same, ~done)
        seen += done.any() and not done.all()
    assert seen > 0


@pytest.mark.parametrize(("seeds", "threads"), [([], 1), ([1], 0), ([1], -2)])
def test_refuses_no_environments_or_threads(seeds, threads):
    with pytest.raises(InputError, match="give 1 or more"):
        MujocoEnv(HALF_CHEETAH, seeds, threads=threads)


def test_state_of_another_number_of_environments_is_refused():
    state = MujocoEnv(HALF_CHEETAH, [1]).state_dict()
    with pytest.raises(InputError, match="1 environments for 2"):
        MujocoEnv(HALF_CHEETAH, [1, 2]).load_state_dict(state)


def test_nan_in_the_reward_names_step_environment_and_term():
    env = MujocoEnv(HALF_CHEETAH, [1, 2, 3])
    action = np.zeros((3, 6))
    env.step(action)
    action[2, 0] = np.nan
    with pytest.raises(InputError, match="step 2: environment 2, control"):
        env.step(action)


def test_nan_in_the_observation_names_it():
    def spoilt(now):
        observation = HALF_CHEETAH.observe(now)
        observation[1, 3] = np.inf
        return observation

    env = MujocoEnv(replace(HALF_CHEETAH, observe=spoilt), [1, 2])
    with pytest.raises(InputError, match="step 1: environment 1, observation"):
        env.step(np.zeros((2, 6)))


def test_a_failing_simulation_is_named(monkeypatch):
    env = MujocoEnv(HALF_CHEETAH, [1, 2, 3])
    env.step(np.zeros((3, 6)))

    def fail(nstep):
        raise SimulationError(np.array([2]), "out of memory")

    monkeypatch.setattr(env, "_batch", SimpleNamespace(step=fail))
    with pytest.raises(InputError, match=r"step 2: environment 2, .*out of memory") as caught:
        env.step(np.zeros((3, 6)))
    assert isinstance(caught.value.__cause__, SimulationError)
