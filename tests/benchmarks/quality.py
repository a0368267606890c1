"""Quality as the ParaDiGMS paper reports it: seeds compared one by one, and the Frechet distance to the real digits.

``python tests/benchmarks/quality.py`` samples two pipelines, without a condition and by class with guidance, by three
samplers, each step by step and in parallel. It prints one table and draws one picture; ``--seeds 32`` is quick.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import demo
import matplotlib as mpl
import numpy as np
import torch
from diffusers import DDIMScheduler, DiTPipeline
from scipy.linalg import sqrtm
from train_digits import classifier
from train_digits import digits as real_digits

from picardsolve.integrations import diffusers as parallel

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH = 64  # images that share a call, and the position of the window
ROWS = 1024  # of a call: no faster beyond
ALONE = range(4)  # seeds that are also sampled one at a time
RESAMPLES = 200
COARSE = 0.1  # a tolerance that shows
FEW = (10, 3)  # steps that show
COLUMNS = 12
WHITE = 0.002  # the difference of pixels that is white in the picture


class Drawn:
    """Samples of one sampler, and what they cost.

    Attributes:
        images: ``(n, 64)`` in [-1, 1].
        reports: of each batch that was sampled in parallel.
        seconds: of all cores, in all.
    """

    def __init__(self, images: np.ndarray, reports: list[parallel.Report], seconds: float):
        self.images, self.reports, self.seconds = images, reports, seconds

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the classes, by the classifier of real digits."""
        return classifier()[0].predict_proba(self.images)

    @property
    def classes(self) -> np.ndarray:
        """The most probable ones."""
        return self.probabilities.argmax(1)

    @property
    def leads(self) -> np.ndarray:
        """Of the most probable class over the next."""
        return np.diff(np.sort(self.probabilities, 1)[:, -2:], axis=1)[:, 0]

    @cached_property
    def features(self) -> np.ndarray:
        """What the classifier's hidden layer makes of the images."""
        return features(self.images)


def features(images: np.ndarray) -> np.ndarray:
    """The hidden layer of the classifier of real digits."""
    network = classifier()[0]
    return np.maximum(images @ network.coefs_[0] + network.intercepts_[0], 0)


class Frechet:
    """The Frechet distance of features to those of a reference, both taken as normally distributed."""

    def __init__(self, reference: np.ndarray):
        self._mean, self._covariance = reference.mean(0), np.cov(reference.T)
        # a feature that is zero for all images would make the matrix singular
        self._root = sqrtm(self._covariance + 1e-9 * np.eye(len(self._mean))).real

    def __call__(self, x: np.ndarray) -> float:
        """Of the rows of ``x``."""
        covariance = np.cov(x.T)
        # the trace of sqrtm(C1 C2), by a symmetric matrix with the same eigenvalues: resampling calls this often
        shared = np.sqrt(np.linalg.eigvalsh(self._root @ covariance @ self._root).clip(0)).sum()
        return ((x.mean(0) - self._mean) ** 2).sum() + np.trace(covariance + self._covariance) - 2 * shared

    def resampled(self, *sets: np.ndarray) -> np.ndarray:
        """Distances ``(RESAMPLES, k)`` of k sets, of the same rows of each, drawn with replacement."""
        count = len(sets[0])
        chosen = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
        return np.array([[self(x[rows]) for x in sets] for rows in chosen])


# ---- sampling


def pipelines() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, pipeline, and what its calls are given."""
    guided = DiTPipeline.from_pretrained(Path(demo.__file__).parent / "digits_by_class")
    for name, pipe, inputs in (
        ("digits", demo.pipeline(), {}),
        ("digits by class, guidance 2", guided, {"guidance_scale": 2.0}),
    ):
        pipe.set_progress_bar_config(disable=True)
        yield name, pipe, inputs


def draw(pipe: Any, steps: int, seeds: range, inputs: dict[str, Any], batch: int = BATCH, **numerics: Any) -> Drawn:
    """Sample every seed, of class ``seed % 10``: with the untouched pipeline, or in parallel if given numerics."""
    images, reports, start = [], [], time.process_time()
    for some in (seeds[k : k + batch] for k in range(0, len(seeds), batch)):
        rows = {"class_labels": [seed % 10 for seed in some]} if inputs else {"batch_size": len(some)}
        generators = [torch.Generator().manual_seed(seed) for seed in some]
        torch.manual_seed(10**6 + some[0])  # DiTPipeline gives its generators to the first noise only
        given = {**inputs, **rows, "num_inference_steps": steps, "generator": generators, "output_type": "np"}
        out = parallel.sample(pipe, **given, **numerics) if numerics else pipe(**given)
        if numerics:
            reports.append(out.report)
        images.append(out.images.reshape(len(some), -1) * 2.0 - 1)
    return Drawn(np.concatenate(images), reports, time.process_time() - start)


# ---- the table

HEADER = """\
                                         median of calls     pixel difference  relative RMS      other  \
