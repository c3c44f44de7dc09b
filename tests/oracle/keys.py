"""API keys: subjects below their owners, which are charged by whoever has the secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.oracle.decide import AUTO, ODecision
from tests.oracle.errors import PolicyError
from tests.oracle.limits import OLimit
from tests.oracle.model import Oracle
from tests.oracle.requests import Costs, Path, Subject, amounts_of, path_of

UNCHANGED: Any = object()


@dataclass(frozen=True)
class OKey:
    """An API key. `former` was its secret before `secret`, and is good until `overlap_ms`."""

    id: str
    owner: Path
    secret: str
    created_ms: int
    expires_ms: int | None = None
    name: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    join: str | None = None
    enabled: bool = True
    former: str | None = None
    overlap_ms: int | None = None

    @property
    def path(self) -> Path:
        return (*self.owner, self.id)


@dataclass
class OVerification:
    """`credits`, `ratelimits`: of the limits reached, the tightest of each name."""

    outcome: str
    key: OKey | None = None
    decision: ODecision | None = None

    @property
    def credits(self) -> int | None:
        found = self.tightest("pool").get("credits")
        return None if found is None else found.remaining

    @property
    def ratelimits(self) -> dict[str, OLimit]:
        return self.tightest("bucket")

    def tightest(self, kind: str) -> dict[str, OLimit]:
        found: dict[str, OLimit] = {}
        for limit in self.decision.limits if self.decision else ():
            if limit.kind == kind:
                other = found.get(limit.name, limit)
                found[limit.name] = limit if tighter(limit, other) else other
        return found


def tighter(one: OLimit, other: OLimit) -> bool:
    """One that refuses is; then the one with less left; of equals the first."""
    if one.allowed != other.allowed:
        return other.allowed
    return one.remaining is not None and (
        other.remaining is None or one.remaining < other.remaining
    )


class Keyring:
    """`meter.keys` of the model. Ids and secrets are made elsewhere."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.by_id: dict[str, OKey] = {}
        oracle.forgotten.append(self.forgotten)

    def create(
        self,
        owner: Subject,
        key_id: str,
        secret: str,
        *,
        limits: Iterable[Any] = (),
        join: str | None = None,
        name: str | None = None,
        expires_ms: int | None = None,
        meta: Mapping[str, Any] | None = None,
        now_ms: int,
    ) -> OKey:
        path, oracle = path_of(owner), self.oracle
        if len(path) > 3:
            raise PolicyError(f"an owner of {len(path)} segments")
        self.check_expiry(expires_ms, now_ms)
        if join is not None:
            oracle.join(path[:1], join, now_ms=now_ms)
        key = OKey(key_id, path, secret, now_ms, expires_ms, name, meta or {}, join)
        self.limit(key, limits, now_ms)
        self.by_id[key_id] = key
        return key

    def check_expiry(self, expires_ms: int | None, now_ms: int) -> None:
        if expires_ms is not None and expires_ms <= now_ms:
            raise PolicyError("expires is not in the future")

    def limit(self, key: OKey, limits: Iterable[Any], now_ms: int) -> None:
        """These limits are the key's own, or it has none."""
        given = tuple(limits)
        if given:
            self.oracle.subscribe(key.path, limits=given, now_ms=now_ms)
            return
        for plan in self.oracle.plans_of(key.path, now_ms=now_ms):
            if plan not in self.oracle.catalog.plans:
                self.oracle.unsubscribe(key.path, plan, now_ms=now_ms)

    def verify(
        self,
        secret: str,
        costs: Costs | None = None,
        amount: int = 1,
        *,
        auto: bool = True,
        op: str | None = None,
        now_ms: int,
    ) -> OVerification:
        amounts = {} if costs is None else amounts_of(costs, amount)
        if auto:
            amounts[AUTO] = 1
        for key in self.by_id.values():
            now = self.oracle.levels.now(key.path, now_ms)
            overlaps = secret == key.former and key.overlap_ms is not None and now < key.overlap_ms
            if secret == key.secret or overlaps:
                break
        else:
            return OVerification("NOT_FOUND")
        if not key.enabled:
            return OVerification("DISABLED", key)
        if key.expires_ms is not None and now >= key.expires_ms:
            return OVerification("EXPIRED", key)
        if not amounts:
            return OVerification("VALID", key, ODecision(True, "OK", None))
        decision = self.oracle.verified(key.path, amounts, op=op, join=key.join, now_ms=now_ms)
        return OVerification("VALID" if decision.allowed else decision.code, key, decision)

    def get(self, key_id: str) -> OKey | None:
        return self.by_id.get(key_id)

    def listed(self, owner: Subject) -> list[OKey]:
        """The oldest first."""
        found = [key for key in self.by_id.values() if key.owner == path_of(owner)]
        return sorted(found, key=lambda key: (key.created_ms, key.id))

    def update(
        self,
        key_id: str,
        *,
        limits: Any = UNCHANGED,
        expires_ms: Any = UNCHANGED,
        now_ms: int,
        **changes: Any,
    ) -> OKey:
        """`changes`: of `enabled`, `name` and `meta`."""
        if expires_ms is not UNCHANGED:
            self.check_expiry(expires_ms, now_ms)
            changes["expires_ms"] = expires_ms
        key = self.known(key_id)
        if limits is not UNCHANGED:
            self.limit(key, limits, now_ms)
        self.by_id[key_id] = replace(key, **changes)
        return self.by_id[key_id]

    def rotate(self, key_id: str, secret: str, overlap_ms: int, *, now_ms: int) -> OKey:
        key = self.known(key_id)
        until = now_ms + overlap_ms if overlap_ms else None
        self.by_id[key_id] = replace(key, secret=secret, former=key.secret, overlap_ms=until)
        return self.by_id[key_id]

    def revoke(self, key_id: str, *, now_ms: int) -> bool:
        """What it used is forgotten with it."""
        if key_id not in self.by_id:
            return False
        self.oracle.forget(self.by_id[key_id].path, now_ms=now_ms)
        return True

    def known(self, key_id: str) -> OKey:
        if key_id not in self.by_id:
            raise PolicyError(f"no key {key_id}")
        return self.by_id[key_id]

    def forgotten(self, path: Path) -> None:
        """Everything at and below that path is gone."""
        gone = [key.id for key in self.by_id.values() if key.path[: len(path)] == path]
        for key_id in gone:
            del self.by_id[key_id]
