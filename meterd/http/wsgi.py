"""Plain WSGI: a middleware that needs no framework.

    app = MeterMiddleware(app, meter, "requests", subject=lambda request: ...)

It charges every request before the application sees it, tells of the limits in every response, and
ends what it holds when the server closes the response. An application that raises is answered with
a plain 500 that tells of them, too; the traceback goes to the server's `wsgi.errors`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from meterd.http.exchange import Config, Exchange, failed
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

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_BARE = ("CONTENT_TYPE", "CONTENT_LENGTH")


class MeterMiddleware:
    """Charges requests, and tells of limits in every response.

    Arguments as for `meterd.http.asgi.MeterMiddleware`, but for the meter, which has to be a
    `Meter`. The permit is `environ["meterd"]`.
    """

    def __init__(
        self,
        app: App,
        meter: AnyMeter,
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
        self._requirement = Requirement(
            meter, costs, amount, subject=subject, key=key, join=join, hold=hold, statuses=statuses
        )
        self._requirement.refuse_async("WSGI")

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        exchange = Exchange(self.config)
        view = view_of(environ, environ, self.config.trusted, plain=True)
        permit = environ["meterd"] = exchange.admit(self._requirement, view)
        if permit.refusal is not None:
            refusal = permit.refusal
            phrase = HTTPStatus(refusal.status).phrase
            headers = [*refusal.headers, *exchange.fields()]
            start_response(f"{refusal.status} {phrase}", headers)
            return [refusal.body]
        status: int | None = None

        def start(line: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            nonlocal status
            status = int(line[:3])
            return start_response(line, [*headers, *exchange.fields()], *error)

        try:
            body = self.app(environ, start)
        except BaseException as error:
            exchange.end(failed=True)
            if status is not None or not isinstance(error, Exception):
                raise
            # The server's own answer would not tell of the limits. It logs what stands here.
            traceback.print_exc(file=environ.get("wsgi.errors"))
            plain = [("Content-Type", "text/plain; charset=utf-8")]
            start("500 Internal Server Error", plain, sys.exc_info())
            return [b"Internal Server Error"]
        if not exchange.holds:
            return body
        return Body(
            body,
            lambda complete: exchange.end(failed=failed(complete=complete, status=status or 500)),
        )


class Body:
    """A response's body; `end(complete)` is called once, when the server closes it."""

    def __init__(self, body: Iterable[bytes], end: Callable[[bool], None]) -> None:
        self._body = body
        self._parts: Iterator[bytes] | None = None
        self._end: Callable[[bool], None] | None = end
        self._complete = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._parts is None:
            self._parts = iter(self._body)
        try:
            return next(self._parts)
        except StopIteration:
            self._complete = True
            raise

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            end, self._end = self._end, None
            if end is not None:
                end(self._complete)


def view_of(
    environ: Environ, native: Any, trusted: tuple[Network, ...], *, plain: bool = False
) -> RequestView:
    """An environ as the core sees it."""

    def header(name: str) -> str | None:
        key = name.upper().replace("-", "_")
        found: str | None = environ.get(key if key in _BARE else f"HTTP_{key}")
        return found

    return RequestView(
        environ.get("REQUEST_METHOD", "GET"),
        environ.get("PATH_INFO", ""),
        environ.get("REMOTE_ADDR") or None,
        header,
        native,
        trusted,
        plain,
    )
