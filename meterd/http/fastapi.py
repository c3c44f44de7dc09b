"""FastAPI and Starlette.

    app = FastAPI()
    install(app)

    @app.post("/chat")
    async def chat(permit: Annotated[Permit, Depends(require(meter, "messages"))]): ...

In Starlette, which has no `Depends`, what `require` returns is awaited with the request. Refusals
are raised, as `Denied`, which `install` turns into responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from meterd.errors import PolicyError
from meterd.http.asgi import EXCHANGE, MeterMiddleware, view_of
from meterd.http.exchange import Exchange
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

__all__ = ["Denied", "MeterMiddleware", "Permit", "install", "require"]


class Denied(HTTPException):
    """A refused request; `answer` is the response. An exception handler may make another of it."""

    def __init__(self, answer: Answer) -> None:
        problem = answer.problem()
        kept = ("retry-after", "www-authenticate")
        headers = {name: value for name, value in answer.headers if name.lower() in kept}
        super().__init__(answer.status, problem["detail"], headers)
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
) -> Callable[[Request], Awaitable[Permit]]:
    """A dependency that charges `costs`, or with `hold=True` reserves them, before the handler.

    `costs`, `amount`, `subject` and `key` are values or functions of the `Request`, plain or async.
    `subject`: who is charged; None means the client's address. `key`: True for the API key in
    `Authorization: Bearer` or `X-API-Key`, or another header's name; its owner is charged.
    `costs` that are None charge nothing, or with a key what its limits charge by themselves.
    `statuses`: codes to HTTP statuses, `{Code.USAGE_EXCEEDED: 403}`.

    Gives a `Permit`, which is `request.state.meterd` too. Raises `Denied`, and `PolicyError` where
    `install` was forgotten.
    """
    requirement = Requirement(
        meter, costs, amount, subject=subject, key=key, join=join, hold=hold, statuses=statuses
    )

    async def permitted(request: Request) -> Permit:
        exchange: Exchange | None = request.scope.get(EXCHANGE)
        if exchange is None:
            raise PolicyError(
                "require: meterd is not installed in this application; call "
                "meterd.http.fastapi.install(app) after making it"
            )
        view = view_of(request.scope, request, exchange.config.trusted)
        permit = await exchange.admit_async(requirement, view)
        request.state.meterd = permit
        if permit.refusal is not None:
            # A mounted application has handlers of its own, which `install` did not reach.
            handlers, _ = request.scope.get("starlette.exception_handlers", ({}, None))
            handlers.setdefault(Denied, _respond)
            raise Denied(permit.refusal)
        return permit

    return permitted


def install(
    app: Starlette, *, legacy: bool = False, trusted_proxies: Iterable[object] = ()
) -> None:
    """Puts the header fields on every response, and ends holds after it.

    `MeterMiddleware` is put around everything, the handler of unexpected errors included, which
    `app.add_middleware` cannot do. `legacy`, `trusted_proxies`: see `MeterMiddleware`. Call it
    once, before the first request. Mounted applications are covered by the outermost one.
    """
    if app.middleware_stack is not None:
        raise PolicyError("install: the application has already started")
    build = app.build_middleware_stack
    options = {"legacy": legacy, "trusted_proxies": tuple(trusted_proxies)}
    MeterMiddleware(app, **options)  # type: ignore[arg-type]  # a mistake in them is raised here

    def wrapped() -> Any:
        return MeterMiddleware(build(), **options)  # type: ignore[arg-type]

    app.build_middleware_stack = wrapped  # type: ignore[method-assign]
    app.add_exception_handler(Denied, _respond)


async def _respond(request: Request, denied: Exception) -> Response:
    assert isinstance(denied, Denied)
    answer = denied.answer
    return Response(answer.body, answer.status, dict(answer.headers))
