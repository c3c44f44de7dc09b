"""Events and billing when many charge at once, and when a harvest is killed half way."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from meterd import Meter, Plan, Pool
from meterd.flow import Send
from meterd.rounds import drive
from meterd.testing import ManualClock
from tests.faults import racers
from tests.faults.test_races import BOTH_WAYS, THREADS, clock, make, together
from tests.support.servers import Server

__all__ = ["clock", "make"]  # fixtures
LIMIT = 640
THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 1)
PLAN = Plan(
    "race",
    default=True,
    includes=[
        Pool("credits", LIMIT, "day", warn_at=THRESHOLDS, warn_below=(1, 50), overage=9, bill="use")
    ],
)


def told(meter: Meter, root: str, stream: int = 0) -> list[list[Any]]:
    key = meter._keys.shared(meter._keys.path(root))[stream]
    (rows,) = meter._run(meter._session.plain(key, (b"XRANGE", key, b"-", b"+")))
    return [msgpack.unpackb(fields[1]) for _, fields in rows]


def said(meter: Meter, root: str = "acme") -> Counter[str]:
    return Counter(" ".join([row[0], *row[10:]]) for row in told(meter, root))


WARNINGS = [*(f"{share:.2f}".rstrip("0") for share in THRESHOLDS[:-1]), "1.0", "1", "50"]
ONCE = Counter([*(f"warn {threshold}" for threshold in WARNINGS), "exhausted", "overage"])


@BOTH_WAYS
def test_each_threshold_speaks_once_among_64_callers(
    make: Callable[..., Meter], clock: ManualClock
) -> None:
    meter = make(PLAN)
    for day in range(2):
        together(lambda _: [meter.consume("acme", "credits") for _ in range(12)])
        assert meter.usage("acme")["credits"].used == LIMIT + 9 < THREADS * 12
        assert said(meter) - Counter({"closed": day}) == Counter(
            {name: (day + 1) * n for name, n in ONCE.items()}
        )
        clock.advance(days=1)


@BOTH_WAYS
def test_harvests_among_charges_bill_every_unit_once(
    make: Callable[..., Meter], clock: ManualClock
) -> None:
    meter = make(PLAN)

    def work(number: int) -> int:
        if number % 8 == 0:
            return sum(meter.harvest() for _ in range(3))
        subject = f"acme/{number % 3}"
        bought = sum(bool(meter.consume(subject, "credits")) for _ in range(8))
        meter.refund(subject, "credits", 1)
        return bought

    for number in range(3):
        meter.subscribe(f"acme/{number}", "race")
    together(work)
    clock.advance(days=1)
    meter.harvest()
    billed: Counter[str] = Counter()
    closed = {row[1]: row[5] for row in told(meter, "acme") if row[0] == "closed"}
    identifiers = Counter((row[0], row[1], row[3]) for row in told(meter, "acme", 1))
    for row in told(meter, "acme", 1):
        billed[row[0]] += row[2]
    assert dict(billed) == closed
    assert set(closed) == {"acme", "acme/0", "acme/1", "acme/2"}
    assert set(identifiers.values()) == {1}


def test_a_harvest_killed_between_any_two_scripts_goes_on(
    make: Callable[..., Meter], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a script did is done; the next walk does the rest, and no unit twice."""
    monkeypatch.setattr("meterd.harvest._PAGE", 1)
    monkeypatch.setattr("meterd.harvest._PAGES", 1)
    roots = [f"root{number}" for number in range(12)]
    meter = make(PLAN)
    for root in roots:
        meter.consume(root, "credits", 7)
    for stop in range(1, 14):
        rounds, seen = meter._harvest.rounds(), 0
        steps = next(rounds)
        while seen < stop:
            seen += sum(isinstance(s, Send) and b"harvest" in s.request.packed for s in steps)
            try:
                steps = rounds.send(carried_out(meter, steps))
            except StopIteration:
                break
        rounds.close()  # as a process that dies: nothing of it goes on
        done = sum(bool(told(meter, root, 1)) for root in roots)
        assert done >= min(stop, 12)
    for root in roots:
        assert [row[2] for row in told(meter, root, 1)] == [7]


def carried_out(meter: Meter, steps: Any) -> Any:
    def once() -> Any:
        return (yield steps)

    return drive(meter._transport, once())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_processes_race_to_the_end_of_a_pool(matrix_server: Server, prefix: str, kind: str) -> None:
    """Every process finds the pool exhausted; one says so."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [
        context.Process(
            target=racers.race, args=(matrix_server.url, prefix, seed, kind, start, results)
        )
        for seed in range(4)
    ]
    for process in processes:
        process.start()
    start.set()
    bought = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(bought) == racers.CREDITS
    with Meter(matrix_server.url, plans=[racers.PLAN], prefix=prefix, timeout=60) as meter:
        assert said(meter) == Counter(["warn 0.8", "exhausted"])
