"""Grants under faults: given once, spent once, and what is abandoned comes back to where it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import Grant, Meter, OutcomeUnknown, Plan, Pool
from meterd.testing import ManualClock
from tests.faults.fault_tools import EVERY_WAY, LOSING, Workshop, certain, patience
from tests.faults.test_races import together
from tests.support import proxy as faulty
from tests.support.proxy import Fault, FaultProxy
from tests.support.servers import Server

PLANS = [Plan("base", default=True, includes=[Pool("credits", 100, "month", anchor="calendar")])]
HARMLESS = (faulty.DUPLICATE, faulty.TRICKLE, faulty.delay(5))
RACERS = 32


@pytest.fixture
def beside(matrix_server: Server, prefix: str) -> Iterator[Meter]:
    """Looks at the same store without a proxy between."""
    with Meter(matrix_server.url, plans=PLANS, prefix=prefix, timeout=20) as made:
        yield made


def books(meter: Any, subject: str = "acme") -> dict[str, Grant]:
    """By id; nothing of any grant is lost or made."""
    found = {grant.id: grant for grant in meter.usage(subject).levels[-1].grants}
    for grant in found.values():
        parts = (grant.consumed, grant.remaining, grant.held, grant.expired)
        assert min(parts) >= 0, grant
        assert sum(parts) == grant.amount, grant
    return found


# --- Replies that are lost


@EVERY_WAY
@pytest.mark.parametrize("fault", [*LOSING, *HARMLESS], ids=lambda fault: fault.kind)
def test_one_fault(
    proxy: FaultProxy, beside: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=patience(fault))
    meter.grant("other", "credits", 5, op="seen")
    meter.void("other", "seen")  # from here on each is one request

    def give() -> Grant:
        words = {"expires": "30d", "op": "evt_1"}
        given: Grant = certain("evt_1", lambda: meter.grant("acme", "credits", 50, **words))
        return given

    proxy.next(fault)
    first = give()
    assert give() == first
    assert books(beside) == {"evt_1": first}

    proxy.next(fault)
    if fault in HARMLESS:
        meter.grant("acme", "credits", 7)
    else:
        with pytest.raises(OutcomeUnknown) as caught:
            meter.grant("acme", "credits", 7)
        assert caught.value.op is None
    given = [grant.amount for grant in books(beside).values()]
    assert given == ([50] if fault == faulty.CUT_BEFORE else [50, 7])

    # What is void stays void: to take back again takes nothing, so it may be repeated.
    proxy.next(fault)
    try:
        assert meter.void("acme", "evt_1") in (50, 0)
    except OutcomeUnknown:
        meter.void("acme", "evt_1")
    assert books(beside)["evt_1"].expired == 50
    assert proxy.stats[fault.kind] == 3


# --- Many at once


@pytest.fixture
def make(matrix_server: Server, prefix: str) -> Iterator[Meter]:
    with Meter(
        matrix_server.url,
        plans=PLANS,
        prefix=prefix,
        clock=ManualClock(),
        timeout=60,
        max_connections=16,
    ) as made:
        yield made


def test_racing_callers_never_spend_a_grant_twice(make: Meter) -> None:
    make.consume("acme", "credits", 100)
    make.grant("acme", "credits", 200, priority=10, op="one")

    def spend(number: int) -> int:
        rng, spent = random.Random(number), 0
        for _ in range(20):
            amount = rng.randrange(1, 6)
            spent += amount if make.consume("acme", "credits", amount) else 0
        return spent

    spent = sum(together(spend, RACERS))
    (one,) = books(make).values()
    assert (one.consumed, one.remaining) == (spent, 200 - spent)
    assert spent == 200  # they asked for far more, in small change
    state = make.usage("acme")["credits"]
    assert (state.used, state.drawn, state.granted, state.overage) == (300, 200, 0, 0)


def test_racing_callers_of_one_id_give_one_grant(make: Meter) -> None:
    given = together(lambda _: make.grant("acme", "credits", 50, op="evt_1"), RACERS)
    assert set(given) == {given[0]}
    assert books(make) == {"evt_1": given[0]}


def test_racing_voids_take_it_back_once(make: Meter) -> None:
    make.grant("acme", "credits", 50, priority=10, op="evt_1")
    make.consume("acme", "credits", 8)
    assert sorted(together(lambda _: make.void("acme", "evt_1"), RACERS)) == [0] * 31 + [42]
    assert books(make)["evt_1"].expired == 42


# --- What is abandoned


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_reservations_abandoned_at_random_all_come_back(
    matrix_server: Server, prefix: str, seed: int
) -> None:
    """To the very grants that they came from, and none of them twice."""
    rng, clock = random.Random(seed), ManualClock()
    setup = {"plans": PLANS, "prefix": prefix, "clock": clock, "timeout": 60}
    with Meter(matrix_server.url, **setup) as meter, ThreadPoolExecutor(8) as pool:
        for number in range(8):
            meter.grant("acme", "credits", 500, priority=10 * number + 5, op=f"g{number}")
        amounts = [rng.randrange(1, 8) for _ in range(1000)]
        ttls = [rng.choice((60, 120, 3600)) for _ in range(1000)]

        def hold(number: int) -> Any:
            return meter.reserve("acme", "credits", amounts[number], ttl=ttls[number])

        held = list(pool.map(hold, range(1000)))
        assert all(held)
        taken = sum(amounts)
        found = books(meter)
        own = meter.usage("acme")["credits"].used - sum(g.held for g in found.values())
        assert (own, sum(g.held for g in found.values())) == (100, taken - 100)

        kept = rng.sample(range(1000), 300)  # the other 700 are never heard of again
        early = [n for n in kept if n % 2]
        consumed = sum(amounts[n] for n in early)
        list(pool.map(lambda n: held[n].commit(), early))
        for number in set(kept) - set(early):
            held[number].release()
        while clock.now_ms < ManualClock().now_ms + 3_600_000:
            clock.advance(seconds=60)
            meter.check("acme", "credits")
            books(meter)  # conserved at every moment
        meter.report("acme", "credits", 0)
        found = books(meter)
        state = meter.usage("acme")["credits"]
        assert sum(g.held for g in found.values()) == 0
        assert sum(g.consumed for g in found.values()) == state.drawn
        assert (state.used, state.overage) == (consumed, 0)
        assert state.remaining == 100 + 8 * 500 - consumed
        assert meter.usage("acme").levels[0].open_holds == 0
