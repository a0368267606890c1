"""How the loops of other libraries are read: their arguments, schedulers and parameters."""

import copy
import inspect
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from picardsolve.integrations.policies.flow import FlowMatching


def check_loop(
    host: Any, name: str, needed: tuple[str, ...], optional: tuple[str, ...] = (), attributes: tuple[str, ...] = ()
) -> None:
    """Refuse a sampling loop with other arguments than are known.

    Args:
        host: whose method it is.
        name: of the method.
        needed: arguments that it must have.
        optional: arguments that it may have.
        attributes: what its host must have.

    Raises:
        TypeError: an argument or an attribute is missing, there is another argument, or this object has a loop of its
            own.
    """
    kind = type(host).__name__
    missing = [attribute for attribute in (name, *attributes) if not hasattr(host, attribute)]
    if missing:
        raise TypeError(f"policy: {kind} has no {', '.join(missing)}; this version of the policy is not known here.")
    if name in vars(host):
        raise TypeError(f"policy: the {name} of this {kind} is replaced already; call restore() of what replaced it.")
    found = [p.name for p in inspect.signature(getattr(host, name)).parameters.values()]
    if not set(needed) <= set(found) <= {*needed, *optional}:
        raise TypeError(
            f"policy: expected {kind}.{name}({', '.join(needed)}), maybe with {', '.join(optional) or 'no more'}, got "
            f"({', '.join(found)}); this version of the policy is not known here."
        )


def first_parameter(module: nn.Module) -> Tensor:
    """The parameter whose dtype and device a policy takes for its own."""
    return next(iter(module.parameters()))


def with_timesteps(scheduler: Any, steps: int) -> Any:
    """A copy of a scheduler with its timesteps set."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def scheduler_key(scheduler: Any, steps: int) -> tuple[Any, ...]:
    """What the steps of a scheduler depend on."""
    return type(scheduler), repr(scheduler.config), steps


def draws_noise(scheduler: Any) -> bool:
    """Whether a scheduler's steps may draw noise, in the dtype of the network's outputs."""
    return not isinstance(scheduler, DDIMScheduler | FlowMatching)
