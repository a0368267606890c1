"""A policy of another library whose own sampling loop is put aside while its plans are made in parallel."""

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from picardsolve.extend import check_positive_integer
from picardsolve.integrations.policies.flow import FlowMatching
from picardsolve.integrations.policies.policy import ParallelPolicy
from picardsolve.integrations.policies.reading import draws_noise
from picardsolve.integrations.policies.rehearsal import Understudy, check_alike, rehearsed_to
from picardsolve.integrations.policies.solver import Plan

Network = Callable[[nn.Module, Tensor, Tensor, Any], Tensor]


class _OtherPrecision(Exception):
    """The network's outputs, and so the noise of its steps, have another dtype than the plans."""


@dataclass(frozen=True)
class Call:
    """What one call of a policy's loop asks for.

    Attributes:
        module: the network.
        network: calls it: ``network(module, x, t, observation)``.
        scheduler: makes the scheduler, with its timesteps set, or the steps of a flow.
        key: what the scheduler depends on: it is made anew where the key changes.
        shape: of the plans, ``(B, horizon, ...)``.
        like: a tensor with dtype and device of the plans.
        observation: what the network is given of each plan; tensors ``(B, ...)``.
        start: as in `ParallelPolicy.plan`.
        held: as there.
        generator: as there; None: torch's own.
    """

    module: nn.Module
    network: Network
    scheduler: Callable[[], Any]
    key: Any
    shape: tuple[int, ...]
    like: Tensor
    observation: Any
    start: Tensor | None = None
    held: tuple[Tensor, Tensor] | None = None
    generator: torch.Generator | None = None


class Loop(ABC):
    """The sampling loop of a kind of policy: where it is, and how a call of it is read.

    Attributes:
        host: the object whose method it is.
        name: of the method.
    """

    host: Any
    name: str

    @abstractmethod
    def read(self, given: dict[str, Any]) -> Call | str:
        """What a call with these arguments asks for; or a sentence that says why it cannot be made in parallel."""

    @abstractmethod
    def played(self, understudy: nn.Module, given: dict[str, Any]) -> Tensor:
        """The plans of the policy's own loop, with another network and torch's own generator."""

    def copied(self, **modules: nn.Module) -> Any:
        """A copy of the host with its own loop, which shares all but these modules."""
        other = copy.copy(self.host)
        other.__dict__.pop(self.name, None)
        other._modules = {**self.host._modules, **modules}
        return other


