"""The adapter: every way to begin episodes, spaces, states, and failures."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from psgd_optim.types import InputError
from psgd_rl.advantages import estimate_advantages
from psgd_rl.envs.gymnasium_env import GymnasiumEnv
from psgd_rl.envs.make import make_env
from psgd_rl.spaces import Box, Discrete
from tests.psgd_rl.envs.counting import Counting, Nameable, Seeded, Unfit, side_by_side

COUNTING = Counting.__module__
GAMMA, LAMBDA, STEPS = 0.9, 0.8, 40
MODES = list(AutoresetMode)


def value(observation) -> float:
    episode, steps = map(float, observation)
    return 0.3 * episode - 0.2 * steps + 0.05


def action_at(episode: int, steps: int) -> int:
    """A policy of the observation alone, so that it acts alike however the steps are laid out."""
    return (episode + 2 * steps) % 3


def scalar_reference(first: int, steps: int) -> list[tuple[tuple[int, int], float]]:
    """Observations and advantages of one environment, one episode after the other."""
    env, result, taken = Counting(first), [], 0
    while taken < steps:
        observation, _ = env.reset()
        episode, is_over = [], False
        while not is_over and taken < steps:
            action = action_at(*map(int, observation)) + 5
            following, reward, fails, runs_out, _ = env.step(np.int64(action))
            future = 0.0 if fails else GAMMA * value(following)
            episode.append((tuple(observation), reward + future - value(observation)))
            observation, is_over, taken = following, fails or runs_out, taken + 1
        for start, (seen, _) in enumerate(episode):
            later = [delta for _, delta in episode[start:]]
            advantage = sum((GAMMA * LAMBDA) ** k * delta for k, delta in enumerate(later))
            result.append((seen, advantage))
    return result


@pytest.mark.parametrize("mode", MODES)
def test_advantages_equal_those_of_one_environment_stepped_alone(mode):
    env = GymnasiumEnv("Counting", side_by_side(mode), [0, 1])
    seen, steps = [], []
    for _ in range(STEPS):
        seen.append(env.observation)
        steps.append(env.step(np.array([action_at(*map(int, row)) for row in env.observation])))
    is_real = np.stack([step.is_real for step in steps])
    advantages = estimate_advantages(
        np.stack([step.reward for step in steps]),
        np.array([[value(row) for row in rows] for rows in seen]),
        np.array([[value(row) for row in step.final_observation] for step in steps]),
        np.stack([step.terminated for step in steps]),
        np.stack([step.truncated for step in steps]),
        is_real,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
    )
    for i in range(2):
        rows = np.flatnonzero(is_real[:, i])
        expected = scalar_reference(i, len(rows))
        assert [tuple(seen[t][i]) for t in rows] == [row for row, _ in expected]
        np.testing.assert_allclose(advantages[rows, i], [a for _, a in expected], rtol=1e-12)
    ends = [[step.terminated.sum(), step.truncated.sum()] for step in steps]
    assert (np.sum(ends, axis=0) > 3).all()
    # A step without an action follows every end but the last.
    assert is_real.all() == (mode is not AutoresetMode.NEXT_STEP)
    for step in steps:
        assert not step.reward[~step.is_real].any()
        assert not (step.terminated | step.truncated)[~step.is_real].any()


@pytest.mark.parametrize("spelt", [AutoresetMode.SAME_STEP, "SameStep", "SAME_STEP"])
def test_a_mode_may_be_spelt(spelt):
    inner = side_by_side(AutoresetMode.SAME_STEP)
    inner.metadata["autoreset_mode"] = spelt
    env = GymnasiumEnv("Counting", inner, [0, 1])
    steps = [env.step(np.zeros(2, dtype=np.int64)) for _ in range(6)]
    assert all(step.is_real.all() for step in steps)


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": "sometimes"}])
def test_an_unknown_mode_is_refused(metadata):
    inner = side_by_side(AutoresetMode.SAME_STEP)
    inner.metadata = metadata
    with pytest.raises(InputError, match=r"give one of gymnasium.vector.AutoresetMode"):
        GymnasiumEnv("Counting", inner, [0, 1])


def test_a_missing_final_observation_is_refused():
    inner = side_by_side(AutoresetMode.NEXT_STEP)
    inner.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    env = GymnasiumEnv("Counting", inner, [0, 1])
    with pytest.raises(InputError, match=r"without info\['final_obs'\]"):
        for _ in range(6):
            env.step(np.zeros(2, dtype=np.int64))


def test_a_discrete_observation_is_one_hot_and_a_box_is_flattened():
    env = GymnasiumEnv("N", SyncVectorEnv([Nameable] * 2, autoreset_mode="SameStep"), [0, 1])
    np.testing.assert_array_equal(env.observation, [[0, 0, 1, 0]] * 2)
    assert isinstance(env.actions, Box)
    np.testing.assert_array_equal(env.actions.low, [-2.0] * 4)
    step = env.step(np.arange(8, dtype=np.float32).reshape(2, 4))
    np.testing.assert_array_equal(step.observation, [[0, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(step.reward, [2.0, 6.0])


class HalfUnfit(Nameable):
    action_space = gymnasium.spaces.Box(0, 3, (2,), dtype=np.int64)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (Unfit, r"observations in Dict; give .*FlattenObservation"),
        (HalfUnfit, "actions in Box.*int64.*; give .* Discrete"),
    ],
)
def test_other_spaces_are_refused(kind, match):
    inner = SyncVectorEnv([kind], autoreset_mode="SameStep")
    with pytest.raises(InputError, match=match):
        GymnasiumEnv("Unfit", inner, [0])


@pytest.mark.parametrize(("name", "is_restorable"), [("Restorable", True), ("Counting", False)])
def test_a_saved_state_continues_where_it_can(name, is_restorable):
    gymnasium.register("Kept-v0", f"{COUNTING}:{name}", max_episode_steps=2)
    try:
        one, two = (make_env("Kept-v0", [first, first + 1]) for first in (0, 7))
    finally:
        del gymnasium.registry["Kept-v0"]
    assert (one.is_restorable, two.is_restorable) == (is_restorable, is_restorable)
    action = np.array([0, 2])
    for _ in range(3):  # in the middle of an episode
        one.step(action)
    two.load_state_dict(one.state_dict())
    assert np.array_equal(one.observation, two.observation) == is_restorable
    for _ in range(9 * is_restorable):
        expected, got = one.step(action), two.step(action)
        for field in vars(expected):
            np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))


def test_other_states_begin_episodes_with_seeds_that_follow_from_seed_and_step():
    def loaded(seeds, steps):
        makers = [Seeded] * 2
        envs = [
            GymnasiumEnv("S", SyncVectorEnv(makers, autoreset_mode="SameStep"), start)
            for start in (seeds, [90, 91])
        ]
        for _ in range(steps):
            envs[0].step(np.zeros(2, dtype=np.int64))
        envs[1].load_state_dict(envs[0].state_dict())
        return envs[1].observation[:, 0].tolist()

    assert loaded([3, 4], 2) == loaded([3, 4], 2)
    every = loaded([3, 4], 2) + loaded([3, 4], 3) + loaded([5, 6], 2)
    assert len(set(every) | {3, 4, 5, 6, 90, 91}) == 12


def test_the_state_of_another_number_of_copies_is_refused():
    state = GymnasiumEnv("C", side_by_side(AutoresetMode.SAME_STEP, 1), [0]).state_dict()
    with pytest.raises(InputError, match="1 environments for 2"):
        GymnasiumEnv("C", side_by_side(AutoresetMode.SAME_STEP), [0, 1]).load_state_dict(state)


@pytest.mark.parametrize(("spoilt", "term"), [(0, "observation"), (1, "reward")])
def test_what_is_not_finite_is_named(spoilt, term):
    class Spoilt(Counting):
        def step(self, action):
            result = list(super().step(action))
            if self.episode == 1 and self.steps == 2:
                result[spoilt] = result[spoilt] + np.float32(np.nan)
            return tuple(result)

    makers = [lambda: Spoilt(0), lambda: Spoilt(1)]
    env = GymnasiumEnv("Spoilt", SyncVectorEnv(makers, autoreset_mode="SameStep"), [0, 1])
    env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match=f"step 2: environment 1, {term}"):
        env.step(np.zeros(2, dtype=np.int64))


def test_cartpole_equals_gymnasiums_own():
    env, peer = make_env("CartPole-v1", [11]), gymnasium.make("CartPole-v1")
    observation, _ = peer.reset(seed=11)
    assert env.actions == Discrete(count=2)
    generator, ends = np.random.default_rng(0), 0
    for _ in range(200):
        np.testing.assert_array_equal(env.observation[0], observation)
        action = generator.integers(2)
        observation, reward, terminated, truncated, _ = peer.step(action)
        step = env.step(np.array([action]))
        np.testing.assert_array_equal(step.final_observation[0], observation)
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (
            reward,
            terminated,
            truncated,
        )
        if terminated or truncated:
            observation, _ = peer.reset()
            ends += 1
    assert ends > 5
