"""Policies of lerobot, all diffusion steps of a plan at once: the same actions, sooner.

from picardsolve.integrations.lerobot import parallelize
policy = DiffusionPolicy.from_pretrained("lerobot/diffusion_pusht").eval()
with parallelize(policy) as run:
    action = policy.select_action(observation)          # as before
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from picardsolve import RK4, Euler, Iteration
from picardsolve.integrations.policies.flow import FlowMatching
from picardsolve.integrations.policies.parallelized import Call, Loop, ParallelizedPolicy
from picardsolve.integrations.policies.reading import check_loop, first_parameter, scheduler_key, with_timesteps

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ParallelizedPolicy", "parallelize"]

_INTEGRATORS = {"euler": Euler(), "rk4": RK4()}


def parallelize(
    policy: Any,
    *,
    executed: int | None = None,
    tol: float = 5e-3,
    max_rounds: int | None = None,
    iteration: Iteration | None = None,
    spread: float = 0.1,
    mesh: "DeviceMesh | None" = None,
    devices: Sequence[Any] | None = None,
) -> ParallelizedPolicy:
    """Let a policy of lerobot make its plans in parallel.

    Only this policy object is changed: its ``conditional_sample``, and its ``reset``, which also forgets the last plan.
    Before the first plan, the policy's own loop is held against a parallel plan, with a small function in the network's
    place.

    Args:
        policy: a `DiffusionPolicy`, or a `MultiTaskDiTPolicy` that predicts noise or a velocity.
        executed: number of actions between two plans; None: the ``n_action_steps`` of its configuration.
        tol: as for `ParallelPolicy`.
        max_rounds: as there: the latency budget.
        iteration: as there.
        spread: as there.
        mesh: as there.
        devices: as there.

    Raises:
        TypeError: it is no such policy, or a version that is not known here, or already parallel.
        ValueError: an argument has a wrong value.
    """
    loop = _loop_of(policy)
    between = policy.config.n_action_steps if executed is None else executed
    settings = {"tol": tol, "max_rounds": max_rounds, "iteration": iteration, "spread": spread}
    return ParallelizedPolicy(policy, loop, between, settings | {"mesh": mesh, "devices": devices})


def _loop_of(policy: Any) -> Loop:
    if isinstance(getattr(policy, "diffusion", None), nn.Module):
        return _DiffusionLoop(policy.diffusion)
    if isinstance(getattr(policy, "noise_predictor", None), nn.Module):
        return _ObjectiveLoop(policy)
    if hasattr(getattr(policy, "model", None), "denoise_step"):
        raise TypeError(
            f"policy: {type(policy).__name__} follows its velocity in so few steps (ten, if nothing else is said) that "
            "there is little to save; it is not made parallel here."
        )
    raise TypeError(
        f"policy: expected a DiffusionPolicy or MultiTaskDiTPolicy of lerobot, got {type(policy).__name__}; pass one "
        "of these, or make a picardsolve.integrations.policies.ParallelPolicy of its network and scheduler."
    )


class _DiffusionLoop(Loop):
    """``DiffusionModel.conditional_sample`` of lerobot's `DiffusionPolicy`."""

    name = "conditional_sample"

    def __init__(self, host: Any):
        self.host = host
        check_loop(
            host,
            self.name,
            needed=("batch_size", "global_cond", "generator"),
            optional=("noise",),
            attributes=("unet", "noise_scheduler", "num_inference_steps", "config"),
        )

    def read(self, given: dict[str, Any]) -> Call | str:
        """A call, whose observation is ``global_cond``."""
        host, noise, config = self.host, given.get("noise"), self.host.config
        like = first_parameter(host) if noise is None else noise
        shape = given["batch_size"], config.horizon, config.action_feature.shape[0]
        condition = given["global_cond"]
        if condition is None:
            return "it was given no observation"
        steps = host.num_inference_steps
        return Call(
            module=host.unet,
            network=_asked,
            scheduler=partial(with_timesteps, host.noise_scheduler, steps),
            key=scheduler_key(host.noise_scheduler, steps),
            shape=shape,
            like=like,
            observation=condition,
            start=noise,
            generator=given["generator"],
        )

    def played(self, understudy: nn.Module, given: dict[str, Any]) -> Tensor:
        """The loop of a copy that shares all but the network."""
        other = self.copied(unet=understudy)
        return other.conditional_sample(**given | {"generator": None})


class _ObjectiveLoop(Loop):
    """``conditional_sample`` of an objective of lerobot's `MultiTaskDiTPolicy`: diffusion, or flow matching."""

    name = "conditional_sample"

    def __init__(self, policy: Any):
        self.host = host = policy.objective
        more = ("num_integration_steps", "integration_method"), ("noise_scheduler", "num_inference_steps")
        self._flows = hasattr(policy.config, more[0][0]) and not hasattr(host, more[1][0])
        known = ("model", "batch_size", "conditioning_vec")
        check_loop(
            host, self.name, needed=known, attributes=("horizon", "action_dim", *(() if self._flows else more[1]))
        )

    def read(self, given: dict[str, Any]) -> Call | str:
        """A call, whose observation is the conditioning vector."""
        host, module = self.host, given["model"]
        if self._flows:
            method, steps = host.config.integration_method, host.config.num_integration_steps
            if method not in _INTEGRATORS:
                return f"its integration method {method!r} is not known here"
            scheduler, key = partial(_flow, steps, method), (steps, method)
        else:
            steps, of = host.num_inference_steps, host.noise_scheduler
            scheduler, key = partial(with_timesteps, of, steps), scheduler_key(of, steps)
        return Call(
            module=module,
            network=_conditioned,
            scheduler=scheduler,
            key=key,
            shape=(given["batch_size"], host.horizon, host.action_dim),
            like=first_parameter(module),
            observation=given["conditioning_vec"],
        )

    def played(self, understudy: nn.Module, given: dict[str, Any]) -> Tensor:
        """The loop itself, which is given the network."""
        return getattr(type(self.host), self.name)(self.host, **given | {"model": understudy})


def _flow(steps: int, method: str) -> FlowMatching:
    return FlowMatching(torch.linspace(0, 1, steps + 1), _INTEGRATORS[method])


def _conditioned(module: nn.Module, x: Tensor, t: Tensor, observation: Tensor) -> Tensor:
    return module(x, t.to(x.dtype) if t.is_floating_point() else t, conditioning_vec=observation)


def _asked(module: nn.Module, x: Tensor, t: Tensor, observation: Tensor) -> Tensor:
    return module(x, t, global_cond=observation)
