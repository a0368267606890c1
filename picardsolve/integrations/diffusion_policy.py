"""Policies of diffusion_policy (Chi et al. 2023), all diffusion steps of a plan at once: the same actions, sooner.

from picardsolve.integrations.diffusion_policy import parallelize
policy = workspace.ema_model.eval()
with parallelize(policy) as run, torch.no_grad():
    action = policy.predict_action(observations)["action"]          # as before
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from picardsolve import Iteration
from picardsolve.integrations.policies.parallelized import Call, Loop, ParallelizedPolicy
from picardsolve.integrations.policies.reading import check_loop, scheduler_key, with_timesteps

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ParallelizedPolicy", "parallelize"]

_CONDITIONS = "local_cond", "global_cond", "cond"  # of the U-Nets, and of the transformers


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
    """Let a policy of diffusion_policy make its plans in parallel, under `torch.no_grad`.

    Only this policy object is changed: its ``conditional_sample``, and its ``reset``, which also forgets the last plan.
    Observations that are put into the plan before every step (inpainting) are held in place there, too. Before the
    first plan, the policy's own loop is held against a parallel plan, with a small function in the network's place.

    Args:
        policy: a `DiffusionUnetLowdimPolicy`, `DiffusionUnetHybridImagePolicy` or `DiffusionUnetImagePolicy`, or one of
            the transformers, with a scheduler that `ParallelPolicy` takes.
        executed: number of actions between two plans; None: the policy's ``n_action_steps``.
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
    loop = _MaskedLoop(policy)
    between = policy.n_action_steps if executed is None else executed
    settings = {"tol": tol, "max_rounds": max_rounds, "iteration": iteration, "spread": spread}
    return ParallelizedPolicy(policy, loop, between, settings | {"mesh": mesh, "devices": devices})


class _MaskedLoop(Loop):
    """``conditional_sample`` of the U-Net and transformer policies, with numbers that are held in place by a mask."""

    name = "conditional_sample"

    def __init__(self, host: Any):
        self.host = host
        check_loop(
            host,
            self.name,
            needed=("condition_data", "condition_mask", "generator", "kwargs"),
            optional=_CONDITIONS,
            attributes=("model", "noise_scheduler", "num_inference_steps", "n_action_steps", "reset"),
        )

    def read(self, given: dict[str, Any]) -> Call | str:
        """A call, whose observation is what the network is given beside the plan."""
        host, values, mask = self.host, given["condition_data"], given["condition_mask"]
        further = {name: value for name, value in given["kwargs"].items() if (name, value) != ("eta", 0.0)}
        if further:
            return f"its scheduler is given {', '.join(further)}"
        steps = host.num_inference_steps
        conditions = {name: given[name] for name in _CONDITIONS if given.get(name) is not None}
        return Call(
            module=host.model,
            network=_asked,
            scheduler=partial(with_timesteps, host.noise_scheduler, steps),
            key=scheduler_key(host.noise_scheduler, steps),
            shape=tuple(values.shape),
            like=values,
            observation=conditions or {"none": values.new_zeros(len(values), 0)},
            held=(mask, values) if bool(mask.any()) else None,
            generator=given["generator"],
        )

    def played(self, understudy: nn.Module, given: dict[str, Any]) -> Tensor:
        """The loop of a copy that shares all but the network."""
        other = self.copied(model=understudy)
        given = {**given, "generator": None}
        return other.conditional_sample(**given.pop("kwargs"), **given)


def _asked(module: nn.Module, x: Tensor, t: Tensor, observation: dict[str, Tensor]) -> Tensor:
    return module(x, t, **{name: value for name, value in observation.items() if name in _CONDITIONS})
