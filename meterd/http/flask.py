"""Flask.

    @app.post("/chat")
    @require(meter, "messages", subject=lambda request: request.headers["X-User"])
    def chat(): ...

The permit is `g.meterd`. `app.config` may have `METERD_LEGACY` (True: the X-RateLimit-* and
X-Usage-Remaining fields as well) and `METERD_TRUSTED_PROXIES` (networks whose word on the client's
address is believed).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Response, after_this_request, current_app, g, request

from meterd.http.exchange import Config, Exchange, failed
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
from meterd.http.wsgi import Body, view_of

__all__ = ["Permit", "require"]

View = TypeVar("View", bound=Callable[..., Any])


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

    Stands below the route. Arguments as for `meterd.http.fastapi.require`; functions get Flask's
    request. The meter has to be a `Meter`. What is held ends when the server closes the response.
    """
    requirement = Requirement(
        meter, costs, amount, subject=subject, key=key, join=join, hold=hold, statuses=statuses
    )
    requirement.refuse_async("Flask")

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def limited(*args: Any, **named: Any) -> Any:
            exchange = _exchange()
            native = request._get_current_object()  # type: ignore[attr-defined]
            seen = view_of(request.environ, native, exchange.config.trusted)
            permit = g.meterd = exchange.admit(requirement, seen)
            if permit.refusal is not None:
                answer = permit.refusal
                return Response(answer.body, answer.status, dict(answer.headers))
            try:
                return current_app.ensure_sync(view)(*args, **named)
            except BaseException:
                exchange.end(failed=True)
                raise

        return limited  # type: ignore[return-value]

    return decorate


def _exchange() -> Exchange:
    """The request's; the first time, its response is seen to as well."""
    found: Exchange | None = g.get("_meterd_exchange")
    if found is None:
        settings = current_app.config
        found = g._meterd_exchange = Exchange(
            Config(
                legacy=bool(settings.get("METERD_LEGACY", False)),
                trusted_proxies=settings.get("METERD_TRUSTED_PROXIES", ()),
            )
        )
        after_this_request(functools.partial(_finish, found))
    return found


def _finish(exchange: Exchange, response: Response) -> Response:
    """Every response comes by here, those to unexpected errors included."""
    for name, value in exchange.fields():
        response.headers.add(name, value)
    if not exchange.holds:
        return response
    status = response.status_code
    if status < 400 and response.is_streamed and request.method != "HEAD":
        response.response = Body(
            response.response,  # type: ignore[arg-type]  # text or bytes, both pass through
            lambda complete: exchange.end(failed=failed(complete=complete, status=status)),
        )
        response.direct_passthrough = False
    else:
        response.call_on_close(lambda: exchange.end(failed=failed(complete=True, status=status)))
    return response
