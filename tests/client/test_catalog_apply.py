"""Applies that meet each other, servers that may evict, function libraries of several versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import Bucket, CatalogMismatch, Flag, Meter, Plan, PolicyError, UnsafeServer
from meterd.scripts import Scripts
from meterd.testing import ManualClock
from tests.client.meter_tools import (
    EXTRA,
    PACK,
    PRO,
    AnyMeter,
    Make,
    look_again,
    pool_plan,
)
from tests.support.servers import Server


def before_first(meter: AnyMeter, part: bytes, act: Callable[[], object]) -> None:
    """Do something right before the meter's first request with `part` in it."""
    transport = meter.raw._transport
    send, done = transport.send, []

    def first(request: Any, timeout: float) -> Any:
        if part in request.packed and not done:
            done.append(True)
            act()
        return send(request, timeout)

    transport.send = first


def rival(meter: AnyMeter, server: Server, clock: ManualClock, plans: Any) -> Meter:
    return Meter(server.url, plans=plans, prefix=meter.raw._keys.prefix, clock=clock, timeout=5)


def test_two_applies_at_once_both_count(make: Make, server: Server, clock: ManualClock) -> None:
    meter = make([pool_plan(1)])
    meter.open()
    with rival(meter, server, clock, None) as other:
        before_first(meter, b"_apply\r\n", lambda: other.apply([EXTRA]))
        meter.apply([pool_plan(2)])
    assert meter.revision == 3
    assert set(meter.plans()) == {"base", "extra"}


def test_an_apply_that_lost_the_race_is_judged_anew(
    make: Make, server: Server, clock: ManualClock
) -> None:
    meter, more = make([pool_plan(1), EXTRA]), Plan("more", includes=[])
    meter.open()
    with rival(meter, server, clock, None) as other:
        before_first(meter, b"_apply\r\n", lambda: other.apply([more], remove=["extra"]))
        with pytest.raises(PolicyError, match="remove"):
            meter.apply([], remove=["extra"])
    assert meter.plans(retired=True) == {"extra": EXTRA}


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_two_fill_an_empty_catalog_at_once(
    make: Make, server: Server, clock: ManualClock, same: bool
) -> None:
    """Both read an empty catalog; the other one is quicker to write."""
    plans = [pool_plan(1 if same else 2)]
    meter = make([pool_plan(1)])
    with rival(meter, server, clock, None) as quick:
        before_first(meter, b"_apply\r\n", lambda: quick.apply(plans))
        if same:
            meter.open()
        else:
            with pytest.raises(CatalogMismatch):
                meter.open()
        assert quick.plans()["base"] == plans[0]
        assert quick.revision == 1


def test_two_that_apply_the_same_at_once_make_one_revision(
    make: Make, server: Server, clock: ManualClock
) -> None:
    meter = make([pool_plan(1)])
    meter.open()
    with rival(meter, server, clock, None) as other:
        before_first(meter, b"_apply\r\n", lambda: other.apply([EXTRA]))
        assert meter.apply([EXTRA]).added
    assert meter.revision == 2


def test_many_apply_at_once(server: Server, make: Make, clock: ManualClock) -> None:
    home = make([pool_plan(1)])
    home.open()
    meters = [rival(home, server, clock, None) for _ in range(6)]

    def apply(at: int) -> None:
        for turn in range(3):
            meters[at].apply([Plan(f"p{at}-{turn}", includes=[Flag("x")])])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(apply, range(6)))
    for meter in meters:
        meter.close()
    assert len(home.plans()) == 19
    assert home.revision == 19


def after_first(meter: AnyMeter, part: bytes, act: Callable[[], Any]) -> None:
    """Do something between the first reply to a request with `part` in it and its reader."""
    transport = meter.raw._transport
    send, done = transport.send, []

    def mine(request: Any) -> bool:
        if part not in request.packed or done:
            return False
        done.append(True)
        return True

    def late(request: Any, timeout: float) -> Any:
        acting = mine(request)
        reply = send(request, timeout)
        if acting:
            act()
        return reply

    async def late_async(request: Any, timeout: float) -> Any:
        acting = mine(request)
        reply = await send(request, timeout)
        if acting:
            await act()
        return reply

    transport.send = late if meter.runner is None else late_async


def test_a_late_answer_of_an_empty_catalog_empties_nothing(make: Make) -> None:
    """Two calls open the store at once; the slower one read it before the quicker one filled it."""
    meter = make([pool_plan(1)])
    late: list[int] = []

    def watch() -> None:
        before_each(meter, lambda: late.append(meter.revision))

    async def awaited() -> None:
        await meter.raw.open()
        watch()

    def quicker() -> Any:
        if meter.runner is not None:
            return awaited()
        meter.raw.open()
        return watch()

    after_first(meter, b"{store}:catalog", quicker)
    meter.open()
    assert meter.revision == 1
    assert set(late) <= {1}
    assert meter.consume("ana", "credits")


def test_a_late_answer_of_an_older_catalog_takes_nothing_back(make: Make) -> None:
    meter = make([pool_plan(1)])
    meter.open()
    after_first(meter, b"{store}:catalog", lambda: meter.raw.apply([pool_plan(2)]))
    assert meter.plans()["base"] == pool_plan(2)
    assert meter.revision == 2


