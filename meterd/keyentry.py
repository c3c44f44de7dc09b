"""What is stored of an API key, read: the bytes that `lua/lib/apikey.lua` describes; pointers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from meterd.errors import PolicyError, ScriptError
from meterd.keys import display
from meterd.timespec import refuse
from meterd.verification import ApiKey

NEVER_MS = 2**48 - 1
MAX_META_BYTES = 16_384
_FRONT = struct.Struct("<BB6s32s6s6s32s")
_ABOUT_AT = _FRONT.size


class About(NamedTuple):
    """What does not change while a key is good, and what people say of it."""

    owner: tuple[str, ...]
    join: str | None
    name: str | None
    meta: str  # JSON, empty: none
    prefix: str
    imported: bytes  # SHA-256, empty: it was not


class Entry(NamedTuple):
    """An API key as it is stored."""

    disabled: bool
    revoked: bool
    expires_ms: int
    created_ms: int
    until_ms: int
    sha256: bytes
    former: bytes
    about: About

    @classmethod
    def from_bytes(cls, raw: bytes) -> Entry:
        try:
            version, flags, expires, sha256, created, until, former = _FRONT.unpack_from(raw)
            if version != 1:
                raise ScriptError(f"an API key of layout {version}; a newer meterd wrote it")
            about = unpack_about(raw[_ABOUT_AT:])
        except (struct.error, ValueError, TypeError, KeyError) as error:
            raise ScriptError(f"an API key of {len(raw)} bytes is not readable") from error
        return cls(
            bool(flags & 1),
            flags >= 2,
            _ms(expires),
            _ms(created),
            _ms(until),
            sha256,
            former,
            about,
        )

    def key(self, key_id: str, secret: str | None = None) -> ApiKey:
        """What the application gets to see of it."""
        about = self.about
        return ApiKey(
            id=key_id,
            subject=display((*about.owner, key_id)),
            owner=display(about.owner),
            name=about.name,
            meta=unpack_meta(about.meta),
            enabled=not self.disabled,
            expires_ms=None if self.expires_ms == NEVER_MS else self.expires_ms,
            created_ms=self.created_ms,
            overlap_ms=self.until_ms or None,
            join=about.join,
            prefix=about.prefix,
            imported=bool(about.imported),
            secret=secret,
        )


def _ms(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def pack_about(about: About) -> bytes:
    value: dict[str, Any] = {"o": list(about.owner), "p": about.prefix}
    optional = {"j": about.join, "n": about.name, "m": about.meta, "i": about.imported}
    value |= {letter: given for letter, given in optional.items() if given}
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def unpack_about(raw: bytes) -> About:
    found = msgpack.unpackb(raw, raw=True)

    def text(letter: bytes) -> str | None:
        value = found.get(letter)
        return None if value is None else value.decode()

    return About(
        tuple([segment.decode() for segment in found[b"o"]]),
        text(b"j"),
        text(b"n"),
        text(b"m") or "",
        found[b"p"].decode(),
        found.get(b"i", b""),
    )


def pack_meta(meta: object) -> str:
    """A mapping of text to JSON values as JSON; empty for None and for an empty one."""
    if meta is None:
        return ""
    if not isinstance(meta, Mapping) or not all(isinstance(name, str) for name in meta):
        raise refuse("meta", meta, "None, or a mapping of names to JSON values")
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PolicyError(f"meta: no JSON value: {error}") from error
    if len(text) > MAX_META_BYTES:
        raise PolicyError(
            f"meta: {len(text)} bytes of JSON; allowed: at most {MAX_META_BYTES}, for every "
            "verification brings them along"
        )
    return text if meta else ""


def unpack_meta(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


class Pointer(NamedTuple):
    """Which key an imported secret belongs to; it never changes for the same id."""

    key_id: str
    owner: tuple[str, ...]
    join: str | None

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb([self.key_id, self.join or "", *self.owner])
        return packed

    @classmethod
    def from_bytes(cls, raw: bytes) -> Pointer:
        try:
            key_id, join, *owner = msgpack.unpackb(raw)
            return cls(key_id, tuple(owner), join or None)
        except (ValueError, TypeError) as error:
            raise ScriptError(f"a pointer of {len(raw)} bytes is not readable") from error
