"""A meter's life: made without I/O, opened, closed, forked; where its server comes from."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio

from meterd import (
    AsyncKeys,
    AsyncMeter,
    Bucket,
    Keys,
    Meter,
    OutcomeUnknown,
    PolicyError,
    Unavailable,
)
from meterd.pipeline import AsyncPipeline, Pipeline
from tests.client.meter_tools import PLANS, Make, fresh_prefix, requests_of
from tests.support import proxy as faulty
from tests.support.proxy import FaultProxy
from tests.support.servers import Server, wait_until

# --- The two are one


def public(kind: type) -> dict[str, Any]:
    return {
        name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")
    }


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_both_meters_have_the_same_verbs_and_signatures() -> None:
    ours, theirs = public(Meter), public(AsyncMeter)
    assert set(theirs) - set(ours) == {"aclose", "abandon"}
    assert set(ours) - set(theirs) == set()
    assert len(ours) > 18
    assert parameters(Meter) == parameters(AsyncMeter)
    for name, found in ours.items():
        assert isinstance(found, property) == isinstance(theirs[name], property), name
        if not isinstance(found, property):
            mine, other = getattr(Meter, name), getattr(AsyncMeter, name)
            assert parameters(mine) == parameters(other), name
            assert mine.__doc__, name
            assert other.__doc__, name


def test_both_pipelines_have_the_same_verbs_and_signatures() -> None:
    assert public(Pipeline).keys() == public(AsyncPipeline).keys()
    for name in public(Pipeline):
        mine = parameters(getattr(Pipeline, name))
        assert mine == parameters(getattr(AsyncPipeline, name)), name
        if name != "execute":  # they are those of a meter, but for what a batch cannot do
            alone = parameters(getattr(Meter, name))
            assert mine == [row for row in alone if row[0] != "wait"], name


def test_both_limiters_have_the_same_verbs_and_signatures(server: Server) -> None:
    limits = (Bucket("ip", 1, "1m"),)
    one: Any = Meter(server.url).limiter("x", *limits)
    two: Any = AsyncMeter(server.url).limiter("x", *limits)
    assert public(type(one)).keys() == public(type(two)).keys()
    for name in public(type(one)):
        assert parameters(getattr(one, name)) == parameters(getattr(two, name)), name


def test_both_holds_have_the_same_names_and_signatures(server: Server) -> None:
    one: Any = Meter(server.url).hold("acme", "x")
    two: Any = AsyncMeter(server.url).hold("acme", "x")
    assert public(type(one)).keys() == public(type(two)).keys()
    assert {"commit", "decision", "release", "renew", "spend"} < public(type(one)).keys()
    for name, found in public(type(one)).items():
        if callable(found):
            assert parameters(getattr(one, name)) == parameters(getattr(two, name)), name


def test_both_kinds_of_keys_have_the_same_verbs_and_signatures() -> None:
    assert public(Keys).keys() == public(AsyncKeys).keys()
    for name in public(Keys):
        assert parameters(getattr(Keys, name)) == parameters(getattr(AsyncKeys, name)), name
        assert getattr(Keys, name).__doc__, name


PROMISED_OF_KEYS = {
    "create": (
        "(owner, *, limits=(), join=None, name=None, expires=None, meta=None, prefix='mk', "
        "sha256=None)"
    ),
    "verify": "(secret, costs=None, amount=1, *, auto=True, op=None)",
    "get": "(id)",
    "list": "(owner)",
    "update": (
        "(id, *, enabled=UNCHANGED, limits=UNCHANGED, name=UNCHANGED, expires=UNCHANGED, "
        "meta=UNCHANGED)"
    ),
    "revoke": "(id)",
    "rotate": "(id, *, overlap='0s')",
}


@pytest.mark.parametrize(("name", "promised"), PROMISED_OF_KEYS.items())
def test_signatures_of_keys_are_the_promised_ones(name: str, promised: str) -> None:
    assert bare(getattr(Keys, name)) == promised


PROMISED = {
    "check": "(subject, costs, amount=1, *, join=None)",
    "consume": "(subject, costs, amount=1, *, op=None, join=None, wait=0)",
    "report": "(subject, costs, amount=1, *, op=None, join=None)",
    "refund": "(subject, costs=None, amount=1, *, of=None, op=None)",
    "reserve": (
        "(subject, costs, amount=1, *, ttl=60, op=None, join=None, wait=0, keepalive=False)"
    ),
    "hold": "(subject, hold_id)",
    "usage": "(subject, *, join=None)",
    "apply": "(plans=None, *, dry_run=False, remove=())",
    "subscribe": (
        "(subject, plan=None, *, limits=(), change='keep', when='now', anchor=None, op=None)"
    ),
    "unsubscribe": "(subject, plan, *, when='now')",
    "override": "(subject, name, /, *, expires=None, clear=False, **fields)",
    "adjust": "(subject, name, *, used)",
    "set_meta": "(subject, mapping)",
    "forget": "(subject)",
    "subjects": "(root=None)",
    "limiter": "(name, *limits)",
}


@pytest.mark.parametrize(("name", "promised"), PROMISED.items())
def test_signatures_are_the_promised_ones(name: str, promised: str) -> None:
    assert bare(getattr(Meter, name)) == promised


def bare(verb: Callable[..., Any]) -> str:
    """The signature without annotations and without self."""
    found = inspect.signature(verb)
    return str(
        found.replace(
            parameters=[p.replace(annotation=p.empty) for p in list(found.parameters.values())[1:]],
            return_annotation=found.empty,
        )
    )


def test_the_constructor_takes_what_was_promised() -> None:
    given = {p.name: p.default for p in inspect.signature(Meter).parameters.values()}
    del given["scripts"], given["functions"]  # for the testing kit
    assert given == {
        "url": None,
        "plans": None,
        "apply": False,
        "prefix": "meterd",
        "timeout": 1.0,
        "max_connections": 50,
        "clock": None,
        "op_retention": "24h",
        "accept_eviction": False,
        "observer": None,
        "client": None,
        "refusal_cache": None,
    }


# --- Opening and closing


def test_making_one_does_no_io(make: Make) -> None:
    meter = make(url="redis://192.0.2.1:1/0")
    assert meter.url == "redis://192.0.2.1:1/0"
    assert meter.revision == 0
    meter.limiter("login", Bucket("ip", 5, "1m"))
    meter.close()
    with pytest.raises(PolicyError, match="closed"):
        meter.consume("ana", "tokens")


def test_open_says_what_is_wrong(make: Make) -> None:
    with pytest.raises(Unavailable, match=r"cannot reach redis://127\.0\.0\.1:1/0"):
        make(url="redis://127.0.0.1:1/0").open()
    with (
        pytest.raises(Unavailable, match="cannot reach"),
        make(url="redis://127.0.0.1:1/0", timeout=0.2),
    ):
        pytest.fail("entered")
    with pytest.raises(Unavailable):
        make(url="redis://127.0.0.1:1/0", timeout="200ms").consume("ana", "tokens")


def test_the_first_call_connects(make: Make) -> None:
    meter = make()
    assert meter.consume("ana", "tokens")
    assert meter.revision == 1


def test_with_opens_and_closes(make: Make) -> None:
    meter = make()
    with meter as entered:
        assert entered is meter
        assert meter.revision == 1
        sent = requests_of(meter)
        assert meter.consume("ana", "tokens")
        # Nothing but the charge and, the first time, the policy it names.
        assert len(sent) <= 3
    with pytest.raises(PolicyError, match="closed"):
        meter.consume("ana", "tokens")


def test_open_returns_the_meter_and_may_be_repeated(make: Make) -> None:
    meter = make()
    assert meter.raw is meter.open()
    assert meter.raw is meter.open()
    assert meter.consume("ana", "tokens")


def test_no_secret_is_shown(make: Make, server: Server) -> None:
    meter = make(url="redis://ana:s3cret@127.0.0.1:1/0?protocol=3", prefix="pre")
    assert "s3cret" not in repr(meter.raw) + meter.url
    assert "ana@127.0.0.1" in meter.url
    assert "prefix='pre'" in repr(meter.raw)
    with pytest.raises(Unavailable) as caught:
        meter.open()
    assert "s3cret" not in str(caught.value)


def test_embedded(make: Make) -> None:
    def sync_life() -> int:
        with Meter.embedded(plans=PLANS, timeout=5, op_retention="1h") as meter:
            assert meter.consume("ana", "tokens", 3)
            assert meter.usage("ana")["credits"].used == 3
            pid: int = meter._server.pid
            with Meter(meter.url) as other:
                assert other.consume("ana", "tokens").balance == 96
        with pytest.raises(PolicyError, match="closed"):
            meter.consume("ana", "tokens")
        return pid

    async def async_life() -> int:
        async with AsyncMeter.embedded(plans=PLANS, timeout=5) as meter:
            assert await meter.consume("ana", "tokens", 3)
            pid: int = meter._server.pid
        return pid

    for pid in (sync_life(), asyncio.run(async_life())):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_embedded_meter_that_cannot_open_leaves_no_server(monkeypatch: Any) -> None:
    from meterd import embedded

    started: list[embedded.EmbeddedServer] = []
    really = embedded.EmbeddedServer.start.__func__  # type: ignore[attr-defined]

    def start(cls: Any) -> Any:
        started.append(really(cls))
        return started[-1]

    monkeypatch.setattr(embedded.EmbeddedServer, "start", classmethod(start))
    for kind in (Meter, AsyncMeter):
        with pytest.raises(PolicyError, match="plans"):
            kind.embedded(plans=5)  # type: ignore[attr-defined]
    assert [server.pid for server in started] == [0, 0]


# --- Threads, forks, loops


def test_threads_share_one_meter(server: Server) -> None:
    with (
        Meter(server.url, plans=PLANS, prefix=fresh_prefix(), max_connections=4, timeout=20) as m,
        ThreadPoolExecutor(12) as pool,
    ):
        decisions = list(pool.map(lambda _: m.consume("ana", "tokens"), range(150)))
        assert sum(map(bool, decisions)) == 100
        assert sorted(d.balance or 0 for d in decisions if d) == list(range(100))
        assert m.usage("ana")["credits"].used == 100
        m.forget("ana")


def test_tasks_share_one_meter(server: Server) -> None:
    async def main() -> None:
        prefix = fresh_prefix()
        async with AsyncMeter(server.url, plans=PLANS, prefix=prefix, timeout=20) as meter:
            calls = [meter.consume("ana", "tokens") for _ in range(150)]
            decisions = await asyncio.gather(*calls)
            assert sum(map(bool, decisions)) == 100
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(meter.refund("ana", "tokens")) for _ in range(20)]
            assert all(task.result()["credits"].applied == 1 for task in tasks)
            assert await asyncio.wait_for(meter.consume("ana", "tokens", 20), 20)
            await meter.forget("ana")

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_meter_made_before_a_fork_works_in_the_child(server: Server) -> None:
    with Meter(server.url, plans=PLANS, prefix=fresh_prefix(), timeout=10) as meter:
        assert meter.consume("ana", "tokens")
        child = os.fork()
        if not child:
            status = 1
            try:
                status = 0 if all(meter.consume("ana", "tokens") for _ in range(20)) else 2
            finally:
                os._exit(status)
        assert all(meter.consume("ana", "tokens") for _ in range(20))
        assert os.waitpid(child, 0)[1] == 0
        assert meter.usage("ana")["credits"].used == 41
        meter.forget("ana")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_async_meter_used_before_a_fork_takes_a_new_loop_in_the_child(server: Server) -> None:
    meter = AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix(), timeout=10)
    with asyncio.Runner() as runner:
        assert runner.run(_await(meter.consume("ana", "tokens")))
        child = os.fork()
        if not child:
            status = 1
            try:
                with pytest.raises(PolicyError, match="before the fork"):
                    runner.run(_await(meter.consume("ana", "tokens")))
                with asyncio.Runner() as own:
                    status = 0 if own.run(_await(meter.consume("ana", "tokens", 2))) else 2
                    own.run(meter.close())
            finally:
                os._exit(status)
        assert runner.run(_await(meter.consume("ana", "tokens", 4)))
        assert os.waitpid(child, 0)[1] == 0
        assert runner.run(_await(meter.usage("ana")))["credits"].used == 7
        runner.run(_await(meter.forget("ana")))
        runner.run(meter.close())


@pytest.mark.parametrize("ending", ["close", "abandon while it lives", "abandon", "nothing"])
def test_connections_end_with_their_loop(server: Server, ending: str) -> None:
    """However the loop and the meter end: no warning, and no connection left at the server."""
    name = f"end{os.getpid()}-{ending.replace(' ', '-')}"

    async def work(meter: AsyncMeter) -> None:
        decisions = await asyncio.gather(*(meter.consume("ana", "tokens") for _ in range(8)))
        assert all(decisions)
        if ending == "close":
            await meter.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = redis.asyncio.Redis.from_url(server.url, client_name=name)
        meter = AsyncMeter(client=client, plans=PLANS, prefix=fresh_prefix(), timeout=10)
        with asyncio.Runner() as runner:
            runner.run(work(meter))
            if ending == "abandon while it lives":
                assert connections(server, name)
                meter.abandon()
                runner.run(asyncio.sleep(0))
                gone(server, name)
        if ending == "abandon":
            meter.abandon()
        gone(server, name)
        del meter, client
        gc.collect()


def connections(server: Server, name: str) -> int:
    return str(server.ask("CLIENT", "LIST")).count(f"name={name} ")


def gone(server: Server, name: str) -> None:
    wait_until("closed connections", lambda: connections(server, name) == 0)


def test_an_abandoned_meter_is_closed(server: Server) -> None:
    meter = AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix())
    meter.abandon()
    meter.abandon()
    with pytest.raises(PolicyError, match="closed"):
        asyncio.run(_await(meter.consume("ana", "tokens")))
    asyncio.run(_await(meter.close()))


def test_a_meter_serves_one_loop_after_the_other(server: Server) -> None:
    meter = AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix(), timeout=10)
    for _ in range(3):
        assert asyncio.run(_await(meter.consume("ana", "tokens")))
    assert asyncio.run(_await(meter.usage("ana")))["credits"].used == 3
    asyncio.run(_await(meter.forget("ana")))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ended_in_disorder_does_not_keep_the_meter(server: Server) -> None:
    meter = AsyncMeter(server.url, plans=PLANS, prefix=fresh_prefix(), timeout=10)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_await(meter.consume("ana", "tokens")))
    loop.close()
    assert asyncio.run(_await(meter.consume("ana", "tokens"))).balance == 98
    asyncio.run(_await(meter.forget("ana")))
    del loop
    gc.collect()


async def _await(made: Awaitable[Any]) -> Any:
    return await made


# --- Closed while calls are under way


@pytest.mark.parametrize("verb", ["consume", "report", "refund", "check"])
def test_a_call_that_was_under_way_is_unknown(make: Make, server: Server, verb: str) -> None:
    """It may have been carried out; that its meter was closed does not make it a mistake."""
    # A question may be asked again, until it finds the meter closed.
    expected = (PolicyError, Unavailable) if verb == "check" else OutcomeUnknown
    with FaultProxy(server) as proxy, ThreadPoolExecutor(1) as threads:
        meter = make(url=proxy.url, prefix=fresh_prefix(), timeout=2)
        for _ in range(3):
            getattr(meter, verb)("acme", "tokens")
        raw = meter.raw
        proxy.faults = lambda index: faulty.DROP
        before = proxy.stats["requests"]

        def sent() -> bool:
            return proxy.stats["requests"] > before

        if isinstance(raw, AsyncMeter):

            async def both() -> None:
                call = asyncio.ensure_future(getattr(raw, verb)("acme", "tokens"))
                while not sent():
                    await asyncio.sleep(0.001)
                await raw.close()
                raw._transport.abandon()
                with pytest.raises(expected):
                    await call

            meter.runner.run(both())
        else:
            call = threads.submit(getattr(raw, verb), "acme", "tokens")
            wait_until("the request is sent", sent)
            raw.close()
            proxy.close()
            with pytest.raises(expected):
                call.result()


def test_a_closed_meter_is_not_entered_again(server: Server) -> None:
    meter = Meter(server.url, plans=PLANS, prefix=fresh_prefix(), timeout=10)
    meter.consume("acme", "tokens")
    meter.close()
    with pytest.raises(PolicyError, match="closed"), meter:
        raise AssertionError("entered")
