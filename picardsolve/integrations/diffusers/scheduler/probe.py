"""The weights of a scheduler's steps, measured by stepping a copy of the scheduler with unit vectors.

The steps of most schedulers are linear in the state, the outputs and the noise, with some memory of earlier steps. A
copy gets a new unit vector at every step. Its results are the weights, for any scheduler class. Where the memory turns
out to be longer than the unit vectors, the probe starts again with one for every step (see `endless_memory`).
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
from picardsolve.integrations.diffusers.scheduler.endless_memory import later, nothing_on_path, shortened, with_states
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape, same
from picardsolve.integrations.diffusers.scheduler.table import SchedulerTable

LAGS = 16  # longest memory of a table in steps; the longest in diffusers is 13 (PNDM with its Runge-Kutta start)
_MANY = 5  # steps of a short loop: memory of all of them is an endless one
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
        remembered: where the memory never ends, the largest age of a step that tells what the scheduler remembers.
    """

    def __init__(self, scheduler: Any, timesteps: Tensor, own: Tensor, extra: dict[str, Any]):
        # unit vectors may not reach these; a configuration may hold what was meant for another class
        taken, config = inspect.signature(type(scheduler).__init__).parameters, getattr(scheduler, "config", {})
        limited = any(config.get(name) for name in ("thresholding", "clip_sample") if name in taken)
        self.scales = np.ones(len(timesteps))
        self.linear = not limited and not any(isinstance(value, Tensor) for value in extra.values())
        self.remembered = 0
        self._timesteps, self._own = timesteps, own
        self._extra = {key: value for key, value in extra.items() if key != "return_dict"}
        self._tape = NoiseTape.of(None, timesteps.device)
        if "generator" in extra:
            self._tape = NoiseTape.of(torch.Generator(timesteps.device), timesteps.device)
            self._extra["generator"] = self._tape.generators[0]
        self._alive = True
        self._start(copy_of(scheduler, own), LAGS, on_path=False)

    def _start(self, scheduler: Any, columns: int, on_path: bool) -> None:
        """Start at the first step, with ``columns`` unit vectors for states and as many for outputs."""
        steps = len(self.scales)
        x, o, s, noisy = np.zeros((steps, LAGS)), np.zeros((steps, LAGS)), np.zeros(steps), np.zeros(steps, dtype=bool)
        self.table = SchedulerTable(x, o, s, noisy, on_path=on_path)
        self._scheduler, self._columns = scheduler, columns
        self._stages: dict[int, Any] = {}
        self._reached = self._noted = 0  # steps taken, and steps in the table
        self._forward = np.zeros(steps, dtype=bool)  # whether a step weights its own state most
        # weights on all steps before: of the latest result, and of what is zero on the path
        self._result, self._zero = np.zeros((2, 0)), np.zeros((2, 0))

    def reach(self, end: int) -> bool:
        """Measure the steps before ``end``; whether the table covers all of them."""
        if self._alive and self._reached < end:
            with _LOCK, self._tape.ahead(), torch.no_grad():
                if self._reached < end:  # else another thread has measured them
                    self._measure(end)
        return end <= self._noted

    def stage(self, n: int) -> Any:
        """A copy of the scheduler before step ``n``; None if unknown.

        Its states and outputs are unit vectors; `remembered_weights` where the memory never ends.
        """
        self.reach(min(n + 1, len(self.scales)))
        return self._stages.get(n)

    @property
    def unit(self) -> torch.Size:
        """Shape of states and outputs in `stage`."""
        return torch.Size((1, 2 * LAGS + _SPARE, 1, 1))

    @property
    def complete(self) -> bool:
        """Whether all steps are in the table."""
        return self._noted == len(self.scales)

    def carries_forward(self) -> bool:
        """Whether most measured steps weight their own state more than earlier states."""
        return self._noted == 0 or bool(np.mean(~self._forward[: self._noted]) < 0.25)

    def _measure(self, end: int) -> None:
        if self.table.on_path:  # what is remembered is told by the weights of the steps before
            for n in range(self._reached, end):
                self._take(range(n, n + 1))
            return
        for stop in (min(len(self.scales), LAGS), end):  # the first steps show already whether the memory is too long
            if self._reached < stop and not self._take(range(self._reached, stop)):
                self._start(self._stages[0], len(self.scales), on_path=True)
                self._measure(end)
                return

    def _take(self, steps: range) -> bool:
        """Take steps and note them; False where their memory is longer than the unit vectors."""
        results = [self._step(n) for n in steps if self._alive]
        fits = self._note(results) if self.linear and self._alive else True
        self._reached = steps.stop
        if self._reached == len(self.scales):
            self._stages[self._reached] = self._stage()
        return fits

    def _step(self, n: int) -> tuple[Tensor, Tensor, bool] | None:
        """The step's result for unit vectors, the possible noises, and whether the step drew noise."""
        x = torch.zeros((1, 2 * self._columns + _SPARE, 1, 1), dtype=torch.float64, device=self._timesteps.device)
        output = torch.zeros_like(x)
        x[0, n % self._columns] = output[0, self._columns + n % self._columns] = 1.0
        generator = self._tape.generators[0].manual_seed(n)
        before = self._tape.states()
        self._stages[n] = self._stage()
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

    def _note(self, results: list[tuple[Tensor, Tensor, bool] | None]) -> bool:
        """Write results to the table; False where their memory is longer than the unit vectors."""
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
                return True
            weights = self._by_age(n, unit)
            if not self.table.on_path and self._endless(n, weights):
                return False
            kept = self._kept(n, weights)
            if kept is None:
                self.linear = False
                return True
            if drew and np.abs(size).max() > _SMALL:
                self.table.noise_dtype = torch.float32 if kind else None
            table = self.table
            (table.x[n], table.o[n]), table.s[n], table.noisy[n] = kept, size[0], drew
            self._noted = n + 1
            table.lags = max(table.lags, *np.flatnonzero(kept.any(0)).tolist(), 0)
        return True

    def _endless(self, n: int, weights: np.ndarray) -> bool:
        """Whether a step reaches back as far as it could; with as many columns as ages that would look shorter."""
        short = n > _MANY and len(self.table.s) <= LAGS
        return bool(np.abs(weights[:, n if short else -1]).max() >= _SMALL)

    def _by_age(self, n: int, unit: np.ndarray) -> np.ndarray:
        """Weights by column as weights by age, ``(2, A)``, seen from step ``n``."""
        ages = np.arange(n + 1 if self.table.on_path else LAGS)
        return unit[np.stack([(n - ages) % self._columns, self._columns + (n - ages) % self._columns])]

    def _kept(self, n: int, weights: np.ndarray) -> np.ndarray | None:
        """The weights of step ``n`` that go into the table, ``(2, LAGS)``; None if these do not suffice."""
        small = np.abs(weights[0])
        self._forward[n] = small[0] >= small[1:][small[1:] >= _SMALL].sum()
        if not self.table.on_path:
            return np.where(np.abs(weights) < _SMALL, 0.0, weights)
        self._zero = nothing_on_path(self._result) if n else np.zeros((2, 1))
        self._result = weights
        return shortened(weights, self._zero, LAGS)

    def _stage(self) -> Any:
        """A copy of the scheduler as it is before the next step."""
        stage = copy_of(self._scheduler, self._own)
        if self.table.on_path:
            wide = torch.Size((1, 2 * self._columns + _SPARE, 1, 1))
            for name, value in vars(stage).items():
                if name not in PATCHED and name != "timesteps":
                    stage.__dict__[name] = with_states(value, wide, self._remembered)
        return stage

    def _remembered(self, state: Tensor) -> Tensor:
        """The weights of something that the scheduler remembers before the next step."""
        n = self._zero.shape[1]  # the next step
        unit = state.flatten().double().cpu().numpy()
        kept = shortened(self._by_age(n, unit), later(self._zero), LAGS)
        if kept is None or np.abs(unit[-_SPARE:]).max() > _SMALL:
            self.linear, kept = False, np.zeros((2, LAGS))
        self.remembered = max(self.remembered, *np.flatnonzero(kept.any(0)).tolist(), 0)
        return torch.from_numpy(np.pad(kept.ravel(), (0, _SPARE))).reshape(self.unit)


def scaled_ahead(probe: Probe | None, scheduler: Any, own: Tensor, n: int, ahead: int, x: Tensor, t: Tensor) -> Tensor:
    """``scale_model_input`` at step ``n``, which is ``ahead`` steps after the scheduler's own."""
    stage = None if probe is None else probe.stage(n)
    if stage is None:
        stage = copy_of(scheduler, own)
        if getattr(stage, "_step_index", None) is not None:
            stage._step_index += ahead
    return type(stage).scale_model_input(stage, x, t)