class ParallelizedPolicy:
    """A policy whose plans are made in parallel, until `restore`. As a context manager it restores at the end.

    The policy is used as before: its queue, its processing of observations and its noise are its own. Where plans
    cannot be made in parallel, its own loop makes them, and a warning says once why.

    Attributes:
        policy: the policy.
        plan: the last `Plan`: rounds, whether it has converged, the certificate; None where the policy's own loop made
            it, or before the first one.
    """

    plan: Plan | None = None

    def __init__(self, policy: Any, loop: Loop, executed: int, settings: Mapping[str, Any]):
        check_positive_integer("executed", executed)
        step = FlowMatching([0.0, 1.0])
        ParallelPolicy(lambda x, *_: x, step, (executed,), executed=executed, **settings)  # refuses wrong settings
        self.policy, self._loop, self._executed, self._settings = policy, loop, executed, settings
        self._own, self._reset, self._before = getattr(loop.host, loop.name), policy.reset, vars(policy).get("reset")
        self._signature = inspect.signature(self._own)
        self._policy: ParallelPolicy | None = None
        self._key: Any = None
        self._said: set[str] = set()
        setattr(loop.host, loop.name, self._sampled)
        policy.reset = self._reset_all

    def restore(self) -> None:
        """Give the policy its own loop back. To call it twice does no harm."""
        if self._loop.name in vars(self._loop.host):
            delattr(self._loop.host, self._loop.name)
            del self.policy.reset
            if self._before is not None:
                self.policy.reset = self._before
        self._policy = self._key = self.plan = None

    def reset(self, robots: Any = None) -> None:
        """Forget the last plans of some robots of the batch, or of all; the policy's `reset` does so, too.

        Args:
            robots: see `ParallelPolicy.reset`.

        Raises:
            TypeError: ``robots`` is something else.
            ValueError: there is no such robot.
        """
        if self._policy is not None:
            self._policy.reset(robots=robots)

    def __enter__(self) -> "ParallelizedPolicy":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    # ---- what stands in the place of the policy's methods

    def _reset_all(self, *args: Any, **kwargs: Any) -> Any:
        self.reset()
        return self._reset(*args, **kwargs)

    def _sampled(self, *args: Any, **kwargs: Any) -> Tensor:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call, self.plan = self._loop.read(bound.arguments), None
        reason = call if isinstance(call, str) else _why_alone(call)
        if isinstance(call, str) or reason is not None:
            return self._alone(str(reason), args, kwargs)
        generator = call.generator or generator_of(call.like.device)
        policy = self._made_for(call, generator, bound.arguments)
        try:
            self.plan = policy.plan(
                call.observation, start=call.start, held=call.held, generator=generator, throw=False
            )
        except _OtherPrecision:
            return self._alone("its network computes in another precision than its plans have", args, kwargs)
        return self.plan.actions

    # ---- parts

    def _alone(self, reason: str, args: Any, kwargs: Any) -> Tensor:
        if reason not in self._said:
            self._said.add(reason)
            name = type(self.policy).__name__
            warnings.warn(f"This {name} makes its plans step by step: {reason}.", UserWarning, stacklevel=4)
        return self._own(*args, **kwargs)

    def _made_for(self, call: Call, generator: torch.Generator | None, given: dict[str, Any]) -> ParallelPolicy:
        """The maker of plans for calls like this one; the first of its kind is rehearsed."""
        key = call.key, call.shape[1:], call.like.dtype
        if self._policy is None or self._key != key:
            self._rehearse(call, generator, given)
            self._policy, self._key = self._maker(call, call.module, self._settings), key
        return self._policy

    def _maker(self, call: Call, module: nn.Module, settings: Mapping[str, Any]) -> ParallelPolicy:
        scheduler, shape, dtype = call.scheduler(), call.shape[1:], call.like.dtype
        model = partial(_output, call.network, module, dtype if draws_noise(scheduler) else None)
        return ParallelPolicy(model, scheduler, shape, executed=self._executed, dtype=dtype, **settings)

    def _rehearse(self, call: Call, generator: torch.Generator | None, given: dict[str, Any]) -> None:
        understudy, drawn = Understudy(call.like), generator_of(call.like.device)
        policy = self._maker(call, understudy, {"tol": rehearsed_to(call.like.dtype)})

        def ours() -> Tensor:
            given = {"start": call.start, "held": call.held, "generator": drawn}
            return policy.plan(call.observation, **given, throw=False).actions

        name = f"{type(self._loop.host).__name__}.{self._loop.name}"
        check_alike(name, lambda: self._loop.played(understudy, given), ours, drawn)


def generator_of(device: torch.device) -> torch.Generator | None:
    """The generator that torch draws from where none is given; None where it is not known."""
    if device.type == "cpu":
        return torch.default_generator
    all_of_kind = getattr(getattr(torch, device.type, None), "default_generators", ())
    index = device.index if device.index is not None else 0
    return all_of_kind[index] if index < len(all_of_kind) else None


def _why_alone(call: Call) -> str | None:
    """Why a call cannot be made in parallel; None if it can."""
    if torch.is_grad_enabled() and any(p.requires_grad for p in call.module.parameters()):
        return "gradients are asked for; call it under torch.no_grad()"
    if call.module.training:
        return "its network is in training mode, where it may draw random numbers; call policy.eval()"
    if generator_of(call.like.device) is None:
        return f"the random numbers of {call.like.device} are not known here"
    return None


def _output(
    network: Network, module: nn.Module, dtype: torch.dtype | None, x: Tensor, t: Tensor, observation: Any
) -> Tensor:
    out = network(module, x, t, observation)
    if dtype is not None and isinstance(out, Tensor) and out.dtype != dtype:
        raise _OtherPrecision
    return out
