"""Automatic top-ups: when they are made, how many, and that each is paid and granted once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from meterd import AsyncAutoTopUp, AutoTopUp, Meter, Plan, PolicyError, Pool, TopUp, Unavailable
from meterd.testing import ManualClock
from tests.client.meter_tools import AnyMeter, Make, fresh_prefix
from tests.export.export_tools import END, Killed, Killer, Streams
from tests.support import servers

PLANS = [Plan("free", includes=[Pool("credits", 100, "month"), Pool("tokens", None)], default=True)]
START = 1_735_689_600_000


class Bank:
    """Payments and grants, each once for its key."""

    def __init__(self) -> None:
        self.paid: Counter[str] = Counter()
        self.granted: dict[str, tuple[Any, ...]] = {}
        self.calls = 0
        self.refuses = False

    def charge(self, topup: TopUp) -> bool:
        self.calls += 1
        if self.refuses:
            return False
        self.paid[topup.key] += topup.amount if topup.key not in self.paid else 0
        return True

    def open(self, meter: Any) -> None:
        """`meter.grant` as it is said to work: an id counts once."""

        def note(subject: Any, pool: str, amount: int, op: str, **more: Any) -> bool:
            new = op not in self.granted
            self.granted.setdefault(op, (subject, pool, amount, more["source"]))
            return new

        def grant(subject: Any, pool: str, amount: int, *, op: str, **more: Any) -> None:
            if note(subject, pool, amount, op, **more):
                used = next(s for s in meter.usage(subject) if s.name == pool).used
                meter.adjust(subject, pool, used=max(0, used - amount))

        async def async_grant(subject: Any, pool: str, amount: int, *, op: str, **m: Any) -> None:
            if note(subject, pool, amount, op, **m):
                used = next(s for s in await meter.usage(subject) if s.name == pool).used
                await meter.adjust(subject, pool, used=max(0, used - amount))

        meter.grant = grant if isinstance(meter, Meter) else async_grant


class World:
    def __init__(self, make: Make, streams: Streams) -> None:
        self.clock = ManualClock(START + 60_000)
        self.meter: AnyMeter = make(PLANS, clock=self.clock)
        self.streams = streams
        self.bank = Bank()
        self.bank.open(self.meter.raw)

    def tops(self, **how: Any) -> Any:
        given: dict[str, Any] = {"per_period": 3, "charge": self.bank.charge} | how
        kind: Any = AutoTopUp if self.meter.runner is None else AsyncAutoTopUp
        return kind(self.meter.raw, "credits", 50, **given)

    def run(self, tops: Any) -> list[TopUp]:
        made = tops.run(follow=False)
        if self.meter.runner is None:
            return list(made)

        async def wait() -> Any:
            return await made

        return list(self.meter.runner.run(wait()))

    def use(self, amount: int, subject: str = "acme", kind: str = "exhausted") -> str:
        """Uses so much, and the event that comes of it."""
        with self.streams.silent(subject):
            state = self.meter.report(subject, "credits", amount)["credits"]
        return self.streams.event(subject, kind, *(["0.8"] if kind == "warn" else []),
                                  remaining=state.remaining)  # fmt: skip


@pytest.fixture
def world(make: Make, streams: Streams) -> World:
    return World(make, streams)


def test_a_pool_that_is_low_is_topped_up(world: World) -> None:
    event = world.use(90, kind="warn")
    world.use(1, "globex")
    (one, two) = world.run(world.tops())
    assert (one.subject, two.subject) == ("acme", "globex")
    assert (one.pool, one.amount, one.number, one.event.id) == ("credits", 50, 1, event)
    assert world.bank.paid == {one.key: 50, two.key: 50}
    assert world.bank.granted == {
        one.key: ("acme", "credits", 50, "auto-top-up"),
        two.key: ("globex", "credits", 50, "auto-top-up"),
    }
    assert world.meter.usage("acme")["credits"].remaining == 60
    assert world.run(world.tops()) == []


def test_from_the_charge_to_the_grant(make: Make) -> None:
    """Nothing is made up here: what the engine tells leads to grants that make it tell again."""
    clock = ManualClock(START + 60_000)
    limits = [Pool("credits", 100, "month", warn_below=[20])]
    meter = make([Plan("free", includes=limits, default=True)], clock=clock)
    kind: Any = AutoTopUp if meter.runner is None else AsyncAutoTopUp
    paid: list[str] = []
    tops = kind(
        meter.raw,
        "credits",
        50,
        per_period=2,
        cooldown="10m",
        charge=lambda topup: paid.append(topup.key),
    )

    def run() -> list[int]:
        made = tops.run(follow=False)
        if meter.runner is not None:

            async def wait() -> Any:
                return await made

            made = meter.runner.run(wait())
        return [one.number for one in made]

    def used(amount: int) -> tuple[list[int], int]:
        """The top-ups that follow a use, and what remains."""
        assert meter.consume("acme", "credits", amount)
        return run(), meter.usage("acme")["credits"].remaining

    assert used(79) == ([], 21)
    assert used(2) == ([1], 69)
    assert used(50) == ([], 19)  # too early
    clock.advance(minutes=10)
    assert run() == [2]
    assert not meter.consume("acme", "credits", 70)  # and the period's top-ups are used up
    clock.advance(minutes=10)
    assert run() == []
    assert len(set(paid)) == 2
    clock.advance(days=31)
    assert used(160) == ([1], 59)
    assert len(set(paid)) == 3


def test_so_many_in_a_period(world: World) -> None:
    tops = world.tops(per_period=2, cooldown="1m")
    for expected in (1, 2, None, None):
        world.use(60)
        assert [one.number for one in world.run(tops)] == ([expected] if expected else [])
        world.clock.advance(minutes=2)
    assert len(world.bank.paid) == len(world.bank.granted) == 2


def test_not_too_fast_and_not_forgotten(world: World) -> None:
    tops = world.tops(cooldown="10m")
    world.use(100)
    assert len(world.run(tops)) == 1
    world.use(50)
    for _ in range(3):
        assert world.run(tops) == []  # put off
    world.clock.advance(minutes=10)
    (second,) = world.run(tops)
    assert second.number == 2
    assert world.run(tops) == []


def test_what_is_put_off_is_dropped_once_it_is_not_low_any_more(world: World) -> None:
    tops = world.tops(cooldown="10m")
    world.use(100)
    world.run(tops)
    world.use(50)
    world.run(tops)
    world.meter.adjust("acme", "credits", used=0)  # somebody topped it up by hand
    world.clock.advance(minutes=10)
    assert world.run(tops) == []
    world.clock.advance(days=1)
    assert world.run(tops) == []
    assert len(world.bank.granted) == 1


def test_what_is_put_off_and_put_off_again(world: World) -> None:
    tops = world.tops(cooldown="10m")
    world.use(100)
    world.use(0, kind="warn")
    assert len(world.run(tops)) == 1  # the other is put off
    world.use(60)
    world.clock.advance(minutes=10)
    # Both are due now; one is made, and the other waits for the next cool-down.
    assert len(world.run(tops)) <= 1
    for _ in range(3):
        world.clock.advance(minutes=10)
        world.run(tops)
    assert world.meter.usage("acme")["credits"].remaining > 0
    assert len(world.bank.granted) == 2


def test_a_new_period_has_its_own(world: World) -> None:
    tops = world.tops(per_period=1, cooldown="0s")
    world.use(100)
    (first,) = world.run(tops)
    world.use(50)
    assert world.run(tops) == []
    world.clock.advance(days=31)
    with world.streams.silent("acme"):
        world.meter.report("acme", "credits", 100)
    world.streams.event("acme", remaining=0)  # late news of the period before
    assert world.run(tops) == []
    world.streams.event("acme", remaining=0, start=END, end=END + 86_400_000)
    (second,) = world.run(tops)
    assert (first.number, second.number) == (1, 1)
    assert first.key != second.key


def test_below(world: World) -> None:
    tops = world.tops(below=10)
    world.use(85, kind="warn")
    assert world.run(tops) == []
    world.use(6, kind="warn")
    assert len(world.run(tops)) == 1


def test_what_is_none_of_its_business(world: World) -> None:
    world.streams.event("acme", name="tokens")
    world.streams.event("acme", "closed")
    world.streams.event("nobody")  # without a record it has all of its plan
    assert world.run(world.tops()) == []
    tokens: Any = AutoTopUp if world.meter.runner is None else AsyncAutoTopUp
    world.meter.report("acme", "tokens", 5)
    world.streams.event("acme", name="tokens", remaining=0)
    unlimited = tokens(world.meter.raw, "tokens", 5, per_period=1)
    assert world.run(unlimited) == []


def test_a_card_that_is_declined(world: World) -> None:
    tops = world.tops(per_period=1, cooldown="1h")
    world.bank.refuses = True
    world.use(100)
    assert world.run(tops) == []
    assert world.bank.granted == {}
    world.use(0)
    assert world.run(tops) == []  # put off: the card is not tried again at once
    assert world.bank.calls == 1
    world.bank.refuses = False
    world.clock.advance(hours=1)
    (made,) = world.run(tops)  # a refusal does not count towards the cap
    assert made.number == 2
    assert world.bank.calls == 2


def test_a_payment_that_fails_is_made_again_under_its_key(world: World) -> None:
    keys: list[str] = []

    def charge(topup: TopUp) -> None:
        keys.append(topup.key)
        if len(keys) < 3:
            raise ConnectionError

    tops = world.tops(charge=charge)
    world.use(100)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            world.run(tops)
    (made,) = world.run(tops)
    assert keys == [made.key] * 3
    assert len(world.bank.granted) == 1


def test_coroutines_can_charge(make: Make, streams: Streams) -> None:
    world = World(make, streams)
    if world.meter.runner is None:
        return
    paid: list[str] = []

    async def charge(topup: TopUp) -> bool:
        await asyncio.sleep(0)
        paid.append(topup.key)
        return True

    world.use(100)
    (made,) = world.run(world.tops(charge=charge))
    assert paid == [made.key]


def test_forgotten_with_its_subject(world: World) -> None:
    world.use(100, "acme/ana")
    world.meter.subscribe("acme/ana", limits=[Pool("credits", 5, "month")])
    world.use(5, "acme/ana")
    world.run(world.tops())
    pattern = f"{world.streams.keys.prefix}:*:t:*"
    assert len(list(world.streams.admin.scan_iter(pattern, 5000))) >= 1
    world.meter.forget("acme")
    assert list(world.streams.admin.scan_iter(pattern, 5000)) == []


def test_two_events_at_once_get_two_numbers(server: servers.Server) -> None:
    """The second comes while the first is being paid: it sees that it is too early."""
    prefix = fresh_prefix()
    clock = ManualClock(START + 60_000)
    with Meter(server.url, prefix=prefix, clock=clock, plans=PLANS) as meter:
        bank = Bank()
        bank.open(meter)
        streams = Streams(server.admin, prefix)
        with streams.silent("acme"):
            meter.report("acme", "credits", 100)
        streams.event("acme", "warn", "0.8")
        streams.event("acme")
        first, second = list(meter.events("g", follow=False))
        other = AutoTopUp(meter, "credits", 50, per_period=5, cooldown="1m", charge=bank.charge)
        seen: list[TopUp | None] = []

        def charge(topup: TopUp) -> bool:
            seen.append(other.handle(second))
            return bank.charge(topup)

        mine = AutoTopUp(meter, "credits", 50, per_period=5, cooldown="1m", charge=charge)
        made = mine.handle(first)
        assert made is not None
        assert seen == [None]
        assert mine.handle(first) == made  # again: nothing happens again
        assert bank.calls == 1


def killed_everywhere(life: Callable[[Killer], bool]) -> int:
    for after in (False, True):
        at = 0
        while not life(Killer(at, after=after, later=Unavailable)):
            at += 1
            assert at < 300
    return at


def test_killed_anywhere_it_is_paid_and_granted_once(server: servers.Server) -> None:
    def life(killer: Killer) -> bool:
        prefix = fresh_prefix()
        clock = ManualClock(START + 60_000)
        bank = Bank()
        streams = Streams(server.admin, prefix)
        with Meter(server.url, prefix=prefix, clock=clock, plans=PLANS, timeout=5) as meter:
            with streams.silent("acme"):
                meter.report("acme", "credits", 100)
            streams.event("acme", remaining=0)
        ended = True
        for watched in (True, False):
            with Meter(server.url, prefix=prefix, clock=clock, plans=PLANS, timeout=5) as meter:
                bank.open(meter)
                tops = AutoTopUp(meter, "credits", 50, per_period=3, charge=bank.charge)
                if watched:
                    transport: Any = meter._transport
                    transport.send_many = killer(transport.send_many)
                    meter.grant = killer(meter.grant)  # type: ignore[attr-defined]
                    tops._charge = killer(bank.charge)
                try:
                    tops.run(follow=False)
                except Killed:
                    ended = False
            streams.abandon("acme", "auto-top-up")
        assert len(bank.paid) == len(bank.granted) == 1
        return ended

    assert killed_everywhere(life) > 12


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pool": "a b"}, "pool"),
        ({"amount": 0}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"per_period": 0}, "per_period"),
        ({"per_period": True}, "per_period"),
        ({"below": -1}, "below"),
        ({"cooldown": 5}, "cooldown"),
        ({"charge": "card"}, "charge"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], says: str) -> None:
    how: dict[str, Any] = {"pool": "credits", "amount": 5, "per_period": 1} | given
    with pytest.raises(PolicyError, match=f"auto-top-up: {says}"):
        AutoTopUp(Meter("redis://localhost"), **how)
