"""Real servers on loopback, asked with curl: what arrives is what was meant."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
import uvicorn
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from werkzeug.serving import make_server

from meterd import AsyncMeter, Meter
from meterd.testing import ManualClock
from tests.http import sites
from tests.http.keyring import give_keys
from tests.http.routes import PLANS
from tests.support import servers

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")

STACKS = [
    "uvicorn fastapi", "uvicorn starlette", "uvicorn asgi", "uvicorn django",
    "werkzeug flask", "wsgiref wsgi", "wsgiref django",
]  # fmt: skip


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextlib.contextmanager
def running(stack: str, app: Any) -> Iterator[int]:
    """Serves an application on a port of its own."""
    if stack.startswith("uvicorn"):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            config = uvicorn.Config(app, log_config=None, lifespan="off", proxy_headers=False)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listening],))
            thread.start()
            try:
                yield listening.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join()
        return
    wsgi_server: Any
    if stack.startswith("werkzeug"):
        wsgi_server = make_server("127.0.0.1", 0, app, threaded=True)
    else:
        wsgi_server = WSGIServer(("127.0.0.1", 0), Quiet)
        wsgi_server.set_app(app)
    thread = threading.Thread(target=wsgi_server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield wsgi_server.server_address[1]
    finally:
        wsgi_server.shutdown()
        thread.join()
        wsgi_server.server_close()


@pytest.fixture(params=STACKS)
def url(
    request: pytest.FixtureRequest, server: servers.Server, prefix: str, clock: ManualClock
) -> Iterator[str]:
    stack: str = request.param
    framework = stack.split()[1]
    kind: Any = AsyncMeter if stack.startswith("uvicorn") else Meter
    meter = kind(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=5)
    down = kind("redis://127.0.0.1:1", clock=clock, timeout=0.2)
    with Meter(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=5) as store:
        give_keys(store)
    meters = sites.Meters(meter, down)
    options = {"trusted_proxies": ["127.0.0.0/8"], "legacy": True}
    with contextlib.ExitStack() as stack_of:
        for one in (meter, down):
            stack_of.callback(getattr(one, "abandon", one.close))
        if framework == "django":
            asynchronous = stack.startswith("uvicorn")
            urls = sites.django_async_urls if asynchronous else sites.django_urls
            stack_of.enter_context(sites.django_settings(urls(meters), options))
            app = ASGIHandler() if asynchronous else WSGIHandler()
        else:
            app = getattr(sites, f"{framework}_app")(meters, options)
        port = stack_of.enter_context(running(stack, app))
        yield f"http://127.0.0.1:{port}"


def curl(url: str, *arguments: str) -> tuple[int, dict[str, str], str]:
    assert CURL is not None
    done = subprocess.run(
        [CURL, "--silent", "--noproxy", "*", "--include", "--max-time", "30", *arguments, url],
        capture_output=True,
        check=False,
    )
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
    return int(first.split()[1]), headers, body


def eventually(what: Callable[[], bool]) -> None:
    """What ends after the response may end a little after curl has it."""
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


ANA = ("--header", "X-User: ana")


def settled(meter: Meter) -> bool:
    return not any(level.open_holds for level in meter.usage("ana").levels)


def test_limits_and_refusals(url: str) -> None:
    for left in (2, 1, 0):
        status, headers, _ = curl(f"{url}/chat", *ANA)
        assert status == 200
        assert headers["ratelimit-policy"] == '"messages";q=3'
        assert headers["ratelimit"].startswith(f'"messages";r={left};t=')
        assert headers["x-usage-remaining"] == str(left)
    status, headers, body = curl(f"{url}/chat", *ANA)
    assert status == 402
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["violated-policies"] == ["messages"]
    assert int(headers["retry-after"]) > 0
    status, headers, body = curl(f"{url}/key", "--header", "Authorization: Bearer mk_no")
    assert status == 401
    assert headers["www-authenticate"].startswith("Bearer ")
    assert "mk_no" not in body


def test_errors_tell_of_limits(url: str) -> None:
    status, headers, _ = curl(f"{url}/boom", *ANA)
    assert status == 500
    assert headers["ratelimit"].startswith('"messages";r=2;t=')
    status, headers, _ = curl(f"{url}/down", *ANA)
    assert (status, headers["retry-after"]) == (503, "1")


def test_addresses(url: str) -> None:
    forwarded = "X-Forwarded-For: 1.1.1.1, 198.51.100.1"
    assert curl(f"{url}/who", "--header", forwarded)[2].strip('"') == "ip:198.51.100.1"
    assert curl(f"{url}/who")[2].strip('"') == "ip:127.0.0.1"


def test_a_stream(url: str, meter: Meter) -> None:
    status, headers, body = curl(f"{url}/stream", *ANA)
    assert status == 200
    assert headers["ratelimit"].startswith('"tokens";r=90;')
    assert body == "piece 0\npiece 1\npiece 2\n"
    eventually(lambda: settled(meter))
    assert meter.usage("ana")["tokens"].used == 6


@pytest.mark.parametrize(("path", "charged"), [("/hold", 10), ("/hold-boom", 0)])
def test_holds(url: str, meter: Meter, path: str, charged: int) -> None:
    curl(f"{url}{path}", *ANA)
    eventually(lambda: settled(meter))
    assert meter.usage("ana")["tokens"].used == charged


def test_a_client_that_hangs_up(url: str, meter: Meter) -> None:
    """What was counted so far is charged, and nothing is held any more."""
    assert CURL is not None
    command = [CURL, "--silent", "--no-buffer", "--noproxy", "*", *ANA, f"{url}/stream-endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"piece 0\n"
        assert not settled(meter)
        client.kill()
    eventually(lambda: settled(meter))
    assert meter.usage("ana")["tokens"].used > 0
