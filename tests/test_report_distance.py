"""What a pipeline's report says of its distance to the untouched pipeline, held against that pipeline."""

from functools import wraps
from statistics import median
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from pipelines import CASES, digits, generator

from picardsolve.integrations.diffusers import Report, sample

SEEDS = range(4)
BY_NAME = {case.name: case for case in CASES}


def last_state(pipe: Any, **inputs: Any) -> torch.Tensor:
    """Of the untouched pipeline's loop."""
    found, real = [], pipe.scheduler.step

    @wraps(real)  # pipelines look at its arguments
    def step(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        found.append((out[0] if isinstance(out, tuple) else out.prev_sample).clone())
        return out

    pipe.scheduler.step = step
    try:
        pipe(**inputs)
    finally:
        del pipe.scheduler.step
    return found[-1]


def compared(make: Any, inputs: dict[str, Any], window: int = 8) -> list[tuple[float, Report]]:
    """True distances relative to the size of the state, and the reports."""
    runs = []
    for seed in SEEDS:
        true = last_state(make(), generator=generator(seed), **inputs).flatten(1).double()
        report = sample(make(), generator=generator(seed), window=window, **inputs).report
        apart = (report.state.flatten(1).double() - true).square().mean(1).sqrt() / true.square().mean(1).sqrt()
        runs.append((float(apart.max()), report))
    return runs


@pytest.mark.filterwarnings("ignore:__array.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["SD", "SD, eta", "PixArt-alpha", "SD3", "Flux, true guidance", "DiT"])
def test_estimated_distances_are_of_the_order_of_the_true_ones(name):
    case = BY_NAME[name]
    runs = compared(case.make, {**case.inputs, "num_inference_steps": 20})
    ratios = [float(report.distance.max()) / true for true, report in runs]
    assert 1 / 3 <= min(ratios) <= max(ratios) <= 15
    assert 1 <= median(ratios) <= 13
    for true, report in runs:
        assert true <= report.tolerance
        size = report.state.flatten(1).double().square().mean(1).sqrt()
        assert bool((true * size <= report.certificate.bound[-1]).all())
        assert f"{float(report.distance.max()):.1e} of its size" in str(report)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_a_distance_is_relative_and_the_certificate_is_not(kind):
    for _, report in compared(lambda: digits(kind()), {"num_inference_steps": 20, "output_type": "pt"}):
        size = report.state.flatten(1).double().square().mean(1).sqrt()
        torch.testing.assert_close(report.distance * size, report.certificate.error[-1])


def test_a_distance_needs_a_run():
    with pytest.raises(ValueError, match="certificate: the loop has not run yet"):
        _ = Report().distance
