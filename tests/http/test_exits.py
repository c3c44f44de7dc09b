"""How a request may end, at the level of ASGI and WSGI, and what becomes of what it holds."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meterd import AsyncMeter, Meter, Plan, Pool
from meterd.http import asgi, wsgi
from meterd.testing import async_fake, fake

PLAN = Plan("free", default=True, includes=[Pool("tokens", 100)])
HELD: dict[str, Any] = {"costs": "tokens", "amount": 10, "subject": "acme", "hold": True}
START = {"type": "http.response.start", "status": 200, "headers": []}


def part(text: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


async def left(meter: Meter | AsyncMeter) -> int | None:
    usage: Any = meter.usage("acme")
    if isinstance(meter, AsyncMeter):
        usage = await usage
    assert sum(level.open_holds for level in usage.levels) == 0
    found: int | None = usage["tokens"].remaining
    return found


@pytest.fixture(params=["sync", "async"])
def make_meter(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    made: list[Any] = []

    def make() -> Any:
        made.append((fake if request.param == "sync" else async_fake)([PLAN]))
        return made[-1]

    yield make
    for one in made:
        getattr(one, "abandon", one.close)()


async def call(app: Any, receive: Any = None, send: Any = None) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def nothing_more() -> Any:
        await asyncio.sleep(3600)

    async def collect(message: dict[str, Any]) -> None:
        sent.append(message)
        if send is not None:
            await send(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    await app(scope, receive or nothing_more, collect)
    return sent


def permit_of(scope: Any) -> Any:
    return scope["state"]["meterd"]


def test_committed_after_the_last_byte(make_meter: Callable[[], Any]) -> None:
    async def main() -> None:
        meter = make_meter()
        seen: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(part(b"a"))
            permit_of(scope).spend("tokens", 3)
            await send(part(b"", more=False))

        async def watching(message: Any) -> None:
            usage = meter.usage("acme")
            seen.append((await usage if isinstance(meter, AsyncMeter) else usage)["tokens"].used)

        await call(asgi.MeterMiddleware(app, meter, **HELD), send=watching)
        assert seen == [10, 10, 10]
        assert await left(meter) == 97

    asyncio.run(main())


@pytest.mark.parametrize("counted", [0, 3])
def test_a_cancelled_request(make_meter: Callable[[], Any], counted: int) -> None:
    async def main() -> None:
        meter = make_meter()
        reached = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            if counted:
                permit_of(scope).spend("tokens", counted)
            reached.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(call(asgi.MeterMiddleware(app, meter, **HELD)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await left(meter) == 100 - counted

    asyncio.run(main())


@pytest.mark.parametrize("counted", [0, 3])
def test_a_client_that_went_away(make_meter: Callable[[], Any], counted: int) -> None:
    """Some servers go on taking what nobody receives; what the application read then counts."""

    async def main() -> None:
        meter = make_meter()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if counted:
                permit_of(scope).spend("tokens", counted)
            assert (await receive())["type"] == "http.disconnect"
            await send(START)
            await send(part(b"", more=False))

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        await call(asgi.MeterMiddleware(app, meter, **HELD), receive=gone)
        assert await left(meter) == 100 - counted

    asyncio.run(main())


def test_a_server_that_refuses_to_send(make_meter: Callable[[], Any]) -> None:
    async def main() -> None:
        meter = make_meter()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(part(b"", more=False))

        async def broken(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await call(asgi.MeterMiddleware(app, meter, **HELD), send=broken)
        assert await left(meter) == 100

    asyncio.run(main())


def test_work_after_the_response_may_count_and_may_fail(make_meter: Callable[[], Any]) -> None:
    async def main() -> None:
        meter = make_meter()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(part(b"", more=False))
            permit_of(scope).spend("tokens", 1)
            raise RuntimeError("background")

        with pytest.raises(RuntimeError, match="background"):
            await call(asgi.MeterMiddleware(app, meter, **HELD))
        assert await left(meter) == 99

    asyncio.run(main())


def test_a_handler_may_settle_by_itself(make_meter: Callable[[], Any]) -> None:
    async def main() -> None:
        meter = make_meter()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            done = permit_of(scope).hold.commit(7)
            if isinstance(meter, AsyncMeter):
                await done
            await send({**START, "status": 500})
            await send(part(b"", more=False))

        await call(asgi.MeterMiddleware(app, meter, **HELD))
        assert await left(meter) == 93

    asyncio.run(main())


@pytest.mark.parametrize("counted", [0, 4])
def test_an_application_that_raises(make_meter: Callable[[], Any], counted: int) -> None:
    async def main() -> None:
        meter = make_meter()
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            permit_of(scope).spend("tokens", counted)
            raise RuntimeError("boom")

        async def keep(message: Any) -> None:
            sent.append(message)

        with pytest.raises(RuntimeError, match="boom"):
            await call(asgi.MeterMiddleware(app, meter, **HELD), send=keep)
        assert [message["type"] for message in sent] == [START["type"], "http.response.body"]
        assert sent[0]["status"] == 500
        assert dict(sent[0]["headers"])[b"ratelimit"] == b'"tokens";r=90'
        assert await left(meter) == 100 - counted

    asyncio.run(main())


def test_an_application_that_raises_in_its_response(make_meter: Callable[[], Any]) -> None:
    async def main() -> None:
        meter = make_meter()
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            raise RuntimeError("boom")

        async def keep(message: Any) -> None:
            sent.append(message)

        with pytest.raises(RuntimeError, match="boom"):
            await call(asgi.MeterMiddleware(app, meter, **HELD), send=keep)
        assert [message.get("status") for message in sent] == [200]
        assert await left(meter) == 100

    asyncio.run(main())


def test_an_application_that_raises_and_a_client_that_is_gone(
    make_meter: Callable[[], Any],
) -> None:
    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("boom")

        async def gone(message: Any) -> None:
            raise OSError("gone")

        with pytest.raises(RuntimeError, match="boom"):
            await call(asgi.MeterMiddleware(app, make_meter(), **HELD), send=gone)

    asyncio.run(main())


def test_other_protocols_pass_through() -> None:
    async def main() -> None:
        meter = async_fake([PLAN], down=True)
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])

        wrapped = asgi.MeterMiddleware(app, meter, "tokens", subject="acme")
        for kind in ("websocket", "lifespan"):
            await wrapped({"type": kind}, None, None)  # type: ignore[arg-type]
        assert seen == ["websocket", "lifespan"]
        await meter.close()

    asyncio.run(main())


# WSGI --------------------------------------------------------------------------------------------


class Parts:
    def __init__(self, *parts: bytes) -> None:
        self.parts = iter(parts)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.parts)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("status", "reads", "counted", "charged"),
    [
        ("200 OK", 3, 0, 10),
        ("200 OK", 3, 4, 4),
        ("200 OK", 1, 0, 0),  # the server closes it: the client is gone
        ("200 OK", 1, 4, 4),
        ("404 Not Found", 3, 0, 0),
    ],
)
def test_a_wsgi_response(status: str, reads: int, counted: int, charged: int) -> None:
    with fake([PLAN]) as meter:
        body = Parts(b"a", b"b")

        def app(environ: Any, start_response: Any) -> Any:
            start_response(status, [])
            if counted:
                environ["meterd"].spend("tokens", counted)
            return body

        wrapped = wsgi.MeterMiddleware(app, meter, **HELD)
        response: Any = wrapped({"REQUEST_METHOD": "GET"}, lambda *_: None)
        for _ in range(reads):
            next(response, None)
        assert meter.usage("acme")["tokens"].used == 10  # it is not sent yet
        response.close()
        response.close()
        assert body.closed == 2
        assert meter.usage("acme")["tokens"].used == charged


def test_a_wsgi_application_that_raises() -> None:
    with fake([PLAN]) as meter:

        def app(environ: Any, start_response: Any) -> Any:
            raise RuntimeError("boom")

        said: list[Any] = []
        log = io.StringIO()
        wrapped = wsgi.MeterMiddleware(app, meter, **HELD)
        body = wrapped({"wsgi.errors": log}, lambda *given: said.append(given))
        assert list(body) == [b"Internal Server Error"]
        ((line, headers, error),) = said
        assert line == "500 Internal Server Error"
        assert {"RateLimit", "RateLimit-Policy"} <= dict(headers).keys()
        assert error[0] is RuntimeError
        assert "boom" in log.getvalue()
        assert meter.usage("acme")["tokens"].used == 0


def test_a_wsgi_application_that_raises_after_it_has_responded() -> None:
    """That is for the server, which alone knows whether anything was sent."""
    with fake([PLAN]) as meter:

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            wsgi.MeterMiddleware(app, meter, **HELD)({}, lambda *_: None)
        assert meter.usage("acme")["tokens"].used == 0


def test_without_a_hold_the_body_stays_what_it_was() -> None:
    with fake([PLAN]) as meter:
        body = [b"a"]
        wrapped = wsgi.MeterMiddleware(lambda *_: body, meter, "tokens", subject="acme")
        assert wrapped({}, lambda *_: None) is body
