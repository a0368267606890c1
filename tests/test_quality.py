"""Samples of the trained pipelines, one seed at a time: in parallel the same class, and no further from real digits."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import quality

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SEEDS = range(48)  # `python tests/benchmarks/quality.py` takes 256, and DDPM-1000


@pytest.mark.parametrize(("kind", "name"), [("digits", "DPM-Solver++-50"), ("digits by class, guidance 2", "DDIM-100")])
def test_parallel_samples_are_as_good_as_sequential_ones(kind, name):
    frechet = quality.Frechet(quality.features(quality.real_digits()[0].flatten(1).numpy()))
    _, pipe, inputs = next(found for found in quality.pipelines() if found[0] == kind)
    _, scheduler, steps, window, tolerance = next(sampler for sampler in quality.demo.SAMPLERS if sampler[0] == name)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    before = quality.draw(pipe, steps, SEEDS[::2], inputs)
    after = quality.draw(pipe, steps, SEEDS[::2], inputs, window=window, tolerance=tolerance)
    found = quality.Comparison(name, before, after, frechet)
    assert len(found.changed) == 0
    assert abs(found.distances[1] - found.distances[0]) < 0.1 * found.errors[0]
    assert all(report.rounds < 0.6 * steps for report in after.reports)


def test_the_distance_sees_a_bad_sampler():
    frechet = quality.Frechet(quality.features(quality.real_digits()[0].flatten(1).numpy()))
    _, pipe, inputs = next(quality.pipelines())
    _, scheduler, steps, _, _ = next(sampler for sampler in quality.demo.SAMPLERS if sampler[0] == "DDIM-100")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    good, bad = quality.draw(pipe, steps, SEEDS, inputs), quality.draw(pipe, 3, SEEDS, inputs)
    found = quality.Comparison("three steps", good, bad, frechet)
    assert len(found.changed) > 0
    assert found.distances[1] - found.distances[0] > 3 * found.errors[2]