Frechet distance to real digits      difference          core seconds
                               window  tol    rounds  evals/step  median   worst    median   worst    class  \
sequential       parallel         of the two, paired  sequential  parallel"""


class Comparison:
    """One sampler, in parallel or otherwise changed, against another one of the same seeds.

    Attributes:
        changed: the seeds that fell into another class.
        distances: Frechet distances to the real digits, before and after.
        errors: theirs, by the bootstrap, and that of their difference.
    """

    def __init__(self, name: str, before: Drawn, after: Drawn, frechet: Frechet, window: Any = "", tolerance: Any = ""):
        self.name, self.before, self.after = name, before, after
        self._window, self._tolerance = window, tolerance
        self.changed = np.flatnonzero(before.classes != after.classes)
        self.distances = frechet(before.features), frechet(after.features)
        resampled = frechet.resampled(before.features, after.features)
        self.errors = (*resampled.std(0), np.diff(resampled, axis=1).std())

    def __str__(self) -> str:
        change = self.after.images - self.before.images
        pixel = abs(change).max(1) / 2  # of images in [0, 1]
        relative = np.linalg.norm(change, axis=1) / np.linalg.norm(self.before.images, axis=1)
        rounds, work = _cost(self.after.reports)
        (first, second), (error, other, paired) = self.distances, self.errors
        return (
            f"  {self.name:27s}  {self._window:>6}  {self._tolerance:<5}  {rounds:>6s}  {work:>10s}  "
            f"{np.median(pixel):.1e}  {pixel.max():.1e}  {np.median(relative):.1e}  {relative.max():.1e}  "
            f"{len(self.changed):5d}  {first:6.3f} +- {error:.3f}  {second:6.3f} +- {other:.3f}  "
            f"{second - first:+7.4f} +- {paired:.4f}  {self.before.seconds:10.0f}  {self.after.seconds:8.0f}"
        )


def _cost(reports: list[parallel.Report]) -> tuple[str, str]:
    if not reports:
        return "", ""
    rounds, work = zip(*((report.rounds, report.states / report.steps) for report in reports), strict=True)
    return f"{statistics.median(rounds):g}", f"{statistics.median(work):.2f}"


def compare(
    pipe: Any, inputs: dict[str, Any], seeds: range, batch: int, frechet: Frechet
) -> tuple[list[Comparison], list[str]]:
    """Print the lines of one pipeline; what they compared, and what else is to be said of it."""
    compared, notes, poor = [], [], []
    for name, scheduler, steps, window, tolerance in demo.SAMPLERS:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        numerics = {"window": window, "max_batch": ROWS, "batch": batch}
        before = draw(pipe, steps, seeds, inputs)
        after = draw(pipe, steps, seeds, inputs, tolerance=tolerance, **numerics)
        compared.append(Comparison(name, before, after, frechet, window, tolerance))
        print(compared[-1], flush=True)
        notes += _notes(compared[-1], inputs)
        if scheduler is DDIMScheduler:
            notes.append(_alone(pipe, steps, inputs, before, tolerance=tolerance, window=window))
            coarse = draw(pipe, steps, seeds, inputs, tolerance=COARSE, **numerics)
            poor.append(Comparison(f"{name}, coarse tolerance", before, coarse, frechet, window, COARSE))
            for few in FEW:
                poor.append(Comparison(f"DDIM-{few}, sequential", before, draw(pipe, few, seeds, inputs), frechet))
    print(*poor, sep="\n", flush=True)
    return compared, notes


def _notes(compared: Comparison, inputs: dict[str, Any]) -> list[str]:
    """How near a tie the classes are, which changed, whether they are those asked for; what the reports say."""
    before, after = compared.before, compared.after
    least = f"the closest tie is ahead by {before.leads.min():.1e} sequential, {after.leads.min():.1e} parallel"
    asked = [(drawn.classes == np.arange(len(drawn.classes)) % 10).mean() for drawn in (before, after)]
    found = f"; in the class asked for {asked[0]:.1%}, {asked[1]:.1%}" if inputs else ""
    changed = [
        f"    seed {k}: class {before.classes[k]}, ahead by {before.leads[k]:.1e} of probability, is now class "
        f"{after.classes[k]}, ahead by {after.leads[k]:.1e}"
        for k in compared.changed
    ]
    said = dict.fromkeys(note for report in after.reports for note in (report.sequential, *report.notes) if note)
    return [f"  {compared.name}: {least}{found}", *changed, *(f"    {note}" for note in said)]


def _alone(pipe: Any, steps: int, inputs: dict[str, Any], before: Drawn, **numerics: Any) -> str:
    """Whether a seed gives the same image alone as in a batch, and parallel where the window waits for no other one."""
    one = draw(pipe, steps, ALONE, inputs, batch=1)
    two = draw(pipe, steps, ALONE, inputs, batch=1, **numerics)
    batch, window = (abs(one.images - images[: len(ALONE)]).max() / 2 for images in (before.images, two.images))
    return (
        f"    one image at a time, {len(ALONE)} seeds: sequential {batch:.1e} from the batch's pixels; parallel "
        f"{window:.1e} from sequential, in {_cost(two.reports)[0]} rounds"
    )


def held_out(count: int) -> str:
    """The distance of real digits to the others, as a scale."""
    images, _ = real_digits()
    everything, (_, test, _) = images.flatten(1).numpy(), classifier()
    chosen = test[:count]
    rest = (everything[:, None] != chosen[None]).any(-1).all(1)
    frechet, x = Frechet(features(everything[rest])), features(chosen)
    error = frechet.resampled(x).std()
    return f"{len(chosen)} real digits held out, to the {rest.sum()} others: {frechet(x):.3f} +- {error:.3f}"


def verdict(compared: list[Comparison]) -> str:
    """Whether parallel sampling is as good as sequential sampling."""
    changed, count = sum(len(one.changed) for one in compared), sum(len(one.before.images) for one in compared)
    gaps = [abs(one.distances[1] - one.distances[0]) / np.clip(one.errors, 1e-9, None) for one in compared]
    single, _, paired = np.max(gaps, axis=0)
    return (
        f"in another class: {changed} of {count} samples; Frechet distances differ by at most {single:.3f} of the "
        f"bootstrap's error, {paired:.2f} of the error of their difference"
    )


# ---- the picture


def picture(blocks: dict[str, list[Comparison]], path: Path) -> None:
    """Rows of samples, sequential, parallel and their difference; one block for each pipeline."""
    rows = 3 * len(demo.SAMPLERS)
    figure, axes = plt.subplots(rows, len(blocks), figsize=(7.2 * len(blocks), 0.56 * rows + 0.4), squeeze=False)
    for column, (label, compared) in zip(axes.T, blocks.items(), strict=True):
        strips = [strip for one in compared for strip in _strips(one)]
        for axis, (name, strip, largest) in zip(column, strips, strict=True):
            axis.imshow(strip, cmap="gray" if largest == 1 else "magma", vmin=0, vmax=largest)
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
            axis.set(xticks=[], yticks=[], frame_on=False)
        column[0].set_title(label, fontsize="medium")
    figure.tight_layout(pad=0.4, w_pad=2)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _strips(compared: Comparison) -> Iterator[tuple[str, np.ndarray, float]]:
    """A label, the images of a row side by side, and the value that is white."""
    first, second = ((drawn.images[:COLUMNS] + 1) / 2 for drawn in (compared.before, compared.after))
    for kind, images, white in (
        (f"{compared.name}\nsequential", first, 1),
        (f"{compared.name}\nparallel", second, 1),
        (f"difference\n0 to {WHITE}", abs(first - second), WHITE),
    ):
        spaced = np.pad(images.reshape(-1, 8, 8), ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
        yield kind, np.hstack(list(spaced))[:, :-1], white


def main() -> None:
    """Print the table, and say where the picture is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--alone", action="store_true", help="where there is no condition, no batches in parallel")
    parser.add_argument("--out", type=Path, default=Path("quality-output"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start, blocks, notes = time.process_time(), {}, []
    frechet = Frechet(features(real_digits()[0].flatten(1).numpy()))
    print(f"{args.seeds} seeds, batches of {BATCH}, {torch.get_num_threads()} threads; +- is the bootstrap's error")
    print(HEADER)
    for label, pipe, inputs in pipelines():
        print(label)
        # noise that DiTPipeline draws in its steps depends on the batch: both ways of sampling need the same one
        batch = 1 if args.alone and not inputs else BATCH
        blocks[label], said = compare(pipe, inputs, range(args.seeds), batch, frechet)
        notes += [f"{label}: {verdict(blocks[label])}", *said]
    print("", held_out(args.seeds), *notes, sep="\n")
    picture(blocks, args.out / "quality.png")
    print(f"{time.process_time() - start:.0f} core seconds; picture: {args.out / 'quality.png'}")


if __name__ == "__main__":
    main()
