"""Django.

    MIDDLEWARE = ["meterd.http.django.MeterMiddleware", ...]  # first: it sees every response

    @require(meter, "messages", subject=lambda request: request.user.get_username() or None)
    def chat(request): ...

The permit is `request.meterd`. The setting `METERD` may have `legacy` (True: the X-RateLimit-* and
X-Usage-Remaining fields as well) and `trusted_proxies` (networks whose word on the client's address
is believed).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from meterd.errors import PolicyError
from meterd.http.exchange import Config, Exchange, failed
from meterd.http.problem import Answer
from meterd.http.require import (
    AnyMeter,
    GivenAmount,
    GivenCosts,
    GivenKey,
    GivenSubject,
    Permit,
    Requirement,
    Statuses,
)
from meterd.http.view import RequestView
from meterd.http.wsgi import view_of

__all__ = ["Denied", "MeterMiddleware", "Permit", "require"]

View = TypeVar("View", bound=Callable[..., Any])
_running: set[asyncio.Task[None]] = set()


class Denied(Exception):
    """A refused request on its way to `MeterMiddleware`; `answer` is the response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.problem()["detail"])
        self.answer = answer


def require(
    meter: AnyMeter,
    costs: GivenCosts = None,
    amount: GivenAmount = 1,
    *,
    subject: GivenSubject = None,
    key: GivenKey = None,
    join: str | None = None,
    hold: bool = False,
    statuses: Statuses = None,
) -> Callable[[View], View]:
    """A decorator that charges `costs`, or with `hold=True` reserves them, before the view.

    Arguments as for `meterd.http.fastapi.require`; functions get the `HttpRequest`. For a class:
    `@method_decorator(require(...), name="dispatch")`. Functions may be async, and the meter an
    `AsyncMeter`, where the view is `async def`. Raises `PolicyError` without `MeterMiddleware`.
    """
    requirement = Requirement(
        meter, costs, amount, subject=subject, key=key, join=join, hold=hold, statuses=statuses
    )

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def limited_async(request: HttpRequest, *args: Any, **named: Any) -> Any:
                exchange, seen = exchange_of(request)
                permit = await exchange.admit_async(requirement, seen)
                request.meterd = permit
                if permit.refusal is not None:
                    return respond(permit.refusal)
                return await view(request, *args, **named)

            return limited_async  # type: ignore[return-value]
        requirement.refuse_async(f"the view {getattr(view, '__name__', view)!s}")

        @functools.wraps(view)
        def limited(request: HttpRequest, *args: Any, **named: Any) -> Any:
            exchange, seen = exchange_of(request)
            permit = request.meterd = exchange.admit(requirement, seen)
            if permit.refusal is not None:
                return respond(permit.refusal)
            return view(request, *args, **named)

        return limited  # type: ignore[return-value]

    return decorate


def exchange_of(request: HttpRequest, given: Any = None) -> tuple[Exchange, RequestView]:
    """What `MeterMiddleware` keeps for a request, and how the core sees it.

    `given`: what functions of the request get. Raises `PolicyError` without the middleware.
    """
    exchange: Exchange | None = getattr(request, "_meterd_exchange", None)
    if exchange is None:
        raise PolicyError(
            'require: "meterd.http.django.MeterMiddleware" is missing from MIDDLEWARE; put it first'
        )
    return exchange, view_of(request.META, given or request, exchange.config.trusted)


def respond(answer: Answer) -> HttpResponse:
    """A refusal as Django's response."""
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


class MeterMiddleware:
    """Tells of limits in every response, and ends holds after it. Sync and async."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.config = Config(**getattr(settings, "METERD", {}))
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self):
            return self._call_async(request, self.get_response)
        exchange = request._meterd_exchange = Exchange(self.config)
        try:
            response = self.get_response(request)
        except BaseException:
            exchange.end(failed=True)
            raise
        return self._finish(exchange, response)

    async def _call_async(
        self, request: HttpRequest, get_response: Callable[[HttpRequest], Awaitable[Any]]
    ) -> Any:
        exchange = request._meterd_exchange = Exchange(self.config)
        try:
            response = await get_response(request)
        except BaseException:  # a client that goes away cancels the view
            await exchange.end_async(failed=True)
            raise
        return self._finish(exchange, response)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The response to a view that was denied further inside."""
        return respond(error.answer) if isinstance(error, Denied) else None

    def _finish(self, exchange: Exchange, response: HttpResponseBase) -> HttpResponseBase:
        for name, value in exchange.fields():
            response[name] = value
        if exchange.holds:
            _end_on_close(exchange, response)
        return response


def _end_on_close(exchange: Exchange, response: Any) -> None:
    """The server closes the response when it was sent, or could not be."""
    complete = not response.streaming
    status: int = response.status_code

    def sent() -> None:
        nonlocal complete
        complete = True

    if response.streaming:
        parts = response.streaming_content
        noting = _noting_async if response.is_async else _noting
        response.streaming_content = noting(parts, sent)
    close = response.close

    def closing() -> None:
        try:
            close()
        finally:
            _end(exchange, failed(complete=complete, status=status))

    response.close = closing


def _end(exchange: Exchange, has_failed: bool) -> None:
    if not exchange.asynchronous:
        exchange.end(failed=has_failed)
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a thread of the event loop's: it waits for what runs there
        async_to_sync(exchange.end_async)(failed=has_failed)
    else:
        task = loop.create_task(exchange.end_async(failed=has_failed))
        _running.add(task)
        task.add_done_callback(_running.discard)


def _noting(parts: Iterable[bytes], sent: Callable[[], None]) -> Iterable[bytes]:
    yield from parts
    sent()


async def _noting_async(parts: AsyncIterator[bytes], sent: Callable[[], None]) -> Any:
    async for part in parts:
        yield part
    sent()
