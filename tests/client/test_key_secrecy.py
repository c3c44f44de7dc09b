"""A secret stands only where it was just made: not in Redis, requests, logs, reprs or errors."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from meterd import Bucket, MeterdError, Pool
from meterd import secret as secrets
from tests.client.key_tools import PLANS, sha256
from tests.client.meter_tools import AnyMeter, Make, requests_of
from tests.support.servers import Server

CANARY = "canary-in-the-mine-4711"


class Searched:
    """Collects what anybody could get to see, and finds secrets in it."""

    def __init__(self) -> None:
        self.secrets: list[str] = [CANARY]
        self.seen: list[tuple[str, str]] = []

    def look(self, where: str, *things: Any) -> None:
        for thing in things:
            if isinstance(thing, bytes):
                self.seen.append((where, thing.decode("latin-1")))
            elif isinstance(thing, BaseException):
                shown = "".join(traceback.format_exception(thing))
                self.seen += [(where, shown), (where, repr(thing)), (where, str(thing.args))]
            else:
                self.seen += [(where, repr(thing)), (where, str(thing)), (where, f"{thing}")]

    def found(self) -> list[str]:
        # Not even most of one: the random part, or the whole without its checksum.
        parts = {part for secret in self.secrets for part in (secret, secret[-28:], secret[:-6])}
        return [where for where, text in self.seen if any(part in text for part in parts)]


@pytest.fixture
def searched(caplog: pytest.LogCaptureFixture) -> Iterator[Searched]:
    caplog.set_level(logging.DEBUG)
    made = Searched()
    yield made
    made.look("log", *[record.getMessage() for record in caplog.records], caplog.text)
    assert len(made.seen) > 40
    assert made.found() == []


def everything_stored(server: Server, prefix: str) -> list[bytes]:
    client = server.client()
    found: list[bytes] = []
    for key in client.scan_iter(match=f"{prefix}:*", count=1000):
        kind = client.type(key)
        value: Any = {
            b"string": client.get,
            b"set": client.smembers,
            b"hash": client.hgetall,
            b"zset": lambda name: client.zrange(name, 0, -1),
            b"stream": client.xrange,
        }[kind](key)
        found += [key, repr(value).encode("unicode_escape"), client.dump(key)]
        found += [value] if isinstance(value, bytes) else []
    return found


def failing(meter: AnyMeter, verb: str, *args: Any, **named: Any) -> MeterdError:
    with pytest.raises(MeterdError) as caught:
        getattr(meter.keys, verb)(*args, **named)
    return caught.value


def test_a_canary(make: Make, server: Server, searched: Searched) -> None:
    observed: list[Any] = []
    meter = make(PLANS, observer=lambda *what: observed.append(what))
    sent = requests_of(meter)
    own = [Pool("credits", 3), Bucket("own", 9, "1m", auto=1)]
    key = meter.keys.create("acme", limits=own, name="ci", meta={"a": 1})
    old = meter.keys.create("acme", sha256=sha256(CANARY))
    new = meter.keys.rotate(key.id, overlap="1h")
    searched.secrets += [key.secret, new.secret]
    for made in (key, old, new):
        searched.look("key", made, made.as_dict(), json.dumps(made.as_dict()), [made], {1: made})
    assert pickle.loads(pickle.dumps(new)).secret == copy.copy(new).secret == new.secret
    for secret in (key.secret, new.secret, CANARY, secrets.new_secret("mk", key.id[4:])):
        searched.secrets.append(secret)
        for costs in (None, "prompt", "nothing", {"credits": 10**6}):
            found = meter.keys.verify(secret, costs, op=None)
            searched.look("verification", found, found.as_dict(), found.decision)
        searched.look("broken", meter.keys.verify(secret[:-1] + "~"))
        meter.keys.verify(secret, "api", op=f"op of {sha256(secret)}")
        # Whatever is wrong with a call, and whatever stands in the wrong place.
        for verb, args, named in (
            ("verify", (secret,), {"costs": -1}),
            ("verify", (secret, "credits", -1), {}),
            ("verify", (secret, "credits", 1.5), {}),
            ("verify", (secret, "jobs"), {}),
            ("verify", (secret,), {"auto": None}),
            ("verify", ([secret],), {}),
            ("verify", (secret.encode(),), {}),
            ("rotate", (secret,), {}),
            ("update", (secret,), {"name": "x"}),
            ("get", ([secret],), {}),
            ("create", ("acme",), {"sha256": secret}),
            ("create", ("acme",), {"sha256": secret.encode()}),
        ):
            # One that is not found is answered before anybody looks at what it would be charged.
            if secret == searched.secrets[-1] and args[1:2] == ("jobs",):
                continue
            searched.look(f"{verb} {args[1:]} {named}", failing(meter, verb, *args, **named))
        assert meter.keys.get(secret) is None
        assert meter.keys.revoke(secret) is False
    for entry in everything_stored(server, meter.raw._keys.prefix):
        searched.look("stored", entry)
    searched.look("observer", observed)
    assert {"keys.create", "keys.verify", "keys.rotate"} <= {what[0] for what in observed}
    assert {what[1] for what in observed if what[0] == "keys.verify"} >= {key.subject, old.subject}
    assert {what[2] for what in observed if what[0] == "keys.verify"} >= {"VALID", "NOT_FOUND"}
    searched.look("sent", *sent)
    searched.look("meter", meter.raw, meter.raw.keys)
    for name, value in vars(meter.raw._apikeys()).items():
        searched.look(f"memory: {name}", value, getattr(value, "young", None))


def test_a_canary_while_the_server_is_away(make: Make, searched: Searched) -> None:
    observed: list[Any] = []
    gone = "redis://127.0.0.1:1"
    meter = make(
        PLANS, url=gone, timeout=0.2, clock=None, observer=lambda *what: observed.append(what)
    )
    secret = secrets.new_secret("mk", secrets.new_place(5))
    searched.secrets.append(secret)
    for given in (secret, CANARY):
        for _ in range(10):
            searched.look("unavailable", failing(meter, "verify", given, "credits", op="x"))
    assert [what[1:3] for what in observed] == [("", "Unavailable")] * 20
    searched.look("observer", observed)
