"""What the calls about API keys return: a key, and what became of verifying a secret. Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from meterd.keys import Subject
from meterd.result import Decision, LimitState, instant, tightest


class KeyCode(StrEnum):
    """What became of a verification; the first that applies."""

    NOT_FOUND = "NOT_FOUND"
    DISABLED = "DISABLED"
    EXPIRED = "EXPIRED"
    NO_PLAN = "NO_PLAN"
    NOT_INCLUDED = "NOT_INCLUDED"
    USAGE_EXCEEDED = "USAGE_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"
    VALID = "VALID"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key. `secret` is there only where it was just made, by `create` or `rotate`.

    `subject`: whom it charges, a level below `owner`. `join`: the plan that the owner's root joins.
    `prefix`: what its secrets begin with. `imported`: it was made from the SHA-256 of a secret.
    `expires_ms`, `created_ms`, `overlap_ms` (until when the secret before the last rotation is
    good as well): epoch ms; None: never, or there is none.
    """

    id: str
    subject: Subject
    owner: Subject
    name: str | None
    meta: Mapping[str, Any] = field(hash=False)
    enabled: bool
    expires_ms: int | None
    created_ms: int
    overlap_ms: int | None = None
    join: str | None = None
    prefix: str = "mk"
    imported: bool = False
    secret: str | None = field(default=None, repr=False, compare=False)

    @property
    def expires(self) -> datetime | None:
        """`expires_ms` as an aware UTC datetime."""
        return None if self.expires_ms is None else instant(self.expires_ms)

    @property
    def created(self) -> datetime:
        """`created_ms` as an aware UTC datetime."""
        return instant(self.created_ms)

    @property
    def overlap(self) -> datetime | None:
        """`overlap_ms` as an aware UTC datetime."""
        return None if self.overlap_ms is None else instant(self.overlap_ms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, without the secret."""
        expires, overlap = self.expires, self.overlap
        return {
            "id": self.id,
            "subject": self.subject,
            "owner": self.owner,
            "name": self.name,
            "meta": dict(self.meta),
            "enabled": self.enabled,
            "expires": expires.isoformat() if expires else None,
            "created": self.created.isoformat(),
            "overlap": overlap.isoformat() if overlap else None,
            "join": self.join,
            "prefix": self.prefix,
            "imported": self.imported,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of verifying a secret. True if the key is good and everything was charged.

    `decision`: the charge, None where it did not come to that (`NOT_FOUND`, `DISABLED`, `EXPIRED`).
    Of a secret that is not found nothing else is known; else `key_id`, `subject`, `owner`, `name`
    and `meta` are the key's.
    """

    code: KeyCode
    key_id: str | None = None
    subject: Subject | None = None
    owner: Subject | None = None
    name: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    decision: Decision | None = None

    @property
    def valid(self) -> bool:
        """Whether the code is `VALID`."""
        return self.code is KeyCode.VALID

    def __bool__(self) -> bool:
        return self.code is KeyCode.VALID

    @property
    def credits(self) -> int | None:
        """What is left of the pool `credits` where it is tightest, overage not counted.

        None: unlimited, or this call did not reach it.
        """
        if self.decision is None:
            return None
        pools = tuple([state for state in self.decision.limits if state.kind == "pool"])
        try:
            return tightest(pools, "credits").remaining
        except KeyError:
            return None

    @property
    def ratelimits(self) -> dict[str, LimitState]:
        """The buckets that this call reached, by name; of equal-named ones the tightest."""
        limits = self.decision.limits if self.decision is not None else ()
        buckets = tuple([state for state in limits if state.kind == "bucket"])
        return {state.name: tightest(buckets, state.name) for state in buckets}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "valid": self.valid,
            "code": str(self.code),
            "credits": self.credits,
            "ratelimits": {name: state.as_dict() for name, state in self.ratelimits.items()},
            "key_id": self.key_id,
            "subject": self.subject,
            "owner": self.owner,
            "name": self.name,
            "meta": dict(self.meta),
            "decision": None if self.decision is None else self.decision.as_dict(),
        }
