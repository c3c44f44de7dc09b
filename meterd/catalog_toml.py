"""Plans and settings from files: TOML, or a Python module. Every error gives the full dotted path.

A file holds settings at its top level and plans under `[plans.ID]`; in a `pyproject.toml` both live
under `[tool.meterd]`. TOML has no None: leave a field out, or write "unlimited" for `limit` and
`overage`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from meterd.catalog_codec import check_keys, field_names, required_names
from meterd.errors import PolicyError
from meterd.policy import Bucket, Flag, Limit, Plan, Pool, Price, Slots
from meterd.timespec import closest, duration_ms, refuse, seconds

SETTINGS: Final = (
    "url",
    "prefix",
    "timeout",
    "max_connections",
    "op_retention",
    "accept_eviction",
)
_SECTIONS: Final[tuple[tuple[str, type[Pool | Bucket | Slots]], ...]] = (
    ("pools", Pool),
    ("buckets", Bucket),
    ("slots", Slots),
)
_PLAN_KEYS: Final = (
    "default",
    "group",
    "name",
    "flags",
    "meta",
    "price",
    "pools",
    "buckets",
    "slots",
)
_STRIPE_KEYS: Final = ("event_names", "customer_key", "value_key", "account")
T = TypeVar("T")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_MODULE_SPEC: Final = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")

Source = str | bytes | os.PathLike[str]


def load_toml(source: Source) -> list[Plan]:
    """The plans of a TOML file, in its order.

    `source`: a path; or the text itself as bytes, or as a str that holds a line break. Raises
    PolicyError for what cannot be read, and for a document without plans.
    """
    document, at = _document(source)
    plans = _table(document.get("plans", {}), f"{at}plans")
    if not plans:
        raise PolicyError(f"{_called(source)}: no plans; write them as [{at}plans.ID]")
    return [_plan(key, value, f"{at}plans.{_quoted(key)}") for key, value in plans.items()]


def load_settings(source: Source) -> dict[str, Any]:
    """The client settings of a TOML file, by the name of `Meter`'s argument; {} if it has none.

    `timeout` is in seconds (float), `op_retention` duration text; the others as written.
    """
    document, at = _document(source)
    return {
        key: _setting(key, value, f"{at}{key}")
        for key, value in document.items()
        if key not in ("plans", "export")
    }


def load_export(source: Source) -> dict[str, Any]:
    """`[export.stripe]` of a TOML file: keyword arguments of `StripeMeter`; {} if it has none."""
    document, at = _document(source)
    export = _table(document.get("export", {}), f"{at}export")
    check_keys(export, ("stripe",), f"{at}export.")
    found = dict(_table(export.get("stripe", {}), f"{at}export.stripe"))
    check_keys(found, _STRIPE_KEYS, f"{at}export.stripe.")
    for key, value in found.items():
        where = f"{at}export.stripe.{key}"
        texts = _table(value, where) if key == "event_names" else {"": value}
        for name, text in texts.items():
            if not isinstance(text, str) or not text:
                raise refuse(f"{where}.{_quoted(name)}" if name else where, text, "text")
    return found


def load_plans(spec: str) -> list[Plan]:
    """The plans that `spec` names: a TOML file, or `package.module:ATTR`.

    `ATTR` is a list or tuple of Plan, or a function without arguments that returns one. The module
    is looked for in the current directory too. Raises PolicyError, whatever went wrong.
    """
    match = _MODULE_SPEC.fullmatch(spec) if isinstance(spec, str) else None
    if match is None or Path(spec).exists():
        if not isinstance(spec, str | os.PathLike) or not str(spec) or "\n" in str(spec):
            raise refuse("plans", spec, "the path of a TOML file, or package.module:ATTR")
        return load_toml(Path(spec))
    with _current_directory_importable():
        found = _attribute(match[1], match[2], spec)
        if callable(found):
            try:
                found = found()
            except Exception as error:
                raise PolicyError(f"{spec}: {_reason(error)}") from error
    if inspect.iscoroutine(found):
        found.close()
    allowed = "a list of Plan, or a function that returns one"
    if not isinstance(found, list | tuple):
        raise refuse(spec, found, allowed)
    for item in found:
        if not isinstance(item, Plan):
            raise refuse(spec, item, allowed)
    return list(found)


def _attribute(module_name: str, path: str, spec: str) -> Any:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the module asked for is the caller's typing; one that *it* lacks is said as such.
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise PolicyError(f"{spec}: there is no module {error.name!r}") from None
        raise PolicyError(f"{spec}: {_reason(error)}") from error
    except Exception as error:
        raise PolicyError(f"{spec}: {_reason(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            around = getattr(found, "__dict__", {}).items()
            hint = closest(part, [key for key, value in around if isinstance(value, list | tuple)])
            raise PolicyError(f"{spec}: {part!r} is not defined there{hint}")
        found = getattr(found, part)
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, PolicyError):
        return str(error)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """A console script does not have the current directory on its path; `python -m` has."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _document(source: Source) -> tuple[dict[str, Any], str]:
    """The table that is meterd's, and the dotted path that leads to it ("" or "tool.meterd.")."""
    try:
        if isinstance(source, bytes):
            text = source.decode()
        elif isinstance(source, str) and "\n" in source:
            text = source
        else:
            text = Path(source).read_bytes().decode()
        # A byte order mark is what some editors leave; TOML itself refuses it.
        document = tomllib.loads(text.removeprefix("\ufeff"))
    except OSError as error:
        raise PolicyError(f"{_called(source)}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, not TOML, or a path with a NUL
        raise PolicyError(f"{_called(source)}: not valid TOML: {error}") from None
    at = ""
    is_pyproject = _called(source).endswith("pyproject.toml")
    if is_pyproject or ("plans" not in document and "tool" in document):
        at = "tool.meterd."
        document = _table(document.get("tool", {}), "tool").get("meterd", {})
        document = _table(document, "tool.meterd")
    check_keys(document, (*SETTINGS, "plans", "export"), at)
    return document, at


def _called(source: Source) -> str:
    if isinstance(source, bytes) or (isinstance(source, str) and "\n" in source):
        return "TOML text"
    return str(source) or "TOML file ''"


def _setting(key: str, value: Any, at: str) -> Any:
    if key == "timeout":
        return seconds(value, at)
    if key == "op_retention":
        duration_ms(value, field=at)
    elif key == "max_connections":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise refuse(at, value, "an integer of at least 1")
    elif key == "accept_eviction":
        if not isinstance(value, bool):
            raise refuse(at, value, "true or false")
    elif not isinstance(value, str) or not value:
        raise refuse(at, value, "text")
    return value


def _plan(plan_id: str, value: Any, at: str) -> Plan:
    table = dict(_table(value, at))
    check_keys(table, _PLAN_KEYS, f"{at}.")
    includes: list[Limit] = []
    for section, cls in _SECTIONS:
        for name, entry in _table(table.pop(section, {}), f"{at}.{section}").items():
            includes.append(_limit(cls, name, entry, f"{at}.{section}.{_quoted(name)}"))
    flags = table.pop("flags", [])
    if not isinstance(flags, list):
        raise refuse(f"{at}.flags", flags, 'a list of names, such as ["sso"]')
    try:
        includes += [Flag(name) for name in flags]
    except PolicyError as error:
        raise PolicyError(f"{at}.flags: {error}") from None
    if "price" in table:
        price = _table(table["price"], f"{at}.price")
        check_keys(price, field_names(Price), f"{at}.price.", needed=required_names(Price))
        table["price"] = _made(Price, price, at)
    return _made(Plan, {"id": plan_id, "includes": includes, **table}, at)


def _limit(cls: type[Pool | Bucket | Slots], name: str, entry: Any, at: str) -> Limit:
    values = dict(_table(entry, at))
    check_keys(values, field_names(cls)[1:], f"{at}.", needed=required_names(cls)[1:])
    if cls is Pool:
        for field in ("limit", "overage"):
            if values.get(field) == "unlimited":
                values[field] = None
    return _made(cls, {"name": name, **values}, at)


def _made(cls: type[T], values: Mapping[str, Any], at: str) -> T:
    try:
        return cls(**values)
    except PolicyError as error:
        raise PolicyError(f"{at}: {error}") from None


def _table(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refuse(at, value, f"a table, [{at}]")
    return value


def _quoted(key: str) -> str:
    """A key as TOML writes it inside a dotted path."""
    return key if _BARE_KEY.fullmatch(key) else f'"{key}"'
