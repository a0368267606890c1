"""What a scheduler does in its steps, found out by stepping a copy of it with unit vectors.

Most schedulers take steps that are linear in the state, the outputs and the noise, with some memory of earlier ones.
A copy that is given another unit vector at every step shows the coefficients, whatever class it is.
"""

from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import immutable, trusted
from picardsolve.integrations.diffusers.scheduler.copied_steps import PATCHED, copy_of
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape, same
from picardsolve.integrations.diffusers.scheduler.table import SchedulerTable

LAGS = 16  # steps of memory that are told apart; the longest in diffusers is 13 (PNDM with its Runge-Kutta start)
_SPARE = 2  # columns of zeros, which show the noise
_SMALL = 1e-6  # below, a coefficient is rounding, of single precision where noise is drawn in that
_KEPT = 8  # schedulers whose tables are kept from run to run
_LOCK = Lock()
_probes: "OrderedDict[Any, Probe]" = OrderedDict()


def probe_of(scheduler: Any, timesteps: Tensor, own: Tensor, extra: dict[str, Any]) -> "Probe":
    """The probe of a scheduler at the beginning of its timesteps; that of an earlier run of an equal one."""
    arguments = {key: value for key, value in extra.items() if key not in ("generator", "return_dict")}
    parts = {**vars(scheduler), "loop": timesteps, "own": own, **arguments, "takes": "generator" in extra}
    try:
        if not trusted(type(scheduler).__module__):
            raise LookupError
        key = type(scheduler), *((name, _print_of(value)) for name, value in parts.items() if name not in PATCHED)
    except LookupError:
        return Probe(scheduler, timesteps, own, extra)
    with _LOCK:
        probe = _probes.pop(key, None) or Probe(scheduler, timesteps, own, extra)
        _probes[key] = probe
        while len(_probes) > _KEPT:
            _probes.popitem(last=False)
    return probe


def _print_of(value: Any) -> Any:
    """What two equal attributes have in common, and two different ones have not.

    Raises:
        LookupError: it may have more to it than can be seen.
    """
    if isinstance(value, Tensor):
        return str(value.device), value.dtype, tuple(value.shape), value.detach().cpu().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple([(key, _print_of(part)) for key, part in value.items()])
    if isinstance(value, list | tuple):
        return type(value), tuple([_print_of(part) for part in value])
    if isinstance(value, type | set | frozenset) or immutable(value):
        return repr(value)
    raise LookupError


