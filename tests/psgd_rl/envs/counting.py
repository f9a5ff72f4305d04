"""Small deterministic environments: they count, and end by failing or by running out of time."""

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

LENGTHS = (3, 5, 1, 4)
"""Steps of the episodes, in turns; every second one fails, the others are cut short."""


class Counting(gymnasium.Env):
    """Observes the episode and the step; the reward mixes them with the action."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self, first: int = 0) -> None:
        self.episode = first - 1
        self.steps = 0

    def _observation(self):
        return np.array([self.episode, self.steps], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        is_over = self.steps == LENGTHS[self.episode % len(LENGTHS)]
        fails = self.episode % 2 == 0
        reward = self.episode + 0.1 * self.steps + 0.01 * float(action)
        return self._observation(), reward, is_over and fails, is_over and not fails, {}


class Restorable(Counting):
    """Can be saved."""

    def state_dict(self):
        return {"episode": self.episode, "steps": self.steps}

    def load_state_dict(self, state):
        self.episode, self.steps = state["episode"], state["steps"]


class Seeded(Counting):
    """Shows the seed that it was last given."""

    def _observation(self):
        return np.array([self._np_random_seed or 0, self.steps], dtype=np.float64)


class Failing(Counting):
    """Raises at its third step if it is the second copy."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Failing.made += 1
        self.number = Failing.made

    def step(self, action):
        if self.steps == 2 and self.number == 2:
            raise ZeroDivisionError("no such state")
        return super().step(action)


class Unfit(gymnasium.Env):
    """Has spaces that nothing here learns from."""

    observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Discrete(2)})
    action_space = gymnasium.spaces.MultiDiscrete([2, 2])


class Nameable(gymnasium.Env):
    """A discrete observation and an action of two rows."""

    observation_space = gymnasium.spaces.Discrete(4, start=-1)
    action_space = gymnasium.spaces.Box(-2.0, 3.0, (2, 2), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        return 1, {}

    def step(self, action):
        return 2, float(action[1, 0]), False, False, {}


def side_by_side(mode: AutoresetMode, count: int = 2) -> SyncVectorEnv:
    """Step copies whose episodes are out of step."""
    makers = [lambda i=i: Counting(i) for i in range(count)]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def next_step(num_envs: int) -> SyncVectorEnv:
    return side_by_side(AutoresetMode.NEXT_STEP, num_envs)


def always_two() -> SyncVectorEnv:
    return side_by_side(AutoresetMode.SAME_STEP, 2)


def a_number() -> int:
    return 3


not_callable = 3
