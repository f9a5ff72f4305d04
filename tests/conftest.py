"""Settings that every test shares."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from psgd_rl.envs.tasks import HALF_CHEETAH, TASKS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Threads cost more than they give on tensors of this size, above all on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give HalfCheetah episodes of 20 steps: evaluations are most of what a tiny run takes."""
    monkeypatch.setitem(TASKS, HALF_CHEETAH.env_id, replace(HALF_CHEETAH, max_episode_steps=20))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
