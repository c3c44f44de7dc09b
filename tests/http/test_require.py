"""What may be required, the mistakes that are told at once, and how windows are found."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from meterd import Bucket, Flag, Meter, Plan, PolicyError, Pool, Slots
from meterd.http import Permit, RequestView
from meterd.http.exchange import Config, Exchange
from meterd.http.require import Requirement
from meterd.http.steps import run, run_async
from meterd.http.windows import window_seconds
from meterd.testing import ManualClock, async_fake, fake


def view(headers: dict[str, str] | None = None, peer: str | None = "203.0.113.7") -> RequestView:
    return RequestView("GET", "/", peer, (headers or {}).get, plain=True)


@pytest.fixture
def local() -> Iterator[Meter]:
    plan = Plan("free", default=True, includes=[Pool("credits", 5), Bucket("requests", 2, "1m")])
    with fake([plan], clock=ManualClock()) as meter:
        yield meter


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"costs": "credits", "statuses": {"NOPE": 1}},
        {"costs": "credits", "key": True, "subject": "acme"},
        {"costs": "credits", "key": True, "join": "free"},
        {"costs": "credits", "key": ""},
        {"costs": "credits", "key": False},
        {"costs": "credits", "key": 5},
        {"key": True, "hold": True},
        {"costs": "credits", "hold": "5m"},
    ],
)
def test_mistakes_are_told_when_they_are_made(local: Meter, wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        Requirement(local, **wrong)


@pytest.mark.parametrize("wrong", [None, "redis://", object()])
def test_a_meter_is_a_meter(wrong: Any) -> None:
    with pytest.raises(PolicyError, match="no Meter"):
        Requirement(wrong, "credits")


@pytest.mark.parametrize(
    "wrong", [{"costs": "ip"}, {"key": True}, {"join": "free"}, {"hold": True}]
)
def test_a_limiter_takes_less(local: Meter, wrong: dict[str, Any]) -> None:
    limiter = local.limiter("login", Bucket("ip", 1, "1m"))
    with pytest.raises(PolicyError, match="limiter"):
        Requirement(limiter, **wrong)


def test_a_limiter(local: Meter) -> None:
    exchange = Exchange(Config())
    requirement = Requirement(local.limiter("login", Bucket("ip", 1, "1m")))
    assert exchange.admit(requirement, view())
    assert dict(exchange.fields())["RateLimit-Policy"] == '"ip";q=1;w=60'
    refused = exchange.admit(requirement, view())
    assert not refused
    assert refused.refusal is not None
    assert refused.refusal.status == 429
    assert Exchange(Config()).admit(requirement, view(peer="203.0.113.8"))


def test_what_cannot_be_awaited_is_told() -> None:
    with fake([Plan("free", default=True, includes=[Pool("credits", 5)])]) as meter:

        async def later(request: RequestView) -> str:
            return "acme"

        with pytest.raises(PolicyError, match="subject: asynchronous"):
            run(Requirement(meter, "credits", subject=later).admit(view()))


def test_a_synchronous_framework_wants_a_meter() -> None:
    from meterd.http import django, drf, flask, wsgi

    meter = async_fake([])
    for what in (flask.require, drf.throttle, lambda *args: wsgi.MeterMiddleware(Any, *args)):
        with pytest.raises(PolicyError, match="cannot await"):
            what(meter, "credits")  # type: ignore[operator]
    with pytest.raises(PolicyError, match="cannot await"):
        django.require(meter, "credits")(lambda request: None)
    meter.abandon()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_functions_of_the_request_may_be_async(asynchronous: bool) -> None:
    plan = Plan("free", default=True, includes=[Pool("credits", 5)])

    async def main() -> None:
        meter: Any = (async_fake if asynchronous else fake)([plan])

        async def later(given: Any) -> Any:
            await asyncio.sleep(0)
            return given

        exchange = Exchange(Config(legacy=True))
        requirement = Requirement(
            meter,
            lambda request: later("credits"),
            lambda request: later(2),
            subject=lambda request: later("acme"),
        )
        assert await exchange.admit_async(requirement, view())
        assert dict(exchange.fields())["X-Usage-Remaining"] == "3"
        if asynchronous:
            await meter.close()
        else:
            meter.close()

    asyncio.run(main())


def test_a_permit_without_a_hold_counts_nothing() -> None:
    with pytest.raises(PolicyError, match="hold=True"):
        Permit().spend("tokens")


def test_a_meter_in_a_thread_that_nobody_waits_for_gives_back() -> None:
    """Cancelled while a thread reserves: what it brings is released there."""
    plan = Plan("free", default=True, includes=[Pool("credits", 5)])
    reserving, go_on, given_back = threading.Event(), threading.Event(), threading.Event()
    with fake([plan]) as meter:
        reserve = meter.reserve

        def slowly(*args: Any, **named: Any) -> Any:
            reserving.set()
            go_on.wait(10)
            hold = reserve(*args, **named)
            release = hold.release
            hold.release = lambda: (release(), given_back.set())[0]  # type: ignore[method-assign]
            return hold

        meter.reserve = slowly  # type: ignore[method-assign]
        requirement = Requirement(meter, "credits", 3, subject="acme", hold=True)

        async def main() -> None:
            task = asyncio.create_task(run_async(requirement.admit(view())))
            while not reserving.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            while not given_back.is_set():
                await asyncio.sleep(0.001)

        asyncio.run(main())
        assert meter.usage("acme")["credits"].used == 0


def test_a_hold_that_cannot_be_ended_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan("free", default=True, includes=[Pool("credits", 5)])
    with fake([plan]) as meter:
        exchange = Exchange(Config())
        for _ in range(2):
            permit = exchange.admit(
                Requirement(meter, "credits", 2, subject="acme", hold=True), view()
            )
            permit.spend("credits")
        broken: Any = permit.hold

        def fails() -> None:
            broken._ended = "commit"
            raise RuntimeError("no")

        broken.commit = fails
        exchange.end(failed=False)
        exchange.end(failed=False)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert broken.id in caplog.text
        assert "{'credits': 1}" in caplog.text
        assert meter.usage("acme")["credits"].used == 1 + 2
    gc.collect()


def test_a_remote_client_of_a_trusted_proxy() -> None:
    plan = Plan("free", default=True, includes=[Bucket("requests", 1, "1m")])
    with fake([plan]) as meter:
        config = Config(trusted_proxies=["10.0.0.0/8"])
        requirement = Requirement(meter, "requests")
        headers = {"x-forwarded-for": "1.1.1.1, 198.51.100.1"}
        seen = RequestView("GET", "/", "10.0.0.1", headers.get, None, config.trusted, True)
        assert Exchange(config).admit(requirement, seen).subject == "ip:198.51.100.1"


# Windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (Bucket("b", 1, "1m"), 60),
        (Bucket("b", 1, "1500ms"), 2),
        (Bucket("b", 1, "1ms"), 1),
        (Pool("p", 1), None),
        (Pool("p", 1, "hour"), 3600),
        (Pool("p", 1, "day"), 86_400),
        (Pool("p", 1, "week"), 604_800),
        (Pool("p", 1, "month"), None),
        (Pool("p", 1, "quarter"), None),
        (Pool("p", 1, "year"), None),
        (Pool("p", 1, "30d"), 2_592_000),
    ],
)
def test_the_seconds_of_a_window(limit: Bucket | Pool, seconds: int | None) -> None:
    assert window_seconds(limit) == seconds


def policies(meter: Meter, subject: str, costs: Any) -> str | None:
    exchange = Exchange(Config())
    exchange.admit(Requirement(meter, costs, subject=subject), view())
    return dict(exchange.fields()).get("RateLimit-Policy")


def test_windows_come_from_the_catalog() -> None:
    free = Plan(
        "free",
        default=True,
        includes=[Bucket("api", 10, "1m"), Bucket("same", 10, "1m"), Slots("s", 1), Flag("f")],
    )
    pro = Plan("pro", includes=[Bucket("api", 100, "1h"), Bucket("same", 20, "1m")])
    more = Plan("more", group="more", includes=[Bucket("same", 5, "1m")])
    with fake([free, pro, more]) as meter:
        assert policies(meter, "acme", "api") == '"api";q=10;w=60'
        assert policies(meter, "acme", "f") is None
        meter.subscribe("acme", "pro")
        assert policies(meter, "acme", "api") == '"api";q=100;w=3600'
        meter.override("acme", "api", limit=50)  # an hour, but nobody here can know
        assert policies(meter, "acme", "api") == '"api";q=50'
        meter.subscribe("acme", "more")
        assert policies(meter, "acme", "same") == '"same";q=25;w=60'
        meter.subscribe("beta", limits=[Bucket("same", 7, "1d")])
        assert policies(meter, "beta", "same") == '"same";q=7'
        changed = Plan("pro", includes=[Bucket("api", 100, "2h"), Bucket("same", 20, "1m")])
        meter.override("acme", "api", clear=True)
        meter.apply([free, changed, more])
        assert policies(meter, "acme", "api") == '"api";q=100;w=7200'


# Imports -----------------------------------------------------------------------------------------

FRAMEWORKS = {"django", "fastapi", "flask", "rest_framework", "starlette", "werkzeug"}


@pytest.mark.parametrize(
    ("module", "brings"),
    [
        ("meterd.http", set()),
        ("meterd.http.asgi", set()),
        ("meterd.http.wsgi", set()),
        ("meterd.http.fastapi", {"starlette"}),
        ("meterd.http.flask", {"flask", "werkzeug"}),
        ("meterd.http.django", {"django"}),
        ("meterd.http.drf", {"django", "rest_framework"}),
    ],
)
def test_an_adapter_brings_its_framework_and_no_other(module: str, brings: set[str]) -> None:
    code = "import sys; "
    if "django" in brings:
        code += "from django.conf import settings; settings.configure(); "
    code += f"import {module}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in found.stdout.split()} & FRAMEWORKS == brings
