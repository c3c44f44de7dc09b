"""Pure ASGI: a middleware that needs no framework.

    app = MeterMiddleware(app, meter, "requests", subject=lambda request: ...)

It charges every HTTP request before the application sees it, tells of the limits in every response,
and ends what it holds when the response has been sent. Without a meter it only does the latter two,
for what `require` charges further inside. WebSockets and lifespan pass through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from meterd.http.exchange import Config, Exchange, failed
from meterd.http.problem import Answer
from meterd.http.require import (
    AnyMeter,
    GivenAmount,
    GivenCosts,
    GivenKey,
    GivenSubject,
    Requirement,
    Statuses,
)
from meterd.http.view import Network, RequestView

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE = "meterd.exchange"  # in the scope: the request's `Exchange`
_ERROR = Answer(
    500,
    (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "21")),
    b"Internal Server Error",
)
_LAST = ("http.response.body", "http.response.pathsend")


class MeterMiddleware:
    """Charges HTTP requests, and tells of limits in every response.

    `meter`, `costs`, `amount`, `subject`, `key`, `join`, `hold`, `statuses`: as for `require`;
    functions get a `RequestView`, and the request is free where `costs` returns None. `legacy`: the
    X-RateLimit-* and X-Usage-Remaining fields as well. `trusted_proxies`: networks whose word on
    the client's address is believed. The permit is `scope["state"]["meterd"]`.

    Where the application raises before it has responded, a plain 500 is sent, and the error goes on
    to the server's log; unless a Starlette application around this has a page of its own for that.
    """

    def __init__(
        self,
        app: App,
        meter: AnyMeter | None = None,
        costs: GivenCosts = None,
        amount: GivenAmount = 1,
        *,
        subject: GivenSubject = None,
        key: GivenKey = None,
        join: str | None = None,
        hold: bool = False,
        statuses: Statuses = None,
        legacy: bool = False,
        trusted_proxies: Iterable[object] = (),
    ) -> None:
        self.app = app
        self.config = Config(legacy=legacy, trusted_proxies=trusted_proxies)
        self._requirement: Requirement | None = None
        if meter is not None:
            self._requirement = Requirement(
                meter, costs, amount,
                subject=subject, key=key, join=join, hold=hold, statuses=statuses,
            )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange: Exchange | None = scope.get(EXCHANGE)
        if exchange is not None:  # inside another one, which tells and ends
            await self._charged(exchange, scope, receive, send)
            return
        exchange = scope[EXCHANGE] = Exchange(self.config)
        response = _Response(exchange, receive, send)
        try:
            await self._charged(exchange, scope, response.receive, response.send)
        except Exception:
            if not response.started and not _has_a_page(scope):
                with contextlib.suppress(Exception):  # the error says more than a lost client
                    await send_answer(_ERROR, response.send)
            raise
        finally:
            await exchange.end_async(
                failed=failed(complete=response.complete, status=response.status)
            )

    async def _charged(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if self._requirement is not None:
            trusted = self.config.trusted or exchange.config.trusted
            view = view_of(scope, scope, trusted, plain=True)
            permit = await exchange.admit_async(self._requirement, view)
            scope.setdefault("state", {})["meterd"] = permit
            if permit.refusal is not None:
                await send_answer(permit.refusal, send)
                return
        await self.app(scope, receive, send)


class _Response:
    """What goes by on its way to the client."""

    __slots__ = ("_exchange", "_gone", "_receive", "_send", "complete", "started", "status")

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._gone = False
        self.started = False
        self.complete = False
        self.status = 500

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            told = [(name.lower().encode(), v.encode()) for name, v in self._exchange.fields()]
            message = {**message, "headers": [*message.get("headers", ()), *told]}
        await self._send(message)
        if message["type"] in _LAST and not message.get("more_body", False) and not self._gone:
            self.complete = True


def _has_a_page(scope: Scope) -> bool:
    """Whether a Starlette application answers unexpected errors in its own way, further outside."""
    app = scope.get("app")
    handlers = getattr(app, "exception_handlers", ())
    return getattr(app, "debug", False) is True or 500 in handlers or Exception in handlers


def view_of(
    scope: Scope, native: Any, trusted: tuple[Network, ...], *, plain: bool = False
) -> RequestView:
    """A scope as the core sees it."""
    raw: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())

    def header(name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        found = [value.decode("latin-1") for key, value in raw if key.lower() == wanted]
        return ", ".join(found) if found else None

    peer = scope.get("client")
    return RequestView(
        scope["method"], scope["path"], peer[0] if peer else None, header, native, trusted, plain
    )


async def send_answer(answer: Answer, send: Send) -> None:
    """Sends a response in one go."""
    headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
