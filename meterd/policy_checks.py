"""One check per shape of field, shared by every policy class. Each returns the normalized value.

`at` is the text that an error starts with ("pool 'credits': limit"). What is returned is made of
plain `str`, `int`, `float`, `tuple` and `FrozenMap`, whatever subclasses were given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Final, TypeVar

from meterd.errors import PolicyError
from meterd.timespec import closest, refuse, shown

MAX_MARKS: Final = 16
MAX_RATES: Final = 64
_MAX_META_DEPTH: Final = 8
_MAX_META_INT: Final = 2**53
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NAME_ALLOWED: Final = "text of 1 to 64 characters A-Z a-z 0-9 _ . -"
# Files of the zone database that are no zones: this machine's own choice, and a placeholder.
_NO_ZONES: Final = frozenset({"localtime", "posixrules", "Factory"})

V = TypeVar("V")


class FrozenMap(Mapping[str, V]):
    """An immutable mapping that hashes, pickles and prints like the dict it was made from."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenMap[V]], tuple[dict[str, V]]]:
        return type(self), (self._items,)


def setter(target: object, **first: object) -> Callable[[str, object], None]:
    """How a frozen dataclass writes its normalized fields in `__post_init__`."""

    def put(field: str, value: object) -> None:
        object.__setattr__(target, field, value)

    for field, value in first.items():
        put(field, value)
    return put


def name(value: object, at: str) -> str:
    """The name of a plan, group, limit or cost."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise refuse(at, value, _NAME_ALLOWED)
    return str.__str__(value)


def label(value: object, at: str) -> str:
    """Text for people: one to 200 characters, no control characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise refuse(at, value, "None, or 1 to 200 printable characters")
    return str.__str__(value)


def currency(value: object, at: str) -> str:
    """Three letters, written small."""
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z]{3}", value) is None:
        raise refuse(at, value, 'a currency code of three letters, such as "usd"')
    return str.__str__(value).lower()


def one_of(
    value: object, words: tuple[str, ...], at: str, *, none: bool = False, allowed: str = ""
) -> str:
    """One of a closed list of words; `none` only adds None to what the error allows."""
    if isinstance(value, str) and value in words:
        return str.__str__(value)
    listed = ("None, " if none else "") + ", ".join(f'"{word}"' for word in words)
    raise refuse(at, value, allowed or listed, closest(value, words))


def flag(value: object, at: str) -> bool:
    """True or False, nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise refuse(at, value, "True or False")
    return value


def integer(value: object, at: str, *, most: int, least: int = 0, none: str = "") -> int:
    """A plain integer from `least` to `most`; `none` only adds to what the error allows."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        span = f"an integer from {least} to {_power(most)}"
        raise refuse(at, value, f"{span}, or None ({none})" if none else span)
    return int(value)


def optional(value: object, at: str, *, most: int, none: str) -> int | None:
    """A plain integer from 0 to `most`, or None, which means what `none` says."""
    return None if value is None else integer(value, at, most=most, none=none)


def integers(value: object, at: str, *, most: int) -> tuple[int, ...]:
    """Plain integers from 1 to `most`, ascending, each once."""
    given = _listed(value, at, "a list of integers")
    return tuple(sorted({integer(item, at, most=most, least=1) for item in given}))


def fractions(value: object, at: str) -> tuple[float, ...]:
    """Fractions above 0 and up to 1, ascending, each once."""
    allowed = "a list of fractions above 0 and up to 1, such as (0.8, 1)"
    given = _listed(value, at, allowed)
    for item in given:
        number = isinstance(item, int | float) and not isinstance(item, bool)
        # NaN fails every comparison, so the test says what is right, not what is wrong.
        if not (number and 0 < item <= 1):  # type: ignore[operator]
            percent = number and 1 < item <= 100  # type: ignore[operator]
            raise refuse(at, item, allowed, " (80 % is 0.8)" if percent else "")
    return tuple(sorted({float(item) for item in given}))  # type: ignore[arg-type]


def rates(value: object, at: str, *, most: int) -> FrozenMap[int] | None:
    """None, or a mapping of at least one cost name to an integer factor of at least 1."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MAX_RATES:
        allowed = f"a mapping of 1 to {MAX_RATES} cost names to integers, or None (own name at 1)"
        raise refuse(at, value, allowed)
    pairs = ((name(cost, f"{at}: cost name"), cost, factor) for cost, factor in value.items())
    return FrozenMap(
        {key: integer(factor, f"{at}[{cost!r}]", most=most, least=1) for key, cost, factor in pairs}
    )


def zone(value: object, at: str) -> str:
    """The name of an IANA time zone that this machine knows."""
    if isinstance(value, str) and _zone_exists(str.__str__(value)):
        return str.__str__(value)
    allowed = 'the name of an IANA time zone, such as "UTC" or "Europe/Berlin"'
    hint = closest(value, _zones()) if _zones() else " (no zone database here: install tzdata)"
    raise refuse(at, value, allowed, hint)


@lru_cache(maxsize=1024)
def _zone_exists(key: str) -> bool:
    if key == "UTC":  # the default must work on a machine without a zone database
        return True
    if key in _NO_ZONES or key.startswith(("posix/", "right/")):
        return False
    try:
        from zoneinfo import ZoneInfo  # slow to load, and many plans need none

        ZoneInfo(key)
    # Beside "not found" (a KeyError): a path that leaves the database or holds NUL (ValueError), a
    # directory or an over-long name (OSError).
    except (KeyError, ValueError, OSError):
        return False
    return True


@cache
def _zones() -> frozenset[str]:
    from zoneinfo import available_timezones

    return frozenset(available_timezones() - _NO_ZONES)


def meta(value: object, at: str) -> FrozenMap[object]:
    """A mapping of what JSON can say, frozen all the way down (lists become tuples)."""
    if not isinstance(value, Mapping):
        raise refuse(at, value, "None, or a mapping of names to JSON values")
    frozen = _json(value, at, 0)
    assert isinstance(frozen, FrozenMap)
    return frozen


def _json(value: object, at: str, depth: int) -> object:
    if depth > _MAX_META_DEPTH:
        raise PolicyError(f"{at}: nested too deep; allowed: {_MAX_META_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _utf8(value, at)
    if isinstance(value, int):
        if abs(value) > _MAX_META_INT:
            raise refuse(at, value, "integers up to 2**53")
        return int(value)
    if isinstance(value, float):
        if not abs(value) < float("inf"):
            raise refuse(at, value, "finite numbers")
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(_json(item, f"{at}[{i}]", depth + 1) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise refuse(f"{at}: key", key, "text")
        return FrozenMap(
            {
                _utf8(k, f"{at}: key"): _json(v, f"{at}[{shown(k)}]", depth + 1)
                for k, v in value.items()
            }
        )
    raise refuse(at, value, "JSON values: text, numbers, True, False, None, lists, mappings")


def _utf8(value: str, at: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refuse(at, value, "text that UTF-8 can encode") from None
    return str.__str__(value)


def _listed(value: object, at: str, allowed: str) -> tuple[object, ...]:
    """A short list, tuple or set; a text or a lone number is not one."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise refuse(at, value, allowed)
    items = tuple(value)
    if len(items) > MAX_MARKS:
        raise PolicyError(f"{at}: got {len(items)} entries; allowed: at most {MAX_MARKS}")
    return items


def _power(number: int) -> str:
    """10**15 rather than 1000000000000000, whose zeros nobody counts."""
    digits = len(str(number)) - 1
    return f"10**{digits}" if digits > 3 and number == 10**digits else str(number)
