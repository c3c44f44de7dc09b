"""What meterd ships for other people's tests: the clock, the fakes, the pytest fixtures."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Bucket, Code, Meter, MeterdError, Plan, Pool, Unavailable
from meterd.testing import ManualClock, async_fake, fake
from tests.client import hold_tools
from tests.client.meter_tools import PLANS, AnyMeter, fresh_prefix
from tests.support.servers import Server

pytest_plugins = "pytester"


# --- The clock


def test_manual_clock() -> None:
    clock = ManualClock()
    assert clock.now() == datetime(2025, 1, 1, tzinfo=UTC)
    assert clock.advance(days=31, hours=1) == clock.now_ms
    assert clock.now() == datetime(2025, 2, 1, 1, tzinfo=UTC)
    assert clock.advance(timedelta(milliseconds=5)) == clock.now_ms
    assert clock.advance(milliseconds=-5, seconds=-3600) == clock.now_ms
    assert clock.now() == datetime(2025, 2, 1, tzinfo=UTC)
    assert clock.set(datetime(2030, 1, 1, tzinfo=UTC)) == 1_893_456_000_000
    assert repr(clock) == "ManualClock(1893456000000)"
    assert ManualClock(5).now_ms == 5
    assert ManualClock(5).advance() == 5


def test_without_pytest(server: Server) -> None:
    clock = ManualClock(1_000)
    with Meter(server.url, plans=PLANS, prefix=fresh_prefix(), clock=clock) as meter:
        assert meter.consume("ana", {"tokens": 100, "api": 5})
        assert not meter.check("ana", "tokens")
        clock.advance(days=30)
        assert meter.check("ana", "api")
        assert not meter.check("ana", "tokens")
        clock.advance(days=1)
        assert meter.check("ana", "tokens")
        meter.forget("ana")


# --- The fakes


@pytest.fixture(params=["sync", "async"])
def make_fake(request: pytest.FixtureRequest) -> Any:
    if request.param == "sync":
        yield lambda *args, **named: AnyMeter(fake(*args, **named), None)
        return
    with asyncio.Runner() as runner:
        yield lambda *args, **named: AnyMeter(async_fake(*args, **named), runner)


def test_a_fake_is_a_whole_meter(make_fake: Any) -> None:
    clock = ManualClock()
    with make_fake(PLANS, clock=clock) as meter:
        assert meter.consume("ana", {"tokens": 95, "api": 1}, op="x").balance == 5
        assert meter.consume("ana", {"tokens": 95, "api": 1}, op="x").replayed
        assert meter.consume("ana", "tokens", 6).code is Code.USAGE_EXCEEDED
        clock.advance(days=31)
        assert meter.consume("ana", "tokens", 6).balance == 94
        assert meter.subjects() == ["ana"]
        assert meter.forget("ana") == 2


def test_a_fake_reserves(make_fake: Any) -> None:
    clock = ManualClock()
    with make_fake(hold_tools.PLANS, clock=clock) as meter:
        holds = [
            hold_tools.reserve(meter, "acme/ana", {"jobs": 4, "tokens": 50}, ttl=10 + n)
            for n in range(3)
        ]
        assert [bool(hold) for hold in holds] == [True, True, False]
        with holds[1] as hold:
            hold.spend("tokens", 7)
        assert hold_tools.used(meter) == (4, 57)
        clock.advance(seconds=10)
        assert hold_tools.used(meter) == (0, 7)
        assert holds[0].commit()["credits"].applied == 50
        assert meter.usage("acme").levels[0].open_holds == 0


def test_every_fake_is_its_own_store(make_fake: Any) -> None:
    with make_fake(PLANS) as one, make_fake([Plan("other", includes=[])]) as two, make_fake() as no:
        one.consume("ana", "tokens")
        assert two.subjects() == []
        assert set(two.plans()) == {"other"}
        assert no.plans() == {}
        assert one.usage("ana")["credits"].used == 1


def test_a_fake_on_the_real_clock(make_fake: Any) -> None:
    now = datetime.now(UTC)
    with make_fake(PLANS) as meter:
        ends = meter.consume("ana", "api")["api"].resets_at
        assert timedelta(seconds=50) < ends - now < timedelta(minutes=10)


def test_a_fake_that_is_down(make_fake: Any) -> None:
    plans = [
        Plan(
            "p",
            includes=[
                Pool("credits", 5),
                Bucket("open", 5, "1m", on_error="allow"),
                Bucket("shut", 5, "1m", on_error="deny"),
                Bucket("api", 5, "1m"),
            ],
            default=True,
        )
    ]
    meter = make_fake(plans, down=True, timeout=0.1)
    for call in (
        lambda: meter.consume("ana", "credits"),
        lambda: meter.consume("ana", {"open": 1, "credits": 1}),
        lambda: meter.consume("ana", "api"),
        lambda: meter.usage("ana"),
        meter.open,
    ):
        with pytest.raises(Unavailable):
            call()
    allowed = meter.consume("ana", "open")
    assert (allowed.allowed, allowed.degraded, allowed.code) == (True, True, Code.OK)
    denied = meter.consume("ana", {"open": 1, "shut": 1})
    assert (denied.allowed, denied.degraded, denied.code) == (False, True, Code.RATE_LIMITED)
    meter.close()


def test_a_fake_takes_what_a_meter_takes(make_fake: Any) -> None:
    calls: list[str] = []
    with make_fake(PLANS, prefix="x", observer=lambda verb, *_: calls.append(verb)) as meter:
        meter.consume("ana", "tokens")
    assert calls == ["consume"]


def test_without_fakeredis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    for made in (fake, async_fake):
        with pytest.raises(MeterdError, match=r'pip install "meterd\[testing\]"'):
            made()


def test_fakes_leave_no_warnings() -> None:
    async def main() -> None:
        meter = async_fake(PLANS)
        assert await meter.consume("ana", "tokens")
        await meter.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        meter = async_fake(PLANS)
        asyncio.run(_consume(meter))
        meter.abandon()
        del meter
        gc.collect()


async def _consume(meter: Any) -> None:
    assert await meter.consume("ana", "tokens")


# --- The pytest plugin

PLUGIN_TESTS = """
import asyncio

