"""Automatic top-ups: a grant when a pool runs low, so many in a period and not too fast.

Driven by events, which come at least once; made so that each top-up is paid and granted once:

- Before anything is paid, the top-up takes a number: the first of its period that is free, in a
  hash beside the record, together with the event that asks for it. An event that comes again
  finds its number again, and goes on where the one before it was cut off.
- Number, period, pool and subject make the key that the payment and the grant are given.
- An event that comes too soon after the last top-up is put off until the cool-down is over, and
  looked at again then: a pool that is still low is not forgotten.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from meterd import wire
from meterd.batch import Rounds
from meterd.event import Event, checked_group
from meterd.keys import Subject
from meterd.policy_checks import name as checked_name
from meterd.streams import ask, checked
from meterd.timespec import DAY_MS, Seconds, duration_ms, refuse, seconds

if TYPE_CHECKING:
    from datetime import timedelta

    from meterd.aio import AsyncMeter
    from meterd.client import Meter
    from meterd.timespec import Instant

_log = logging.getLogger("meterd")
_KEPT_MS = 400 * DAY_MS  # top-ups of earlier periods, after which they are forgotten
_TYPES = ("warn", "exhausted", "overage")
_DECLINED, _BEGUN, _DONE = "declined", "begun", "done"


@dataclass(frozen=True, slots=True)
class TopUp:
    """One top-up: `number` 1, 2, ... of its period, `event` that asked for it.

    `key` is the same however often it is attempted: give it to the payment provider as its
    idempotency key. The grant's id is the same text.
    """

    key: str
    subject: Subject
    pool: str
    amount: int
    number: int
    event: Event


class _Taken(NamedTuple):
    """A number that is taken."""

    field: bytes
    period_ms: int
    number: int
    event_id: str
    at_ms: int
    state: str


class _End(NamedTuple):
    """What came of an event; `later`: it was put off."""

    topup: TopUp | None = None
    later: bool = False

    def made(self) -> list[TopUp]:
        return [] if self.topup is None else [self.topup]


_NOTHING = _End()
_Steps = Generator[Callable[[], Any], Any, _End]


class _Rules:
    """What `AutoTopUp` and `AsyncAutoTopUp` share: everything but the wait."""

    def __init__(
        self,
        meter: Meter | AsyncMeter,
        pool: str,
        amount: int,
        *,
        below: int | None = None,
        per_period: int,
        cooldown: str | timedelta = "1m",
        charge: Callable[[TopUp], Any] | None = None,
        expires: Instant | None = None,
        priority: int = 50,
        source: str = "auto-top-up",
    ) -> None:
        """`below`: only while less than so many units remain; by default whatever was low to the
        event. `per_period`: top-ups at most. `charge(topup)`: takes the money; False means that it
        was declined (nothing is granted, and the next event may try again after `cooldown`); what
        it raises ends the run, and the event comes again. `expires`, `priority`, `source`: of the
        grants.
        """
        self._meter: Any = meter
        self._pool = checked_name(pool, "auto-top-up: pool")
        self._amount = wire.check_amount(amount, "auto-top-up: amount")
        if not amount:
            raise refuse("auto-top-up: amount", amount, "at least 1")
        self._below = None if below is None else wire.check_amount(below, "auto-top-up: below")
        if type(per_period) is not int or per_period < 1:
            raise refuse("auto-top-up: per_period", per_period, "an integer of at least 1")
        self._per_period = per_period
        self._cooldown_ms = duration_ms(cooldown, field="auto-top-up: cooldown", allow_zero=True)
        if charge is not None and not callable(charge):
            raise refuse("auto-top-up: charge", charge, "a function of a TopUp")
        self._charge = charge
        self._grant = {"expires": expires, "priority": priority, "source": source}

    # Steps: each is called, awaited if it can be, and its result comes back -----------------------

    def _handled(self, event: Event, group: bytes, *, again: bool = False) -> _Steps:
        """One event, to its end. `again`: it had been put off, and what it knew is old."""
        if event.name != self._pool or event.type not in _TYPES:
            return _NOTHING
        if again:
            meta = yield lambda: self._meter.meta(event.root)
            event = replace(event, meta=meta)
        period_ms = _ms(event.period_start)
        while True:
            taken, now_ms = yield lambda: self._look(event.subject)
            mine = next((one for one in taken if one.event_id == event.id), None)
            if mine is not None:
                break
            if event.period_end is not None and now_ms >= _ms(event.period_end):
                return _NOTHING  # the period that runs now has events of its own
            if not (yield from self._still_low(event)):
                return _NOTHING
            last_ms = max((one.at_ms for one in taken), default=None)
            if last_ms is not None and now_ms - last_ms < self._cooldown_ms:
                due_ms = last_ms + self._cooldown_ms
                yield partial(self._put_off, event, group, due_ms)
                return _End(later=True)
            here = [one for one in taken if one.period_ms == period_ms]
            if sum(one.state != _DECLINED for one in here) >= self._per_period:
                _log.warning("%s: %r has had its %d top-ups of this period",
                             self._pool, event.subject, self._per_period)  # fmt: skip
                return _NOTHING
            number = max((one.number for one in here), default=0) + 1
            # Of two events that want the same number one gets it; the other looks again.
            yield partial(self._take, event, period_ms, number, now_ms, taken)
        topup = TopUp(
            self._key(event.subject, mine),
            event.subject,
            self._pool,
            self._amount,
            mine.number,
            event,
        )
        if mine.state == _DECLINED:
            return _NOTHING
        if mine.state == _BEGUN:
            charge = self._charge
            if charge is not None and (yield lambda: charge(topup)) is False:
                yield lambda: self._mark(event.subject, mine, _DECLINED)
                return _NOTHING
            yield lambda: self._meter.grant(
                topup.subject, topup.pool, topup.amount, op=topup.key, **self._grant
            )
            yield lambda: self._mark(event.subject, mine, _DONE)
        return _End(topup)

    def _still_low(self, event: Event) -> Generator[Callable[[], Any], Any, bool]:
        usage = yield lambda: self._meter.usage(event.subject)
        for state in usage:
            if state.subject == event.subject and state.name == self._pool:
                if state.remaining is None:
                    return False
                if self._below is not None:
                    return bool(state.remaining < self._below)
                return event.remaining is None or bool(state.remaining <= event.remaining)
        return False

    def _key(self, subject: Subject, taken: _Taken) -> str:
        """Unique among all stores, and at most 128 bytes."""
        named = self._meter._keys.topups(self._meter._keys.path(subject))
        digest = blake2b(named, digest_size=8).hexdigest()
        return f"top-up-{digest}-{self._pool}-{taken.period_ms}-{taken.number}"

    # The store ------------------------------------------------------------------------------------

    def _look(self, subject: Subject) -> Any:
        return self._meter._drive(self._looked(subject))

    def _looked(self, subject: Subject) -> Rounds[tuple[list[_Taken], int]]:
        """The numbers that are taken for this pool, and what time it is."""
        key = self._meter._keys.topups(self._meter._keys.path(subject))
        found, clock = yield from ask(
            self._meter._session, [(key, (b"HGETALL", key)), (key, (b"TIME",))]
        )
        given = self._meter._operations.now_argument()
        now_ms = int(given) if given else int(clock[0]) * 1000 + int(clock[1]) // 1000
        pairs = checked(found)
        if not isinstance(pairs, dict):
            pairs = dict(zip(pairs[::2], pairs[1::2], strict=True))
        taken = []
        for field, packed in pairs.items():
            pool, period, number = bytes(field).decode().rsplit("/", 2)
            if pool == self._pool:
                taken.append(_Taken(field, int(period), int(number), *msgpack.unpackb(packed)))
        return taken, now_ms

    def _take(
        self, event: Event, period_ms: int, number: int, now_ms: int, taken: list[_Taken]
    ) -> Any:
        key = self._meter._keys.topups(self._meter._keys.path(event.subject))
        field = f"{self._pool}/{period_ms}/{number}".encode()
        asked = [(key, (b"HSETNX", key, field, msgpack.packb([event.id, now_ms, _BEGUN])))]
        old = [one.field for one in taken if now_ms - one.at_ms > _KEPT_MS]
        if old:
            asked.append((key, (b"HDEL", key, *old)))
        return self._meter._drive(ask(self._meter._session, asked))

    def _mark(self, subject: Subject, taken: _Taken, state: str) -> Any:
        key = self._meter._keys.topups(self._meter._keys.path(subject))
        packed = msgpack.packb([taken.event_id, taken.at_ms, state])
        return self._meter._drive(
            ask(self._meter._session, [(key, (b"HSET", key, taken.field, packed))])
        )

    def _put_off(self, event: Event, group: bytes, due_ms: int) -> Any:
        key = self._meter._keys.put_off + b":" + group
        words = (b"ZADD", key, b"%d" % due_ms, _packed(event))
        return self._meter._drive(ask(self._meter._session, [(key, words)]))

    def _due(self, group: bytes) -> Any:
        return self._meter._drive(self._looked_for_due(group))

    def _looked_for_due(self, group: bytes) -> Rounds[list[bytes]]:
        key = self._meter._keys.put_off + b":" + group
        (clock,) = yield from ask(self._meter._session, [(key, (b"TIME",))])
        given = self._meter._operations.now_argument()
        now = given or b"%d" % (int(clock[0]) * 1000 + int(clock[1]) // 1000)
        (found,) = yield from ask(
            self._meter._session, [(key, (b"ZRANGEBYSCORE", key, b"-inf", now))]
        )
        return [bytes(one) for one in checked(found)]

    def _drop(self, group: bytes, packed: bytes) -> Any:
        key = self._meter._keys.put_off + b":" + group
        return self._meter._drive(ask(self._meter._session, [(key, (b"ZREM", key, packed))]))

    def _finished(self, group: bytes, packed: bytes, end: _End) -> Any:
        """Of what had been put off; it may have been put off again."""
        return None if end.later else self._drop(group, packed)


class AutoTopUp(_Rules):
    """Tops pools up by themselves: `AutoTopUp(meter, "credits", 500, per_period=3).run()`.

    Any number of processes may run with one `group`; they share the work.
    """

    def handle(self, event: Event, *, group: str = "auto-top-up") -> TopUp | None:
        """Does what an event asks for. None: nothing, now; what is put off is for `run`."""
        return self._do(self._handled(event, checked_group(group))).topup

    def _do(self, steps: _Steps) -> _End:
        try:
            step = next(steps)
            while True:
                step = steps.send(step())
        except StopIteration as stop:
            end: _End = stop.value
            return end

    def run(
        self, group: str = "auto-top-up", *, follow: bool = True, interval: Seconds = 1
    ) -> list[TopUp]:
        """Handles the events of a group, and with `follow` does not return.

        `interval`: seconds between looks for new events. Without `follow`: the top-ups made.
        """
        pause, name = seconds(interval, "interval"), checked_group(group)
        made: list[TopUp] = []
        while True:
            for event in self._meter.events(group, _TYPES, follow=False):
                made += self._do(self._handled(event, name)).made()
            for packed in self._due(name):
                end = self._do(self._handled(_unpacked(packed), name, again=True))
                made += end.made()
                self._finished(name, packed, end)
            if not follow:
                return made
            made.clear()
            time.sleep(pause)


class AsyncAutoTopUp(_Rules):
    """`AutoTopUp` for an `AsyncMeter`; `charge` may be a coroutine function."""

    async def handle(self, event: Event, *, group: str = "auto-top-up") -> TopUp | None:
        """See `AutoTopUp.handle`."""
        return (await self._do(self._handled(event, checked_group(group)))).topup

    async def _do(self, steps: _Steps) -> _End:
        try:
            step = next(steps)
            while True:
                result = step()
                step = steps.send(await result if inspect.isawaitable(result) else result)
        except StopIteration as stop:
            end: _End = stop.value
            return end

    async def run(
        self, group: str = "auto-top-up", *, follow: bool = True, interval: Seconds = 1
    ) -> list[TopUp]:
        """See `AutoTopUp.run`."""
        pause, name = seconds(interval, "interval"), checked_group(group)
        made: list[TopUp] = []
        while True:
            async for event in self._meter.events(group, _TYPES, follow=False):
                made += (await self._do(self._handled(event, name))).made()
            for packed in await self._due(name):
                end = await self._do(self._handled(_unpacked(packed), name, again=True))
                made += end.made()
                await _awaited(self._finished(name, packed, end))
            if not follow:
                return made
            made.clear()
            await asyncio.sleep(pause)


async def _awaited(made: Any) -> None:
    if made is not None:
        await made


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _packed(event: Event) -> bytes:
    packed: bytes = msgpack.packb(event.as_dict() | {"meta": {}})
    return packed


def _unpacked(packed: bytes) -> Event:
    found = msgpack.unpackb(packed)
    for name in ("period_start", "period_end", "at"):
        found[name] = found[name] and datetime.fromisoformat(found[name])
    if isinstance(found["subject"], list):
        found["subject"] = tuple(found["subject"])
    return Event(**found)
