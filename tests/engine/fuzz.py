"""What the fuzzing of the entries shares: calling, and judging the answer."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import HealthCheck, settings
from redis.exceptions import ResponseError

from tests.engine.headers import header
from tests.engine.raw import World, applied, assert_well_formed, is_valid, pairs, snapshot

HOWS = ("FCALL", "EVALSHA")
QUICK = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CLEAR = re.compile(r"METERD-(ARGUMENT|OVERFLOW|HORIZON|LAYOUT) ")


def attempt(w: World, entry: str, keys: list[bytes], args: list[bytes], how: str) -> Any:
    """Calls; asserts that the answer is a clear one and that a refusal changed nothing."""
    reply = w.raw.call(entry, keys, args, how=how)
    if isinstance(reply, ResponseError):
        assert CLEAR.match(str(reply)), f"{entry}: {reply}"
    else:
        assert_well_formed(entry, reply)
    after = snapshot(w.client)
    if after != w.whole:
        changed = {k for k in after.keys() | w.whole.keys() if after.get(k) != w.whole.get(k)}
        w.reset()
        assert applied(entry, reply), f"{entry} {args} answered {reply!r} and changed {changed}"
        assert changed <= set(keys), f"{entry} changed {changed}, which was not declared"
        names = pairs(header(entry).arguments, len(args))
        for name, argument in zip(names, args, strict=True):
            assert is_valid(entry, name, argument), f"{entry} wrote with {name}={argument!r}"
    return reply


def assert_refused(w: World, entry: str, keys: list[bytes], args: list[bytes], how: str) -> str:
    """Calls; asserts an error that names the argument, and that nothing changed."""
    reply = w.raw.call(entry, keys, args, how=how)
    changed = snapshot(w.client) != w.whole
    w.reset()
    assert isinstance(reply, ResponseError), f"{entry} {args} answered {reply!r}"
    assert str(reply).startswith("METERD-ARGUMENT "), reply
    assert not changed
    return str(reply)
