"""What a refused request is answered: status, problem+json (RFC 9457), header fields.

Every status and every word that a client may read lives here. Bodies name limits and figures, never
subjects, secrets or servers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from meterd.errors import MeterdError, OutcomeUnknown, PolicyError, Refused, Unavailable
from meterd.http.fields import retry_after_seconds
from meterd.result import Decision, LimitState
from meterd.timespec import shown

CONTENT_TYPE = "application/problem+json"
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REALM = "api"

STATUSES: Mapping[str, int] = {
    "USAGE_EXCEEDED": 402,
    "RATE_LIMITED": 429,
    "NOT_INCLUDED": 403,
    "NO_PLAN": 403,
    "NO_KEY": 401,  # none was sent
    "NOT_FOUND": 401,
    "DISABLED": 401,
    "EXPIRED": 401,
    "UNAVAILABLE": 503,
    "OUTCOME_UNKNOWN": 503,
}
_DETAILS = {
    "NOT_INCLUDED": "Your plan does not include this.",
    "NO_PLAN": "You have no plan that would allow this.",
    "NO_KEY": "This needs an API key.",
    "NOT_FOUND": "The API key is not known.",
    "DISABLED": "The API key is disabled.",
    "EXPIRED": "The API key has expired.",
    "UNAVAILABLE": "Your limits cannot be checked right now.",
    "OUTCOME_UNKNOWN": "Your limits could not be checked; this request may have been counted.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to send instead of the application's: `status`, `headers`, `body` (JSON)."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The body, decoded."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def checked_statuses(statuses: Mapping[Any, int] | None) -> dict[str, int]:
    """The status of every code, with what was given in its place; raises `PolicyError`."""
    found = dict(STATUSES)
    for code, status in (statuses or {}).items():
        if str(code) not in STATUSES:
            allowed = ", ".join(STATUSES)
            raise PolicyError(f"statuses: {shown(code)} is no code; allowed: {allowed}")
        if type(status) is not int or not 400 <= status <= 599:
            raise PolicyError(f"statuses: {shown(status)} for {code}; allowed: 400 to 599")
        found[str(code)] = status
    return found


def answer(
    outcome: Decision | MeterdError | str, statuses: Mapping[Any, int] | None = None
) -> Answer:
    """The response for a refusing decision, a `Refused`, `Unavailable`, `OutcomeUnknown` or a code.

    Any other error is raised: it is the application's mistake or ours, not the client's.
    """
    return answer_by(outcome, checked_statuses(statuses))


def answer_by(outcome: Decision | MeterdError | str, statuses: Mapping[str, int]) -> Answer:
    """`answer`, by statuses that were checked."""
    if isinstance(outcome, Refused):
        outcome = outcome.decision
    if isinstance(outcome, Decision):
        return _of_decision(outcome, statuses)
    if isinstance(outcome, Unavailable):
        return _made("UNAVAILABLE", statuses, retry_after=1)
    if isinstance(outcome, OutcomeUnknown):
        return _made("OUTCOME_UNKNOWN", statuses)
    if isinstance(outcome, MeterdError):
        raise outcome
    return _made(str(outcome), statuses)


def _of_decision(decision: Decision, statuses: Mapping[str, int]) -> Answer:
    code = str(decision.code)
    if not decision.refused:
        return _made(code, statuses, retry_after=decision.retry_after)
    names = list(dict.fromkeys(state.name for state in decision.refused))
    return _made(
        code,
        statuses,
        retry_after=decision.retry_after,
        detail=" ".join(dict.fromkeys(_sentence(state) for state in decision.refused)),
        quota={
            "violated-policies": names,
            "violated": [_violated(state) for state in decision.refused],
        },
    )


def _sentence(state: LimitState) -> str:
    text = f"{state.name}: {state.used} of {state.limit} used"
    at = state.resets_at
    if at is not None and state.kind == "pool":
        text += f", resets at {at.isoformat()}"
    return text + "."


def _violated(state: LimitState) -> dict[str, Any]:
    told = ("name", "kind", "limit", "used", "remaining", "resets_at", "retry_after")
    values = state.as_dict()
    return {name: values[name] for name in told}


def _made(
    code: str,
    statuses: Mapping[str, int],
    *,
    retry_after: float | None = None,
    detail: str | None = None,
    quota: Mapping[str, Any] | None = None,
) -> Answer:
    status = statuses.get(code, 403)
    body: dict[str, Any] = {
        "type": "about:blank" if quota is None else QUOTA_EXCEEDED,
        "title": _phrase(status) if quota is None else "Quota exceeded",
        "status": status,
        "detail": detail or _DETAILS.get(code, "The request was refused."),
        "code": code,
    }
    headers = [("Content-Type", CONTENT_TYPE)]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", _challenge(code)))
    if quota is not None:
        body |= quota
    seconds = retry_after_seconds(retry_after)
    if seconds is not None:
        body["retry_after"] = retry_after
        headers.append(("Retry-After", str(seconds)))
    raw = json.dumps(body).encode()
    headers.append(("Content-Length", str(len(raw))))
    return Answer(status, tuple(headers), raw)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def _challenge(code: str) -> str:
    """RFC 6750: no error where nothing was sent, `invalid_token` where it was no use."""
    told = _DETAILS.get(code, "").rstrip(".")
    known = f', error="invalid_token", error_description="{told}"'
    return f'Bearer realm="{REALM}"' + ("" if code == "NO_KEY" else known)