import pytest

from meterd import AsyncMeter, Bucket, Meter, Plan, Pool
from meterd.testing import ManualClock


@pytest.fixture
def meterd_plans():
    limits = [Pool("credits", 10, "month"), Bucket("api", 2, "1m")]
    return [Plan("free", includes=limits, default=True)]


def test_meter(meter, meter_clock):
    assert isinstance(meter, Meter)
    assert isinstance(meter_clock, ManualClock)
    assert meter.consume("ana", "credits", 10)
    assert not meter.consume("ana", "credits")
    meter_clock.advance(days=31)
    assert meter.consume("ana", "credits")


@pytest.mark.parametrize("turn", range(3))
def test_every_test_has_an_empty_store(meter, turn):
    assert list(meter.subjects()) == []
    assert meter.consume("ana", "credits", 10)
    meter.apply([Plan(f"p{turn}", includes=[])])
    assert len(meter.plans()) == 2


def test_async_meter(async_meter, meter, meter_clock):
    assert isinstance(async_meter, AsyncMeter)

    async def main():
        assert await async_meter.consume("ana", "credits", 4)
        calls = [async_meter.consume("ana", "credits") for _ in range(8)]
        assert sum(map(bool, await asyncio.gather(*calls))) == 6
        meter_clock.advance(days=31)
        return await async_meter.usage("ana")

    assert asyncio.run(main())["credits"].used == 0
    assert meter.usage("ana")["credits"].used == 0
    assert list(meter.subjects()) == ["ana"]


def test_async_meter_in_two_loops(async_meter):
    async def main():
        assert await async_meter.consume("ana", "credits", 1)

    asyncio.run(main())
    asyncio.run(main())


@pytest.mark.asyncio
async def test_async_meter_under_pytest_asyncio(async_meter):
    for left in (9, 8):
        assert (await async_meter.consume("ana", "credits")).balance == left


def test_unused_async_meter(async_meter):
    pass


def test_prefix_and_url(meter, meterd_url, meterd_prefix):
    with Meter(meterd_url, prefix=meterd_prefix, clock=ManualClock()) as other:
        assert set(other.plans()) == {"free"}
"""


def run_pytest(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(
        *("-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("-o", "asyncio_default_fixture_loop_scope=function", *args),
    )


def test_the_fixtures(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METERD_TEST_URL", raising=False)
    pytester.makepyfile(PLUGIN_TESTS)
    result = run_pytest(pytester)
    result.assert_outcomes(passed=9)


def test_the_fixtures_on_a_given_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("METERD_TEST_URL", server.url)
    before = set(server.admin.keys("test-*"))
    pytester.makepyfile(
        PLUGIN_TESTS
        + f"""

def test_the_server(meter, async_meter):
    assert meter.url == async_meter.url
    assert {server.socket!r} in meter.url
"""
    )
    run_pytest(pytester).assert_outcomes(passed=10)
    assert set(server.admin.keys("test-*")) == before  # nothing is left behind


def test_a_failing_test_leaves_no_trace_either(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("METERD_TEST_URL", server.url)
    pytester.makepyfile(
        """
        import asyncio

        from meterd import Bucket

        def test_sync(meter):
            meter.limiter("x", Bucket("b", 1, "1m")).consume("a")
            assert False

        def test_async(async_meter):
            async def main():
                await async_meter.limiter("x", Bucket("b", 1, "1m")).consume("a")
                assert False
            asyncio.run(main())

        def test_closed_by_hand(meter, async_meter):
            meter.close()
            asyncio.run(async_meter.close())
        """
    )
    result = run_pytest(pytester)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.no_fnmatch_line("*ResourceWarning*")
    assert server.admin.keys("test-*") == []


def test_without_plans_the_store_starts_empty(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("METERD_TEST_URL", server.url)
    pytester.makepyfile(
        """
        from meterd import Meter, Plan

        def test_it(meter, meterd_url, meterd_prefix, meter_clock):
            assert meter.plans() == {}
            assert meter.consume("ana", "credits").code == "NO_PLAN"
            plans = [Plan("free", includes=[])]
            with Meter(meterd_url, prefix=meterd_prefix, clock=meter_clock, plans=plans) as other:
                assert set(other.plans()) == {"free"}
        """
    )
    run_pytest(pytester).assert_outcomes(passed=1)


def test_the_plugin_is_registered_and_costs_others_nothing() -> None:
    (entry,) = (
        entry
        for entry in importlib.metadata.entry_points(group="pytest11")
        if entry.name == "meterd"
    )
    assert entry.value == "meterd.testing.plugin"
    code = (
        "import sys, meterd.testing.plugin; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'redis', 'msgpack'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
