"""Secrets of API keys: how they look, and how one is told from a typing error. No I/O.

    mk_0aBcDeFgHiJkLm_0123456789ABCDEFGHIJKLnOpQrS
    |  |              |                     checksum: CRC-32 of all before it, 6 digits
    |  |              22 random digits: 130 bits
    |  the key's place: 2 digits of its root's partition, 12 of its own
    prefix, chosen by the application

Digits are those of base 62. The key's id is `key_` and its place, so a secret says where its key
is; who has the id has nothing yet. Only the SHA-256 of a secret is ever sent.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from typing import Final

from meterd.errors import PolicyError
from meterd.timespec import refuse

PREFIX: Final = "mk"
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PARTITIONS: Final = 1024
_NAME, _RANDOM, _CHECK = 12, 22, 6
_PREFIX: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"
_SECRET: Final = re.compile(
    rf"{_PREFIX}_([0-9A-Za-z]{{{2 + _NAME}}})_([0-9A-Za-z]{{{_RANDOM + _CHECK}}})", re.ASCII
)
_ID: Final = re.compile(rf"key_([0-9A-Za-z]{{{2 + _NAME}}})", re.ASCII)


def checked_prefix(prefix: object) -> str:
    """What secrets begin with: 1 to 32 letters, digits, "_" and "-"."""
    if not isinstance(prefix, str) or re.fullmatch(_PREFIX, prefix, re.ASCII) is None:
        allowed = 'letters, digits, "_" and "-", at most 32, the first a letter or digit'
        raise refuse("prefix", prefix, allowed)
    return prefix


def new_place(partition: int) -> str:
    """Where a new key is: its root's partition, and a name that no other key there has."""
    return _number(partition, 2) + _random(_NAME)


def import_place(partition: int, sha256: bytes, owner: bytes) -> str:
    """The same for a secret made elsewhere: an owner always imports it as the same key."""
    found = hashlib.sha256(b"meterd import\0" + sha256 + owner).digest()
    return _number(partition, 2) + _number(int.from_bytes(found[:9]), _NAME)


def new_secret(prefix: str, place: str) -> str:
    """A secret of the key at `place`."""
    text = f"{prefix}_{place}_{_random(_RANDOM)}"
    return text + _checksum(text)


def place_of(secret: str) -> str | None:
    """Where the key of a secret is; "": nowhere, its checksum is broken; None: not of our shape."""
    found = _SECRET.fullmatch(secret)
    if found is None:
        return None
    sound = secret[-_CHECK:] == _checksum(secret[:-_CHECK])
    return found[1] if sound and partition_of_place(found[1]) < _PARTITIONS else ""


def place_of_id(key_id: object) -> str | None:
    """Where the key of an id is; None for a text that is no id.

    No error repeats what was given: it might be a secret.
    """
    if not isinstance(key_id, str):
        raise PolicyError(f"keys: an id is text such as 'key_...', got {type(key_id).__name__}")
    found = _ID.fullmatch(key_id)
    return found[1] if found and partition_of_place(found[1]) < _PARTITIONS else None


def id_of(place: str) -> str:
    return f"key_{place}"


def partition_of_place(place: str) -> int:
    return _DIGITS.index(place[0]) * len(_DIGITS) + _DIGITS.index(place[1])


def digest(secret: str) -> bytes:
    """SHA-256 of a secret, all that is kept of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def checked_digest(sha256: object) -> bytes:
    """A SHA-256 as 64 hexadecimal digits or 32 bytes; an error does not repeat it."""
    if isinstance(sha256, bytes) and len(sha256) == 32:
        return sha256
    if isinstance(sha256, str) and re.fullmatch(r"[0-9A-Fa-f]{64}", sha256, re.ASCII):
        return bytes.fromhex(sha256)
    raise PolicyError(
        "sha256: not a SHA-256; allowed: 64 hexadecimal digits, or 32 bytes: "
        "hashlib.sha256(secret.encode()).hexdigest()"
    )


def _checksum(text: str) -> str:
    return _number(zlib.crc32(text.encode()), _CHECK)


def _random(length: int) -> str:
    return "".join([secrets.choice(_DIGITS) for _ in range(length)])


def _number(value: int, length: int) -> str:
    """The last `length` digits of a number, highest first."""
    found = ""
    for _ in range(length):
        value, digit = divmod(value, len(_DIGITS))
        found = _DIGITS[digit] + found
    return found
