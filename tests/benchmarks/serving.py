"""Many requests through one network: latency and throughput of a Batcher beside one request after the other.

Digits by DDIM-100, K requests that come at once, each in a thread of its own. "untouched" and "sample" answer one
request after the other, by the pipeline itself and by ``sample`` with an automatic window. Two networks: the digits'
own, whose rows get cheaper in company as far as this machine makes them so, and the same with a fixed time added to
each call (the launches and weights of a network that a few rows do not fill), where company pays. Best of the repeats;
the largest difference of a pixel to the untouched pipeline's.

    python tests/benchmarks/serving.py [--repeats 3] [--requests 1 2 4 8 16]
"""

import argparse
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import DDIMScheduler, DDPMPipeline

import picardsolve as ps
from picardsolve.integrations import diffusers as parallel

STEPS, MAX_ROWS, CALL = 100, 32, 0.02
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def network(seconds: float) -> Any:
    """The digits' network; each call takes so many seconds more, in which the machine is idle."""
    unet = DDPMPipeline.from_pretrained(DIGITS).unet
    if seconds:
        block = unet.conv_in
        forward = block.forward
        block.forward = lambda x: (time.sleep(seconds), forward(x))[1]
    return unet


def pipeline(unet: Any) -> DDPMPipeline:
    """A pipeline of one request."""
    pipe = DDPMPipeline(unet, DDIMScheduler.from_pretrained(DIGITS, subfolder="scheduler"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def at_once(count: int, request: Callable[[int], Any]) -> tuple[list[Any], list[float], float]:
    """The results of requests in threads, the seconds of each, and those of all."""
    results: list[Any] = [None] * count
    seconds, barrier = [0.0] * count, threading.Barrier(count + 1)

    def run(k: int) -> None:
        barrier.wait()
        start = time.perf_counter()
        results[k] = request(k)
        seconds[k] = time.perf_counter() - start

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return results, seconds, time.perf_counter() - start


def one_by_one(count: int, request: Callable[[int], Any]) -> tuple[list[Any], list[float], float]:
    """The same, one after the other: each waits for those before it."""
    start, results, seconds = time.perf_counter(), [], []
    for k in range(count):
        results.append(request(k))
        seconds.append(time.perf_counter() - start)
    return results, seconds, seconds[-1]


def compare(unet: Any, count: int, repeats: int) -> None:
    """Print a row."""
    batcher, best = ps.Batcher(unet, max_rows=MAX_ROWS), {}

    def given(seed: int) -> dict[str, Any]:
        return {
            "num_inference_steps": STEPS,
            "output_type": "pt",
            "generator": torch.Generator().manual_seed(seed),
        }

    ways = {
        "untouched": lambda: one_by_one(count, lambda k: pipeline(unet)(**given(k))),
        "sample": lambda: one_by_one(count, lambda k: parallel.sample(pipeline(unet), window="auto", **given(k))),
        "batcher": lambda: at_once(
            count, lambda k: parallel.sample(pipeline(unet), window="auto", batcher=batcher, **given(k))
        ),
    }
    for _ in range(repeats):
        for name, way in ways.items():  # in turn, so that what else the machine does meets all of them
            results, seconds, whole = way()
            if name not in best or whole < best[name][2]:
                best[name] = results, seconds, whole
    (plain, _, slow), (_, _, sampled), (found, latency, fast) = (best[name] for name in ways)
    far = max(float((a.images - b.images).abs().max()) for a, b in zip(plain, found, strict=True))
    rounds = sorted(out.report.rounds for out in found)[count // 2]
    print(
        f"{count:8d}  {count / slow:9.2f}  {count / sampled:9.2f}  {count / fast:9.2f}  {slow / fast:11.2f}  "
        f"{min(slow, sampled) / fast:11.2f}  {max(latency):9.2f} s  {rounds:6d}  "
        f"{batcher.rounds.rows / max(batcher.rounds.count, 1):10.1f}  {far:10.1e}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for title, seconds in (("the digits' network", 0.0), (f"with {CALL * 1e3:.0f} ms more a call", CALL)):
        unet = network(seconds)
        parallel.sample(pipeline(unet), num_inference_steps=20, window="auto")  # the first calls are slower
        print(f"\n{title}: DDIM-{STEPS}, at most {MAX_ROWS} rows; requests a second, and how many times as many")
        print(
            "requests  untouched     sample    batcher  x untouched  x better of    slowest  rounds  rows/call  pixel"
            " diff"
        )
        for count in args.requests:
            compare(unet, count, args.repeats)


if __name__ == "__main__":
    main()
