"""What acts: an actor, the statistics that normalise its observations, and its environment's name.

An agent's state is all that an evaluation needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from psgd_optim.types import InputError
from psgd_rl.actor_critic import ActingPolicy, Actor, CategoricalActor, GaussianActor
from psgd_rl.config import NetworkConfig
from psgd_rl.distributions import ActionArray
from psgd_rl.envs import VectorEnv
from psgd_rl.normalize import RunningMoments
from psgd_rl.spaces import Discrete
from psgd_rl.types import FloatArray

_KINDS = {False: "continuous", True: "numbered"}


@dataclass(frozen=True, kw_only=True)
class Agent:
    """An actor with everything around it.

    Args:
        env_id: The environment it acts in.
        sizes: Observations, hidden widths, action components or numbered actions.
        actor: The policy network.
        moments: Statistics of its observations.
    """

    env_id: str
    sizes: tuple[int, ...]
    actor: Actor
    moments: RunningMoments

    @classmethod
    def build(
        cls,
        env_id: str,
        sizes: Sequence[int],
        network: NetworkConfig,
        generator: torch.Generator,
        *,
        is_discrete: bool = False,
    ) -> Self:
        """Build an untrained agent.

        Args:
            env_id: The environment's name.
            sizes: Observations, hidden widths, actions.
            network: The log-std's start and bounds.
            generator: Draws the weights.
            is_discrete: Whether its actions are numbered, not continuous.

        Returns:
            The agent.
        """
        actor = (
            CategoricalActor(sizes, generator=generator)
            if is_discrete
            else GaussianActor(
                sizes,
                log_std=network.log_std,
                log_std_bounds=(network.min_log_std, network.max_log_std),
                generator=generator,
            )
        )
        return cls(
            env_id=env_id, sizes=tuple(sizes), actor=actor, moments=RunningMoments(sizes[:1])
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild the agent of a `state_dict`."""
        # The start is overwritten, and the bounds matter to training only.
        agent = cls.build(
            state["env_id"],
            state["sizes"],
            NetworkConfig(),
            torch.Generator(),
            is_discrete="log_std" not in state["actor"],  # which numbered actions have none of
        )
        agent.load_state_dict(state)
        return agent

    def check_spaces(self, env: VectorEnv) -> None:
        """Check that the actor fits an environment.

        Args:
            env: Where it shall act.

        Raises:
            InputError: If the sizes of observations or actions, or the kinds of actions, differ.
        """
        want = (self.sizes[0], self.sizes[-1], _KINDS[self.actor.is_discrete])
        kind = _KINDS[isinstance(env.actions, Discrete)]
        have = (env.observation_size, env.actions.size, kind)
        if want != have:
            raise InputError(
                f"The agent takes {want[0]} observations and gives {want[1]} {want[2]} actions, "
                f"{env.env_id} has {have[0]} and {have[1]} {have[2]}; name the agent's own "
                "environment."
            )

    def acting_policy(self) -> ActingPolicy:
        """Return a snapshot of the actor for acting."""
        return ActingPolicy(self.actor)

    def best_action(self, policy: ActingPolicy, observation: FloatArray) -> ActionArray:
        """Return the likeliest action.

        Args:
            policy: From `acting_policy`.
            observation: (n, o), as the environment gave it.

        Returns:
            (n, a), not clipped, or (n,).
        """
        return policy.best(self.moments.normalize(observation))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that acting depends on."""
        return {
            "env_id": self.env_id,
            "sizes": list(self.sizes),
            "actor": self.actor.state_dict(),
            "moments": self.moments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load weights and statistics from a `state_dict`."""
        self.actor.load_state_dict(state["actor"])
        self.moments.load_state_dict(state["moments"])
