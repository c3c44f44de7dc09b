"""Verifications that are packed once: as `meterd.shapes`, for secrets that this process has met.

A shape is found by the digest of a secret, never by the secret. It goes out as it is and its answer
is read; whatever comes back instead of a plain answer is for the flow (`Verifying.resume`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

from meterd import wire
from meterd.keyentry import unpack_about, unpack_meta
from meterd.keys import Path, Subject, display
from meterd.result import Code, Decision
from meterd.roles import Joining
from meterd.shapes import Shape
from meterd.verification import KeyCode, Verification

_CODES: Final = (
    KeyCode.VALID,
    KeyCode.NO_PLAN,
    KeyCode.NOT_INCLUDED,
    KeyCode.USAGE_EXCEEDED,
    KeyCode.RATE_LIMITED,
    KeyCode.DISABLED,
    KeyCode.EXPIRED,
)


class Place(NamedTuple):
    """Where a key is, and what it charges: that never changes, so a process may remember it."""

    key_id: str
    entry: bytes
    path: Path
    join: str | None


class Told(NamedTuple):
    """What a reply says of a key, and the bytes that say it, which seldom change."""

    raw: bytes
    name: str | None
    owner: Subject
    meta: str


def told(raw: bytes) -> Told:
    about = unpack_about(raw)
    return Told(raw, about.name, display(about.owner), about.meta)


def verification(place: Place, code: int, about: Told, decision: Decision | None) -> Verification:
    """Of a key that was found: its code by number, what is said of it, the charge if any."""
    subject = display(place.path.segments)
    meta = unpack_meta(about.meta)
    return Verification(
        _CODES[code], place.key_id, subject, about.owner, about.name, meta, decision
    )


class KeyShape(Shape):
    """One packed verification of one secret. `handle`: by what its place is remembered."""

    __slots__ = ("_told", "charges", "handle", "place", "sha256")

    def __init__(
        self,
        key: Hashable,
        place: Place,
        sha256: bytes,
        handle: str | bytes,
        costs: wire.Costs | None,
        role: Callable[[], Joining],
        seconds: float,
        head: bytes,
        tail: bytes,
    ) -> None:
        nothing = wire.Costs((), b"", b"", ())
        super().__init__(
            key, "keys_verify", place.path, costs or nothing, role, seconds, head, tail, False
        )
        self.place = place
        self.sha256 = sha256
        self.handle = handle
        self.charges = costs
        self._told: Told | None = None

    def verified(self, reply: Any) -> Verification | None:
        """What became of it, if that is what the reply plainly says."""
        if reply.__class__ is not bytes or len(reply) < wire.HEAD_BYTES or reply[0] != wire.DECIDED:
            return None
        code, said, raw = reply[1], self._told, reply[wire.end_of(reply) :]
        if code >= len(_CODES):
            return None
        if said is None or said.raw != raw:
            said = self._told = told(raw)
        decision = None
        if self.charges is None:
            decision = Decision(True, Code.OK, None) if code == 0 else None
        elif code < wire.KEY_DISABLED:
            source = (wire.head_of, wire.limits_of, reply, self.path)
            decision = wire.decided(bool(reply[2]), source)
        return verification(self.place, code, said, decision)
