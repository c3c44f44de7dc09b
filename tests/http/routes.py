"""One set of routes that every adapter serves, and what each handler does, said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from meterd import Bucket, Code, Plan, Pool, Slots

PLANS = [
    Plan(
        "free",
        default=True,
        includes=[
            Pool("messages", 3, "month"),
            Pool("credits", 5, "30d"),
            Pool("tokens", 100, "day"),
            Bucket("requests", 2, "1m", algorithm="fixed", rates={"requests": 1, "ip": 1}),
            Slots("jobs", 1),
        ],
    )
]


def user(request: Any) -> str | None:
    """Who asks; functions get the framework's own request, or a `RequestView`."""
    headers = getattr(request, "headers", None)
    found: str | None = request.header("x-user") if headers is None else headers.get("x-user")
    return found


def costs_of(request: Any) -> dict[str, int] | None:
    path = getattr(request, "path", None) or request.url.path
    return {"messages": 2} if path == "/costs" else None


@dataclass
class Route:
    """`does`: what the handler does with its permit; see `body_of` and `stream_of`."""

    does: str = "ok"
    requires: dict[str, Any] = field(default_factory=dict)
    down: bool = False


def holding(does: str, **more: Any) -> Route:
    return Route(does, {"costs": "tokens", "amount": 10, "subject": user, "hold": True, **more})


ROUTES: dict[str, Route] = {
    "/chat": Route(requires={"costs": "messages", "subject": user}),
    "/hidden": Route(
        requires={"costs": "messages", "subject": user, "statuses": {Code.USAGE_EXCEEDED: 403}}
    ),
    "/limited": Route(requires={"costs": {"requests": 1, "messages": 1}, "subject": user}),
    "/costs": Route(requires={"costs": costs_of, "subject": user}),
    "/nothing": Route(requires={"costs": costs_of, "subject": user}),
    "/who": Route("who", {"costs": "ip"}),
    "/nowhere": Route(requires={"costs": "video", "subject": user}),
    "/boom": Route("boom", {"costs": "messages", "subject": user}),
    "/teapot": Route("teapot", {"costs": "messages", "subject": user}),
    "/down": Route(requires={"costs": "messages", "subject": user}, down=True),
    "/float": Route(requires={"costs": "messages", "amount": lambda request: 1.5, "subject": user}),
    "/hold": holding("ok"),
    "/hold-spend": holding("spend"),
    "/hold-boom": holding("boom"),
    "/hold-spend-boom": holding("spend-boom"),
    "/hold-teapot": holding("teapot"),
    "/hold-denied": holding("ok", amount=101),
    "/hold-job": holding("ok", costs={"jobs": 1, "tokens": 10}, amount=1),
    "/stream": holding("stream"),
    "/stream-breaks": holding("stream-breaks"),
    "/stream-endless": holding("stream-endless"),
    "/key": Route("who", {"key": True}),
    "/key-tokens": Route("who", {"key": "X-Token", "costs": "tokens", "amount": 40}),
    "/key-hold": Route(
        "spend",
        {
            "key": user,
            "costs": "tokens",
            "amount": lambda request: 10,
            "hold": True,
        },
    ),
    "/key-free": Route("who", {"key": True, "costs": {"credits": 0}}),
}
OWNERS = {"mk_acme": "acme", "mk_off": "DISABLED", "mk_old": "EXPIRED"}


class Boom(RuntimeError):
    """What a handler raises."""


def body_of(does: str, permit: Any) -> tuple[int, str]:
    """Status and text of a plain response."""
    if does == "boom":
        raise Boom
    if does == "spend-boom":
        permit.spend("tokens", 3)
        raise Boom
    if does == "spend":
        permit.spend("tokens", 3)
        permit.spend({"tokens": 1})
    if does == "teapot":
        return 418, "teapot"
    subject = permit.subject
    return 200, "/".join(subject) if isinstance(subject, tuple) else str(subject)


def stream_of(does: str, permit: Any) -> Any:
    """Pieces of a body, each counted when it is made."""
    for n in range(1_000_000 if does == "stream-endless" else 3):
        permit.spend("tokens", 2)
        yield f"piece {n}\n"
        if does == "stream-breaks" and n == 1:
            raise Boom
