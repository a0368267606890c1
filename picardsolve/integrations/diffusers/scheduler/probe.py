"""The weights of a scheduler's steps, measured by stepping a copy of the scheduler with unit vectors.

The steps of most schedulers are linear in the state, the outputs and the noise, with some memory of earlier steps. A
copy gets a new unit vector at every step. Its results are the weights, for any scheduler class.
"""

import inspect
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

LAGS = 16  # longest measurable memory in steps; the longest in diffusers is 13 (PNDM with its Runge-Kutta start)
_SPARE = 2  # further columns of zeros; their results are the noise
_SMALL = 1e-6  # smaller weights are rounding errors, where noise is drawn in single precision
_KEPT = 8  # number of schedulers with a cached table
_LOCK = Lock()
_probes: "OrderedDict[Any, Probe]" = OrderedDict()


def probe_of(scheduler: Any, timesteps: Tensor, own: Tensor, extra: dict[str, Any]) -> "Probe":
    """The probe of a scheduler at the start of its timesteps; equal schedulers share one, also across runs."""
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
    """A hashable key, the same for equal attributes only; LookupError if an attribute may have hidden parts."""
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
    """The table of a scheduler's steps, measured as far as needed, and a copy of the scheduler before each step.

    Attributes:
        table: filled for the measured steps.
        scales: ``(N,)``, factors of ``scale_model_input``.
        linear: False after a step that is not linear, or has too long a memory; the table ends before that step.
    """

    def __init__(self, scheduler: Any, timesteps: Tensor, own: Tensor, extra: dict[str, Any]):
        steps = len(timesteps)
        self.table = SchedulerTable(
            np.zeros((steps, LAGS)), np.zeros((steps, LAGS)), np.zeros(steps), np.zeros(steps, dtype=bool)
        )
        # unit vectors may not reach these; a configuration may hold what was meant for another class
        taken, config = inspect.signature(type(scheduler).__init__).parameters, getattr(scheduler, "config", {})
        limited = any(config.get(name) for name in ("thresholding", "clip_sample") if name in taken)
        self.scales = np.ones(steps)
        self.linear = not limited and not any(isinstance(value, Tensor) for value in extra.values())
        self._scheduler, self._timesteps, self._own = copy_of(scheduler, own), timesteps, own
        self._extra = {key: value for key, value in extra.items() if key != "return_dict"}
        self._tape = NoiseTape.of(None, timesteps.device)
        if "generator" in extra:
            self._tape = NoiseTape.of(torch.Generator(timesteps.device), timesteps.device)
            self._extra["generator"] = self._tape.generators[0]
        self._stages: dict[int, Any] = {}
        self._reached = self._noted = 0  # steps taken, and steps in the table
        self._alive = True

    def reach(self, end: int) -> bool:
        """Measure the steps before ``end``; whether the table covers all of them."""
        if self._alive and self._reached < end:
            with _LOCK, self._tape.ahead(), torch.no_grad():
                if self._reached >= end:  # another thread has measured them
                    return end <= self._noted
                results = [self._step(n) for n in range(self._reached, end) if self._alive]
                if self.linear and self._alive:
                    self._note(results)
                self._reached = max(self._reached, end)
        return end <= self._noted

    def stage(self, n: int) -> Any:
        """A copy of the scheduler before step ``n``, with unit vectors as states; None if unknown."""
        self.reach(min(n + 1, len(self.scales)))
        return self._stages.get(n) if n < len(self.scales) else self._scheduler

    @property
    def unit(self) -> torch.Size:
        """Shape of the unit vectors."""
        return torch.Size((1, 2 * LAGS + _SPARE, 1, 1))

    @property
    def complete(self) -> bool:
        """Whether all steps are in the table."""
        return self._noted == len(self.scales)

    def carries_forward(self) -> bool:
        """Whether most measured steps weight their own state more than earlier states."""
        x = np.abs(self.table.x[: self._noted])
        return self._noted == 0 or bool(np.mean(x[:, 0] < x[:, 1:].sum(1)) < 0.25)

    def _step(self, n: int) -> tuple[Tensor, Tensor, bool] | None:
        """The step's result for unit vectors, the possible noises, and whether the step drew noise."""
        x = torch.zeros(self.unit, dtype=torch.float64, device=self._timesteps.device)
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
        except Exception:  # the scheduler needs another shape of states; copies take its steps
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
            kind = int(np.ptp(sizes, axis=1).argmin())  # drawn in the output's dtype, or always in single precision
            size, unit = sizes[kind], y - sizes[kind, 0] * drawn[kind]
            self.table.forget()
            if not np.isfinite(y).all() or np.abs(unit[-_SPARE:]).max() > 1e-6 or np.ptp(size) > 1e-6:
                self.linear = False
                return
            if drew and np.abs(size).max() > _SMALL:
                self.table.noise_dtype = torch.float32 if kind else None
            lag = (n - np.arange(LAGS)) % LAGS
            x, o = unit[lag], unit[LAGS + lag]
            x[np.abs(x) < _SMALL], o[np.abs(o) < _SMALL] = 0.0, 0.0
            if x[-1] or o[-1]:  # a longer memory (UniPC's corrector) would alias with a shorter one
                self.linear = False
                return
            table = self.table
            table.x[n], table.o[n], table.s[n], table.noisy[n] = x, o, size[0], drew
            self._noted = n + 1
            table.lags = max(table.lags, *np.flatnonzero((x != 0) | (o != 0)).tolist(), 0)


def scaled_ahead(probe: Probe | None, scheduler: Any, own: Tensor, n: int, ahead: int, x: Tensor, t: Tensor) -> Tensor:
    """``scale_model_input`` at step ``n``, which is ``ahead`` steps after the scheduler's own."""
    stage = None if probe is None else probe.stage(n)
    if stage is None:
        stage = copy_of(scheduler, own)
        if getattr(stage, "_step_index", None) is not None:
            stage._step_index += ahead
    return type(stage).scale_model_input(stage, x, t)
