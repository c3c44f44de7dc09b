"""What refusals are answered: status, header fields, body; nothing that a client must not know."""

from __future__ import annotations

from typing import Any

import pytest

from meterd import Code, Decision, OutcomeUnknown, PolicyError, ScriptError, Unavailable
from meterd.http import answer
from meterd.http.problem import STATUSES
from meterd.result import LimitState

SECRET = "redis://user:hunter2@10.1.2.3"


def state(name: str, kind: str, *, allowed: bool, retry_after: float | None = None) -> LimitState:
    return LimitState(
        "acme/zoe", name, kind, 100, 100, 0, 0, 0, allowed, 1_738_368_000_000, retry_after
    )


def refusal(code: Code, *states: LimitState) -> Decision:
    return Decision(False, code, 0, states)


EXCEEDED = refusal(
    Code.USAGE_EXCEEDED,
    state("messages", "pool", allowed=False, retry_after=86_400.5),
    state("requests", "bucket", allowed=True),
)
LIMITED = refusal(Code.RATE_LIMITED, state("requests", "bucket", allowed=False, retry_after=0.001))
NEVER = refusal(Code.USAGE_EXCEEDED, state("messages", "pool", allowed=False))


@pytest.mark.parametrize(
    ("outcome", "status", "code", "retry_after"),
    [
        (EXCEEDED, 402, "USAGE_EXCEEDED", "86401"),
        (NEVER, 402, "USAGE_EXCEEDED", None),
        (LIMITED, 429, "RATE_LIMITED", "1"),
        (refusal(Code.NOT_INCLUDED), 403, "NOT_INCLUDED", None),
        (refusal(Code.NO_PLAN), 403, "NO_PLAN", None),
        ("NO_KEY", 401, "NO_KEY", None),
        ("NOT_FOUND", 401, "NOT_FOUND", None),
        ("DISABLED", 401, "DISABLED", None),
        ("EXPIRED", 401, "EXPIRED", None),
        (Unavailable(SECRET), 503, "UNAVAILABLE", "1"),
        (OutcomeUnknown(SECRET), 503, "OUTCOME_UNKNOWN", None),
    ],
)
def test_statuses(outcome: Any, status: int, code: str, retry_after: str | None) -> None:
    made = answer(outcome)
    headers = dict(made.headers)
    assert len(headers) == len(made.headers)
    assert made.status == status
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Content-Length"] == str(len(made.body))
    assert headers.get("Retry-After") == retry_after
    assert ("WWW-Authenticate" in headers) == (status == 401)
    problem = made.problem()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["title"]
    assert problem["detail"]
    assert ("retry_after" in problem) == (retry_after is not None)


def test_the_body_names_the_violated_limits() -> None:
    problem = answer(EXCEEDED).problem()
    assert problem == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "status": 402,
        "detail": "messages: 100 of 100 used, resets at 2025-02-01T00:00:00+00:00.",
        "code": "USAGE_EXCEEDED",
        "violated-policies": ["messages"],
        "violated": [
            {
                "name": "messages",
                "kind": "pool",
                "limit": 100,
                "used": 100,
                "remaining": 0,
                "resets_at": "2025-02-01T00:00:00+00:00",
                "retry_after": 86_400.5,
            }
        ],
        "retry_after": 86_400.5,
    }
    assert answer("NO_KEY").problem()["type"] == "about:blank"
    assert answer("NO_KEY").problem()["title"] == "Unauthorized"


def test_a_limit_of_two_levels_is_named_once() -> None:
    twice = refusal(
        Code.RATE_LIMITED,
        state("requests", "bucket", allowed=False, retry_after=1.0),
        state("requests", "bucket", allowed=False, retry_after=2.0),
    )
    problem = answer(twice).problem()
    assert problem["violated-policies"] == ["requests"]
    assert len(problem["violated"]) == 2


def test_errors_that_are_raised_by_name() -> None:
    with pytest.raises(Exception, match="messages") as caught:
        EXCEEDED.raise_if_refused()
    assert answer(caught.value) == answer(EXCEEDED)  # type: ignore[arg-type]


def test_nothing_inside_is_told() -> None:
    for outcome in (EXCEEDED, Unavailable(SECRET), OutcomeUnknown(SECRET, "op-1")):
        text = answer(outcome).body.decode() + repr(answer(outcome).headers)
        assert not any(word in text for word in ("hunter2", "redis:", "acme", "zoe", "op-1"))


@pytest.mark.parametrize("error", [PolicyError("bad"), ScriptError("ours")])
def test_mistakes_are_nobodys_refusals(error: Any) -> None:
    with pytest.raises(type(error)):
        answer(error)


def test_statuses_can_be_changed() -> None:
    assert answer(EXCEEDED, {Code.USAGE_EXCEEDED: 403}).status == 403
    assert answer(EXCEEDED, {"USAGE_EXCEEDED": 429}).problem()["status"] == 429
    hidden = answer("DISABLED", {"DISABLED": 404})
    assert hidden.status == 404
    assert "WWW-Authenticate" not in dict(hidden.headers)
    assert answer("NO_KEY", {"NO_KEY": 599}).problem()["title"] == "Refused"


@pytest.mark.parametrize(
    "bad", [{"NOPE": 403}, {Code.OK: 403}, {Code.NO_PLAN: 200}, {Code.NO_PLAN: "403"},
            {Code.NO_PLAN: True}, {Code.NO_PLAN: 600}],
)  # fmt: skip
def test_wrong_statuses(bad: Any) -> None:
    with pytest.raises(PolicyError, match="statuses"):
        answer(EXCEEDED, bad)


@pytest.mark.parametrize("code", [code for code, status in STATUSES.items() if status == 401])
def test_challenges(code: str) -> None:
    challenge = dict(answer(code).headers)["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="api"')
    assert ('error="invalid_token"' in challenge) == (code != "NO_KEY")


def test_every_refusing_code_has_a_status() -> None:
    assert {str(code) for code in Code if code is not Code.OK} <= set(STATUSES)
