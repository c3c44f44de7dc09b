"""What is refused, checked or merely looked at changes no byte, save that a pool may say so, once.

Amounts of 0 open nothing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import Bucket, Flag, Meter, Plan, Pool
from meterd.errors import MeterdError, PolicyError
from meterd.scripts import Scripts
from meterd.testing import ManualClock
from tests.engine.conftest import Make
from tests.engine.monitor import Monitor
from tests.engine.raw import database, snapshot
from tests.engine.test_declared_keys import runs_of
from tests.support.servers import Server

HYPOTHESIS = settings(deadline=None, suppress_health_check=list(HealthCheck))
SMALL = st.sampled_from([0, 1, 2, 3, 10, 60])
AMOUNT = st.sampled_from([0, 1, 2, 3, 7, 30, 61, 10**6, 10**15])
COST = st.sampled_from(["a", "b", "c", "sso", "other"])
COSTS = st.dictionaries(COST, AMOUNT, min_size=1, max_size=3)
PATH = st.sampled_from(["acme", "acme/team", "acme/team/ana", "acme/x", "globex", "globex/y"])
STEP = st.sampled_from([0, 1, 999, 10_000, 61_000, 3_600_000, 86_400_000, 40 * 86_400_000])


@st.composite
def limits(draw: Any, least: int = 1) -> list[Any]:
    found: list[Any] = []
    for name in ("a", "b", "c"):
        kind = draw(st.sampled_from(["pool", "fixed", "sliding", "token", "none"]))
        rates = draw(st.none() | st.just({name: 2, "a": 1}))
        if kind == "pool":
            reset = draw(st.sampled_from([None, "day", "month", "90m"]))
            anchors = [
                "subscription",
                "first_use",
                *(["calendar"] if reset in ("day", "month") else []),
            ]
            anchor = draw(st.sampled_from(anchors)) if reset else "subscription"
            found.append(
                Pool(
                    name,
                    draw(st.none() | SMALL),
                    reset,
                    anchor=anchor,
                    tz="America/New_York",
                    overage=draw(st.sampled_from([0, 0, 2, None])),
                    rollover=draw(SMALL) if reset and anchor != "first_use" else 0,
                    rates=rates,
                )
            )
        elif kind != "none":
            burst = draw(st.none() | st.just(5)) if kind == "token" else None
            per = draw(st.sampled_from(["10s", "1m", "1d"]))
            found.append(Bucket(name, draw(SMALL), per, algorithm=kind, burst=burst, rates=rates))
    if draw(st.booleans()) or len(found) < least:
        found.append(Flag("sso"))
    return found


@st.composite
def stories(draw: Any) -> tuple[list[Plan], list[Any], list[tuple[int, str, str, dict[str, int]]]]:
    """Plans; private limits of levels; and calls, each some time after the one before."""
    plans = [
        Plan("free", includes=draw(limits()), default=draw(st.booleans())),
        Plan("pro", includes=draw(limits())),
    ]
    private = draw(st.lists(st.tuples(PATH, limits()), max_size=2))
    verb = st.sampled_from(["consume", "consume", "report", "refund", "check", "usage"])
    calls = draw(st.lists(st.tuples(STEP, verb, PATH, COSTS), min_size=3, max_size=14))
    return plans, private, calls


def changed(before: Any, after: Any) -> set[bytes]:
    return {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def tell(server: Server, story: Any, op: bool) -> None:
    """Runs a story; whatever is refused, raises or only looks must not have changed a figure."""
    plans, private, calls = story
    client = database(server, 5)
    client.flushdb()
    clock = ManualClock()
    url = f"{server.url}?db=5"
    with Meter(url, plans=plans, clock=clock, timeout=10) as meter:
        for path, own in private:
            with suppress(PolicyError):  # another kind than a level above has
                meter.subscribe(path, limits=own)
        for number, (step, verb, path, costs) in enumerate(calls):
            clock.advance(milliseconds=step)
            before, figures = snapshot(client), meter.usage(path).as_dict()
            told = {*meter._keys.shared(meter._keys.path(path))}
            options = (
                {"op": f"op{number}"} if op and verb in ("consume", "report", "refund") else {}
            )
            quiet = verb in ("check", "usage")
            try:
                if verb == "usage":
                    meter.usage(path)
                else:
                    decision = getattr(meter, verb)(path, costs, **options)
                    quiet = quiet or not decision.allowed
            except MeterdError:
                quiet = True
            after = snapshot(client)
            if quiet and changed(before, after) & told:
                # A pool has said, for once, that it is exhausted.
                assert (verb, decision.code) == ("consume", "USAGE_EXCEEDED")
                assert meter.usage(path).as_dict() == figures
                known = {*meter._keys.path(path).keys, *told, meter._keys.policies}
                assert changed(before, after) <= known
                before = snapshot(client)
                assert not meter.consume(path, costs)
                assert snapshot(client) == before
                continue
            if quiet:
                # Plans a process meets for the first time it stores, whatever then happens.
                assert changed(before, after) <= {meter._keys.policies}, (verb, path, costs)
                if verb in ("check", "usage"):
                    assert after == before
                continue
            allowed = {*meter._keys.path(path).keys, meter._keys.policies, *told}
            if op:
                allowed.add(meter._keys.op(meter._keys.path(path), f"op{number}"))
            assert changed(before, after) <= allowed
            if verb == "consume" and not any(costs.values()) and not op:
                root = meter._keys.path(path).keys[0]
                assert changed(before, after) <= ({root} - before.keys()) | {meter._keys.policies}
    client.flushdb()


@given(story=stories(), op=st.booleans())
@settings(HYPOTHESIS, max_examples=150)
def test_what_is_refused_changes_nothing(server: Server, story: Any, op: bool) -> None:
    tell(server, story, op)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_is_refused_changes_nothing_for_longer(server: Server) -> None:
    given(story=stories(), op=st.booleans())(
        settings(HYPOTHESIS, max_examples=5000)(lambda story, op: tell(server, story, op))
    )()


# Looking ------------------------------------------------------------------------------------------

PLANS = [
    Plan(
        "free",
        includes=[
            Pool("credits", 5, "month", anchor="calendar", tz="Europe/Berlin"),
            Bucket("api", 3, "1m", rates={"credits": 1}),
        ],
        default=True,
    ),
    Plan("pro", includes=[Pool("credits", 50, "day")]),
    Plan("more", includes=[Bucket("seats", 3, "1d")], group="addons"),
]
READING = {
    "GET",
    "MGET",
    "HGET",
    "SMEMBERS",
    "TIME",
    "FCALL_RO",
    "EVALSHA",
    "EVAL",
    "ECHO",
    "HELLO",
    "CLIENT",
}


@pytest.mark.parametrize("functions", [True, False])
def test_check_and_usage_send_no_write(
    server: Server, make: Make, client: redis.Redis, functions: bool
) -> None:
    """Seen and unseen subjects, plans to join, a newer catalog, zones to write out further."""
    clock = ManualClock()
    first = make(PLANS, clock=clock)
    first.consume("acme", "credits", 2)
    first.subscribe("acme/team", "pro")
    looking = make(clock=clock, functions=functions)  # it has never stored a policy
    login = looking.limiter("login", Bucket("ip", 3, "1m"))
    first.limiter("login", Bucket("ip", 2, "1m")).consume("::1")

    def look() -> None:
        for subject in ("acme", "acme/team", "unseen", "acme/team/x"):
            for join in (None, "pro", "more"):
                looking.check(subject, "credits", 1, join=join)
                looking.check(subject, {"credits": 10**6, "seats": 1}, join=join)
                looking.check(subject, {"nothing": 0}, join=join)
                looking.usage(subject, join=join)
        assert login.check("::1", 2)
        login.check("::2")

    if functions:
        look()  # the library is loaded, the policies are known to the server
    for round_ in range(3):
        if round_ == 1:
            first.apply([Plan("pro", includes=[Pool("credits", 70, "day")])])
            looking._store.looked = 0.0  # time to look at the catalog again
        if round_ == 2:
            clock.advance(days=365 * 30)
        before, changes = (
            snapshot(client),
            client.info("persistence")["rdb_changes_since_last_save"],
        )
        with Monitor(server) as monitor:
            look()
            sent = monitor.commands()
        assert {command.name for command in sent} <= READING
        assert {run.entry for run in runs_of(sent, Scripts())} == {"check", "usage"}
        assert snapshot(client) == before
        assert client.info("persistence")["rdb_changes_since_last_save"] == changes
    # What was learned by looking is no reason to leave out a write later.
    assert looking.consume("acme", "credits", 1, join="more")
    assert first.usage("acme").limits


def test_what_a_check_has_learned_is_stored_when_it_is_used(
    make: Make, client: redis.Redis
) -> None:
    """A record never names a policy that the store does not have."""
    clock = ManualClock()
    first = make(PLANS, clock=clock)
    first.consume("acme", "credits", 2)
    looking = make(clock=clock)
    for join in ("more", "pro", None):
        assert looking.check("acme", "credits", join=join)
        assert looking.check("new", "credits", join=join)
    first.apply([Plan("free", includes=[Pool("credits", 70, "day")], default=True)])
    looking._store.looked = 0.0
    assert looking.check("acme", "credits", join="more")
    assert looking.consume("acme", "credits", join="more")
    assert looking.consume("new", "credits", join="pro")
    for subject in ("acme", "new"):
        record = client.get(looking._keys.path(subject).keys[0])
        assert client.hexists(looking._keys.policies, record[2:10])
        assert make(clock=clock).usage(subject).limits


# Amounts of 0, and beyond what a counter holds ----------------------------------------------------

TIMED = [
    Plan(
        "free",
        includes=[
            Pool("first", 5, "day", anchor="first_use", rates={"x": 1}),
            Bucket("fixed", 5, "1m", algorithm="fixed", rates={"x": 1}),
            Bucket("token", 5, "1m", algorithm="token", rates={"x": 1}),
            Flag("sso"),
        ],
        default=True,
    )
]


@pytest.mark.parametrize("verb", ["consume", "report", "refund"])
@pytest.mark.parametrize("costs", [{"x": 0}, {"x": 0, "sso": 1}, {"sso": 3}])
def test_amounts_of_0_open_nothing(
    make: Make, client: redis.Redis, verb: str, costs: dict[str, int]
) -> None:
    clock = ManualClock()
    meter = make(TIMED, clock=clock)
    decision = getattr(meter, verb)("acme", costs)
    assert decision.allowed
    assert [state.applied for state in decision.limits] == [0] * len(decision.limits)
    assert meter._keys.path("acme").keys[0] in snapshot(client) or verb == "refund"
    assert {state.resets_at_ms for state in meter.usage("acme").limits} == {None}
    # A record that is there stays as it is, to the instant it was last seen.
    meter.consume("acme", "x", 2)
    before = snapshot(client)
    clock.advance(seconds=5)
    assert getattr(meter, verb)("acme", costs)
    clock.advance(days=3)
    assert getattr(meter, verb)("acme", costs)
    assert snapshot(client) == before
    # It fits even where nothing else does.
    meter.report("acme", "x", 10**6)
    before = snapshot(client)
    assert meter.consume("acme", "x", 0)
    assert not meter.consume("acme", "x", 1)
    assert snapshot(client) == before


def test_a_counter_never_passes_what_it_holds(make: Make, client: redis.Redis) -> None:
    meter = make(
        [Plan("free", includes=[Pool("x", 5, overage=None)], default=True)], clock=ManualClock()
    )
    for _ in range(9):
        meter.report("a", "x", 10**15)
    before = snapshot(client)
    for verb in (meter.consume, meter.report, meter.check):
        with pytest.raises(PolicyError, match="'x' would pass"):
            verb("a", "x", 1)
    assert snapshot(client) == before
    meter.refund("a", "x", 1)
    assert meter.consume("a", "x", 1)
    assert meter.usage("a").limits[0].used == 9 * 10**15


@pytest.mark.parametrize("rollover", [0, 10])
def test_a_carried_debt_is_bounded_too(make: Make, rollover: int) -> None:
    """Nine times the most, period after period: without a bound the debt would turn into credit."""
    clock = ManualClock()
    pool = Pool("x", 5, "day", overage=None, carry_debt=True, rollover=rollover)
    meter = make([Plan("free", includes=[pool], default=True)], clock=clock)
    reported = 0
    for day in range(5):
        try:
            for _ in range(9):
                meter.report("a", "x", 10**15)
                reported += 10**15
        except PolicyError:
            assert reported == 9 * 10**15
        clock.advance(days=1)
        (state,) = meter.usage("a").limits
        assert state.remaining == 5 * (day + 2) - reported
    assert reported == 9 * 10**15


def test_an_override_that_waited_for_a_bucket_is_cut_to_what_one_holds(make: Make) -> None:
    """Made when no plan said what kind of limit it would be."""
    clock = ManualClock()
    bucket = {
        kind: Bucket(kind, 5, "366d", algorithm=kind) for kind in ("fixed", "sliding", "token")
    }
    other = Plan("more", includes=list(bucket.values()), group="addons")
    meter = make([Plan("free", includes=[Flag("sso")], default=True), other], clock=clock)
    for kind in bucket:
        meter.override("a", kind, limit=10**15)
        meter.override("b", kind, limit=None)
    meter.subscribe("a", "more")
    meter.subscribe("b", "more")
    for kind in bucket:
        used = 0
        for _ in range(3):
            used += meter.report("a", kind, 4 * 10**11)[kind].applied
            assert meter.check("a", kind)[kind].used == used
        assert used == 10**12
        assert meter.check("b", kind)[kind].limit == 5