class Probe:
    """The table of a scheduler's steps as far as it has been asked for, and the scheduler's stage at each of them.

    Attributes:
        table: filled up to the steps that were reached.
        scales: by what ``scale_model_input`` multiplies.
        linear: False once a step was not a linear map, or one of too long a memory: the table ends before it.
    """

    def __init__(self, scheduler: Any, timesteps: Tensor, own: Tensor, extra: dict[str, Any]):
        steps = len(timesteps)
        self.table = SchedulerTable(
            np.zeros((steps, LAGS)), np.zeros((steps, LAGS)), np.zeros(steps), np.zeros(steps, dtype=bool)
        )
        config = getattr(scheduler, "config", {})
        limited = any(config.get(name) for name in ("thresholding", "clip_sample"))  # unit vectors may not show it
        self.scales = np.ones(steps)
        self.linear = not limited and not any(isinstance(value, Tensor) for value in extra.values())
        self._scheduler, self._timesteps, self._own = copy_of(scheduler, own), timesteps, own
        self._extra = {key: value for key, value in extra.items() if key != "return_dict"}
        self._tape = NoiseTape.of(None, timesteps.device)
        if "generator" in extra:
            self._tape = NoiseTape.of(torch.Generator(timesteps.device), timesteps.device)
            self._extra["generator"] = self._tape.generators[0]
        self._stages: dict[int, Any] = {}
        self._reached = self._noted = 0  # steps that were taken, and those of them that are in the table
        self._alive = True

    def reach(self, end: int) -> bool:
        """Probe the steps before ``end``; whether the table has all of them."""
        if self._alive and self._reached < end:
            with _LOCK, self._tape.ahead(), torch.no_grad():
                if self._reached >= end:  # another thread was here meanwhile
                    return end <= self._noted
                results = [self._step(n) for n in range(self._reached, end) if self._alive]
                if self.linear and self._alive:
                    self._note(results)
                self._reached = max(self._reached, end)
        return end <= self._noted

    def stage(self, n: int) -> Any:
        """A copy of the scheduler as it stands before step ``n``, but for the states it keeps; None if unknown."""
        self.reach(n + 1)
        return self._stages.get(n)

    def carries_forward(self) -> bool:
        """Whether the steps so far start from the state they are given, most of them, more than from earlier ones."""
        x = np.abs(self.table.x[: self._noted])
        return self._noted == 0 or bool(np.mean(x[:, 0] < x[:, 1:].sum(1)) < 0.25)

    def _step(self, n: int) -> tuple[Tensor, Tensor, bool] | None:
        """The step's outcome for unit vectors, what noise it can have drawn, and whether it drew."""
        columns = 2 * LAGS + _SPARE
        x = torch.zeros(1, columns, 1, 1, dtype=torch.float64, device=self._timesteps.device)
        output = torch.zeros_like(x)
        x[0, n % LAGS] = output[0, LAGS + n % LAGS] = 1.0
        generator = self._tape.generators[0].manual_seed(n)
        before = self._tape.states()
        self._stages[n] = copy_of(self._scheduler, self._own)
        if hasattr(self._scheduler, "scale_model_input"):
            one = torch.ones(1, 1, 1, 1, dtype=x.dtype, device=x.device)
            stage = copy_of(self._scheduler, self._own)
            self.scales[n] = float(type(stage).scale_model_input(stage, one, self._timesteps[n]))
        try:
            step = type(self._scheduler).step
            y = step(self._scheduler, output, self._timesteps[n], x, **self._extra, return_dict=False)[0]
        except Exception:  # a scheduler that wants states of its own shape; its steps are walked instead
            self._alive = False
            return None
        drew = not same(before, self._tape.states())
        noises = [
            torch.randn(x.shape, generator=generator.manual_seed(n), dtype=dtype, device=x.device).double()
            for dtype in (torch.float64, torch.float32)
        ]
        return y.flatten(), torch.stack(noises).flatten(1), drew

    def _note(self, results: list[tuple[Tensor, Tensor, bool] | None]) -> None:
        found = [result for result in results if result is not None]
        ys = torch.stack([y for y, _, _ in found]).double().cpu().numpy()
        noises = torch.stack([noise for _, noise, _ in found]).cpu().numpy()
        for n, y, drawn, (_, _, drew) in zip(range(self._reached, len(self.table.s)), ys, noises, found, strict=False):
            sizes = y[-_SPARE:] / drawn[:, -_SPARE:] if drew else np.zeros((2, _SPARE))
            kind = int(np.ptp(sizes, axis=1).argmin())  # drawn in the output's type, or always in single precision
            size, unit = sizes[kind], y - sizes[kind, 0] * drawn[kind]
            if not np.isfinite(y).all() or np.abs(unit[-_SPARE:]).max() > 1e-6 or np.ptp(size) > 1e-6:
                self.linear = False
                return
            if drew and np.abs(size).max() > _SMALL:
                self.table.noise_dtype = torch.float32 if kind else None
            lag = (n - np.arange(LAGS)) % LAGS
            x, o = unit[lag], unit[LAGS + lag]
            x[np.abs(x) < _SMALL], o[np.abs(o) < _SMALL] = 0.0, 0.0
            if x[-1] or o[-1]:  # a longer memory (UniPC's corrector never forgets) would not be told apart
                self.linear = False
                return
            table = self.table
            table.x[n], table.o[n], table.s[n], table.noisy[n] = x, o, size[0], drew
            self._noted = n + 1
            table.lags = max(table.lags, *np.flatnonzero((x != 0) | (o != 0)).tolist(), 0)


def scaled_ahead(probe: Probe | None, scheduler: Any, own: Tensor, n: int, ahead: int, x: Tensor, t: Tensor) -> Tensor:
    """``scale_model_input`` as the scheduler will do it ``ahead`` steps from now, at step ``n``."""
    stage = None if probe is None else probe.stage(n)
    if stage is None:
        stage = copy_of(scheduler, own)
        if getattr(stage, "_step_index", None) is not None:
            stage._step_index += ahead
    return type(stage).scale_model_input(stage, x, t)