@pytest.mark.parametrize("join", [None, "base"])
def test_the_catalog_changes_while_a_subject_is_first_seen(
    make: Make, server: Server, clock: ManualClock, join: str | None
) -> None:
    """A record is stamped with the revision whose plans it got, and names what is stored."""
    meter = make([pool_plan(1)])
    meter.open()
    with rival(meter, server, clock, None) as other:

        def change() -> Any:
            other.apply([pool_plan(2)])
            return meter.raw.plans()

        after_first(meter, b"\r\nHSET\r\n", change)
        assert meter.consume("ana", "credits", join=join)
    assert meter.revision == 2
    with server.client() as client:
        record = client.get(meter.raw._keys.path("ana").keys[0])
        assert client.hexists(meter.raw._keys.policies, record[2:10])
    assert make(None).usage("ana")["credits"].limit == 2
    assert make(None).consume("ana", "credits")["credits"].limit == 2


@pytest.mark.parametrize("part", [b"_consume\r\n", b"\r\nHSET\r\n"], ids=["answer", "policy"])
def test_the_catalog_changes_while_a_subject_is_moved(
    make: Make, server: Server, clock: ManualClock, part: bytes
) -> None:
    """It never stays behind because it was moved by one revision and stamped with the next."""
    meter = make([pool_plan(10), EXTRA])
    meter.subscribe("ana", "extra")
    with rival(meter, server, clock, None) as other:
        other.apply([pool_plan(20)])
        look_again(meter)
        meter.consume("bob", "credits")
        assert meter.revision == 2

        def change() -> Any:
            other.apply([pool_plan(30)])
            return meter.raw.plans()

        after_first(meter, part, change)  # ana is behind; what moves her is made ready
        assert meter.consume("ana", "credits")
        assert meter.revision == 3
    for one in (meter, make(None)):
        assert one.consume("ana", "credits")["credits"].limit == 30


def before_each(meter: AnyMeter, act: Callable[[], object]) -> None:
    transport = meter.raw._transport
    send = transport.send

    def noting(request: Any, timeout: float) -> Any:
        act()
        return send(request, timeout)

    transport.send = noting


def test_an_emptied_store_is_filled_again(make: Make, server: Server) -> None:
    meter = make([pool_plan(1)])
    assert meter.consume("ana", "credits")
    for key in server.admin.scan_iter(f"{meter.raw._keys.prefix}:*"):
        server.ask("DEL", key)
    assert meter.plans() == {} or meter.plans()["base"] == pool_plan(1)
    assert meter.consume("ana", "credits")
    assert meter.plans()["base"] == pool_plan(1)
    assert make(None).consume("ana", "credits", 0)["credits"].used == 1


# --- Servers that may evict


@pytest.fixture
def evicting(server: Server) -> Iterator[None]:
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    yield
    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.usefixtures("evicting")
def test_a_server_that_may_evict_is_refused(make: Make, server: Server) -> None:
    meter = make()
    for call in (meter.open, meter.apply, lambda: meter.consume("ana", "tokens")):
        with pytest.raises(UnsafeServer, match=r"maxmemory-policy is 'allkeys-lru'.*noeviction"):
            call()
    assert make(None).plans() == {}
    # Buckets alone are cheap to lose.
    make([Plan("p", includes=[Bucket("api", 5, "1m")], default=True)]).open()
    buckets = make(None)
    assert buckets.consume("ana", "api")
    with pytest.raises(UnsafeServer):
        buckets.apply([PACK])
    assert set(buckets.plans()) == {"p"}
    assert buckets.apply([PACK], dry_run=True).added
    make([PACK], apply=True, accept_eviction=True).open()
    assert set(buckets.plans()) == {"p", "pack"}
    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    buckets.apply([PRO])


# --- Function libraries of several versions


def libraries(server: Server) -> set[str]:
    listed = server.admin.function_list("meterd_*")
    names = [entry["library_name"] if isinstance(entry, dict) else entry[1] for entry in listed]
    return set(names)


def test_old_function_libraries_are_pruned(make: Make, server: Server) -> None:
    server.ask("FUNCTION", "FLUSH")
    versions = [Scripts(prelude=f"-- version {number}\n") for number in range(5)]
    names = [scripts.library_name for scripts in versions]
    assert len(set(names)) == 5
    meters = [make(None, scripts=scripts) for scripts in versions]
    for number, meter in enumerate(meters, 1):
        meter.apply([pool_plan(number)])
        assert libraries(server) == set(names[max(0, number - 3) : number])
    # Applied by a version that is among them: nothing more goes.
    meters[3].apply([pool_plan(6)])
    assert libraries(server) == set(names[2:])
    # Who still runs a pruned version loads it again when it is missed.
    look_again(meters[0])
    assert meters[0].consume("ana", "credits").balance == 5
    assert libraries(server) == {names[0], *names[2:]}
    assert meters[4].consume("ana", "credits").balance == 4
    server.ask("FUNCTION", "FLUSH")
    assert meters[0].consume("ana", "credits").balance == 3
