"""The example service: streams, cancellation, clients that do not read, and several at once."""

import base64
import http.client
import json
import socket
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_batcher import in_threads

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import serve

pytestmark = [pytest.mark.timeout(250), pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")]


@pytest.fixture(scope="module")
def digits():
    return serve.Digits(max_rows=16, most=6)


@pytest.fixture
def address(digits):
    with serve.server(digits) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made.server_address
        made.shutdown()
        thread.join(100)
        assert not thread.is_alive()


def got(address, path):
    connection = http.client.HTTPConnection(*address, timeout=200)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers["Content-Type"], body


def events(body):
    for block in body.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def png(digits, seed, steps):
    return digits.sample(seed, steps, None)["png"]


def pixels(text):
    from PIL import Image

    with Image.open(serve.io.BytesIO(base64.b64decode(text))) as image:
        return torch.tensor(list(image.convert("L").tobytes()), dtype=torch.float64)


def test_the_page_asks_for_streams_that_the_service_has(address):
    status, kind, body = got(address, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"/digit?seed=" in body
    assert all(f'addEventListener("{name}"'.encode() in body for name in ("progress", "image", "failed"))


@pytest.mark.parametrize(("path", "status"), [("/digit?steps=0", 400), ("/digit?seed=x", 400), ("/other", 404)])
def test_what_is_wrong_is_refused(address, path, status):
    assert got(address, path)[0] == status


def test_digits_for_several_at_once_are_those_of_each_by_itself(address, digits):
    found = in_threads([lambda k=k: got(address, f"/digit?seed={k}&steps=20") for k in range(4)])
    for k, (status, kind, body) in enumerate(found):
        assert (status, kind) == (200, "text/event-stream")
        *before, (name, data) = events(body)
        assert name == "image"
        assert (data["seed"], data["steps"]) == (k, 20)
        assert all(n == "progress" and 0 <= d["done"] <= d["of"] == 20 for n, d in before)
        done = [d["done"] for _, d in before]
        assert done == sorted(done)
        far = (pixels(data["png"]) - pixels(png(digits, k, 20))).abs()
        assert float(far.max()) <= 4  # of 255
    assert digits.batcher.company == 1


def test_who_hangs_up_cancels_and_who_does_not_read_harms_nobody(address, digits, monkeypatch):
    jobs, made = [], threading.Semaphore(0)

    class Seen(serve.Job):
        def __init__(self, *given):
            super().__init__(*given)
            jobs.append(self)
            made.release()

    monkeypatch.setattr(serve, "Job", Seen)
    gone, slow = (socket.create_connection(address, timeout=200) for _ in range(2))
    gone.sendall(b"GET /digit?seed=1&steps=1000 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert made.acquire(timeout=100)
    slow.sendall(b"GET /digit?seed=2&steps=1000 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert made.acquire(timeout=100)
    gone.close()
    assert jobs[0].over.wait(100)
    assert jobs[0].event == ("failed", {"why": "cancelled"})
    *_, (name, _) = events(got(address, "/digit?seed=3&steps=10")[2])  # meanwhile nobody reads what ``slow`` gets
    assert name == "image"
    slow.close()
    assert jobs[1].over.wait(200)
    assert digits.batcher.company == 1


def test_too_many_are_told_to_come_again(address, digits):
    for _ in range(6):
        assert digits.places.acquire(timeout=100)
    try:
        assert got(address, "/digit?steps=5")[0] == 503
    finally:
        digits.places.release(6)


def test_an_error_is_an_event(address, digits, monkeypatch):
    monkeypatch.setattr(digits, "sample", lambda *_: 1 / 0)
    assert list(events(got(address, "/digit?steps=5")[2])) == [
        ("failed", {"why": "ZeroDivisionError: division by zero"})
    ]
