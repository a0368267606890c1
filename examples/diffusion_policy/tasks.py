"""Meta-World tasks (Yu et al. 2019) as episodes that are numbered, and demonstrations of their scripted experts."""

from dataclasses import dataclass
from functools import lru_cache

import metaworld
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

_GOALS = 50  # that the package draws of a seed
_DISTURBANCE = 0.15  # standard deviation added to the expert's actions, so that the data shows how to recover
_PATIENCE, _AFTER = 250, 8  # steps of a demonstration at most, and those that are kept after it succeeded


@dataclass
class Demonstration:
    """What an expert saw, ``(T, 39)``, and did about it, ``(T, 4)`` in [-1, 1]."""

    observations: np.ndarray
    actions: np.ndarray


@lru_cache(maxsize=8)
def _benchmark(task: str, seed: int) -> metaworld.MT1:
    return metaworld.MT1(task, seed=seed)


def environment(task: str, render_mode: str | None = None, **kwargs):
    """The simulator of a task, without a goal yet; ``kwargs`` are Meta-World's own."""
    return _benchmark(task, 0).train_classes[task](render_mode=render_mode, **kwargs)


def begin(env, task: str, seed: int, episode: int) -> np.ndarray:
    """Set the goal of a numbered episode and return its first observation, ``(39,)``."""
    env.set_task(_benchmark(task, seed + 1000 * (episode // _GOALS)).train_tasks[episode % _GOALS])
    return env.reset()[0]


def demonstrations(task: str, count: int, seed: int) -> list[Demonstration]:
    """Ask the package's expert until it has succeeded ``count`` times; failures are left out."""
    env, expert, rng = environment(task), ENV_POLICY_MAP[task](), np.random.default_rng(seed)
    found: list[Demonstration] = []
    episode = 0
    while len(found) < count:
        seen, did = _demonstration(env, expert, begin(env, task, seed, episode), rng)
        episode += 1
        if seen is not None:
            found.append(Demonstration(np.array(seen, np.float32), np.array(did, np.float32)))
    return found


def _demonstration(env, expert, observation: np.ndarray, rng: np.random.Generator) -> tuple:
    seen, did, after = [], [], 0
    for _ in range(_PATIENCE):
        action = np.clip(expert.get_action(observation), -1, 1)
        seen.append(observation)
        did.append(action)
        disturbed = np.clip(action + _DISTURBANCE * rng.standard_normal(4), -1, 1)
        observation, _, _, _, info = env.step(disturbed)
        after += info["success"] > 0
        if after > _AFTER:
            break
    return (seen, did) if after else (None, None)
