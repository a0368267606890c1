"""Digits over HTTP: many requests share one network, each runs the pipeline's own loop, and progress is streamed.

``python examples/serve.py`` serves a page at http://127.0.0.1:8000. ``/digit?seed=1&steps=100`` is a stream of
server-sent events: ``progress`` with the steps that are done, then ``image`` with a picture and the report, or
``failed``. Whoever hangs up cancels the request. A solve never waits for a client: its thread only counts steps, and
another one writes.
"""

import argparse
import base64
import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import DDIMScheduler, DDPMPipeline

import picardsolve as ps
from picardsolve.integrations import diffusers as parallel

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Digits</title>
<style>
  body { font: 16px system-ui; max-width: 44em; margin: 2em auto; padding: 0 1em; }
  #digits { display: flex; flex-wrap: wrap; gap: 1em; margin-top: 1em; }
  figure { margin: 0; width: 96px; font-size: 12px; }
  img { width: 96px; height: 96px; image-rendering: pixelated; background: #ddd; }
  progress { width: 96px; }
</style>
<h1>Digits</h1>
<p>Every digit is a request of its own. All of them share one network: alone, a request fills its idle rows with steps
ahead; in company its windows shrink.</p>
<label>digits <input id="count" type="number" value="4" min="1" max="32"></label>
<label>steps <input id="steps" type="number" value="100" min="1" max="1000"></label>
<button id="go">Sample</button>
<div id="digits"></div>
<script>
let seed = Math.floor(Math.random() * 1e6);
document.getElementById("go").onclick = () => {
  const steps = document.getElementById("steps").value;
  for (let k = 0; k < document.getElementById("count").value; k++) {
    const figure = document.createElement("figure");
    const img = document.createElement("img");
    img.alt = "seed " + ++seed;
    const bar = document.createElement("progress");
    bar.max = steps;
    bar.value = 0;
    const text = document.createElement("figcaption");
    figure.append(img, bar, text);
    document.getElementById("digits").prepend(figure);
    const events = new EventSource(`/digit?seed=${seed}&steps=${steps}`);
    const end = (message) => { events.close(); bar.remove(); text.textContent = message; };
    events.addEventListener("progress", (e) => { bar.value = JSON.parse(e.data).done; });
    events.addEventListener("image", (e) => {
      const got = JSON.parse(e.data);
      img.src = "data:image/png;base64," + got.png;
      end(`seed ${got.seed}: ${got.steps} steps in ${got.rounds} rounds, ${got.seconds.toFixed(2)} s`);
    });
    events.addEventListener("failed", (e) => end(JSON.parse(e.data).why));
    events.onerror = () => end("the connection was lost");
  }
};
</script>
"""
_EVERY = 0.1  # seconds between two looks at a request's progress
_PATIENCE = 10.0  # seconds that a client may take to read an event
_MOST_STEPS = 1000


class Digits:
    """The pipeline behind the service: one network, and a scheduler for each request.

    Args:
        max_rows: most rows of a call of the network.
        most: most requests at once; further ones are told to come again.
    """

    def __init__(self, max_rows: int = 32, most: int = 32):
        self.pipe = DDPMPipeline.from_pretrained(Path(__file__).parent / "digits")
        self.batcher = ps.Batcher(self.pipe.unet, max_rows=max_rows)
        self.places = threading.BoundedSemaphore(most)

    def sample(self, seed: int, steps: int, request: Any) -> dict[str, Any]:
        """The digit of a seed, with what its report says."""
        pipe = DDPMPipeline(self.pipe.unet, DDIMScheduler.from_config(self.pipe.scheduler.config))
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)  # its own: the process's is everybody's
        out = parallel.sample(
            pipe, num_inference_steps=steps, generator=generator, window="auto", batcher=request or self.batcher
        )
        file = io.BytesIO()
        out.images[0].save(file, "PNG")
        png, report = base64.b64encode(file.getvalue()).decode(), out.report
        return {"seed": seed, "steps": steps, "rounds": report.rounds, "seconds": report.seconds, "png": png}


class Job:
    """A request in a thread of its own.

    Attributes:
        request: its place at the network.
        over: is set when the thread has nothing more to do.
        event: what came of it: the name of an event, and its data.
    """

    def __init__(self, digits: Digits, seed: int, steps: int):
        self.request, self.over = digits.batcher.request(), threading.Event()
        self.event: tuple[str, dict[str, Any]] = "failed", {"why": "cancelled"}
        self._given = digits, seed, steps
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        digits, seed, steps = self._given
        try:
            with self.request:
                self.event = "image", digits.sample(seed, steps, self.request)
        except ps.Cancelled:
            pass
        except Exception as error:
            self.event = "failed", {"why": f"{type(error).__name__}: {error}"}
        finally:
            self.over.set()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection, in a thread of its own."""

    digits: Digits
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """The page, or a digit."""
        address = urlparse(self.path)
        if address.path == "/":
            self._answer(200, "text/html; charset=utf-8", PAGE.encode())
        elif address.path != "/digit":
            self._answer(404, "text/plain", b"there are / and /digit?seed=1&steps=100\n")
        else:
            self._digit({name: values[-1] for name, values in parse_qs(address.query).items()})

    def _digit(self, asked: dict[str, str]) -> None:
        try:
            seed, steps = int(asked.get("seed", 0)), int(asked.get("steps", 100))
            if not (0 <= seed < 2**63 and 1 <= steps <= _MOST_STEPS):
                raise ValueError
        except ValueError:
            self._answer(400, "text/plain", f"seed: from 0; steps: 1 to {_MOST_STEPS}\n".encode())
            return
        if not self.digits.places.acquire(blocking=False):
            self._answer(503, "text/plain", b"too many requests at once; come again\n")
            return
        try:
            self._stream(Job(self.digits, seed, steps), steps)
        finally:
            self.digits.places.release()

    def _stream(self, job: Job, steps: int) -> None:
        """Tell the client of a job until it is over; a client that is gone, or does not read, cancels it."""
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            while not job.over.wait(_EVERY):
                self._send("progress", {"done": job.request.steps, "of": steps})
            self._send(*job.event)
        except OSError:
            job.request.cancel()
        finally:
            self.close_connection = True
            job.over.wait()

    def _send(self, name: str, data: dict[str, Any]) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def server(digits: Digits, port: int = 0, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """The service, to be run by ``serve_forever``; port 0 is any free one."""
    made = ThreadingHTTPServer((host, port), type("DigitsHandler", (Handler,), {"digits": digits}))
    made.daemon_threads = True
    return made


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-rows", type=int, default=32)
    args = parser.parse_args()
    digits = Digits(args.max_rows)
    digits.sample(0, 10, None)  # the first calls of a process are slower
    print(f"http://127.0.0.1:{args.port}")
    with server(digits, args.port) as made:
        made.serve_forever()


if __name__ == "__main__":
    main()
