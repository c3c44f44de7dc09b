"""How the public API is used, for the type checker: read by mypy --strict, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from fastapi import FastAPI
from starlette.requests import Request

import meterd
from meterd import (
    ApiKey,
    AsyncAutoTopUp,
    AsyncHold,
    AsyncKeys,
    AsyncLease,
    AsyncMeter,
    AutoTopUp,
    BatchError,
    Bucket,
    CatalogMismatch,
    Code,
    Decision,
    Diff,
    Event,
    Flag,
    Hold,
    HoldState,
    KeyCode,
    Keys,
    Lease,
    LimitState,
    Meter,
    MeterdError,
    Operation,
    OutcomeUnknown,
    Plan,
    PlanChange,
    Pool,
    Price,
    Refused,
    Slots,
    TopUp,
    Usage,
    Verification,
    load_plans,
    load_toml,
)
from meterd.export import (
    Dead,
    Entry,
    Exporter,
    JsonLines,
    Outcome,
    Report,
    Sink,
    StripeMeter,
    Waiting,
    Webhook,
)
from meterd.http import (
    Answer,
    Permit,
    Reading,
    answer,
    asgi,
    client_address,
    client_subject,
    ratelimit_fields,
)
from meterd.http import fastapi as meterd_fastapi
from meterd.http import flask as meterd_flask
from meterd.testing import ManualClock, async_fake, fake

Subject = str | tuple[str, ...]


def plans() -> list[Plan]:
    free = Plan(
        "free",
        includes=[
            Pool("credits", 100, "month", anchor="calendar", tz="Europe/Berlin", rollover=10),
            Pool("soft", None, timedelta(hours=5), anchor="first_use", overage=None),
            Pool("dated", 5, "month", anchor=31, carry_debt=True, rates={"tokens": 1, "image": 10}),
            Pool("fixed", 5, "week", anchor=datetime(2025, 1, 1, tzinfo=UTC), warn_at=(0.5, 0.9)),
            Bucket("api", 60, "1m"),
            Bucket("burst", 60, timedelta(minutes=1), algorithm="token", burst=90, auto=1),
            Bucket("open", 60, "1m", algorithm="fixed", on_error="allow"),
            Slots("jobs", 10, rates={"jobs": 1, "big-jobs": 4}),
            Flag("export"),
        ],
        default=True,
        price=Price(2900, "eur", "month"),
        meta={"anything": ["JSON", 1, None]},
    )
    assert_type(free.limits, Mapping[str, Pool | Bucket | Slots | Flag])
    assert_type(load_toml("plans.toml"), list[Plan])
    assert_type(load_plans("package.module:PLANS"), list[Plan])
    return [free]


def watch(verb: str, subject: Subject, outcome: str, seconds: float) -> None:
    print(verb, subject, outcome, seconds)


def decisions(decision: Decision) -> None:
    if decision:
        assert_type(decision.balance, int | None)
    allowed, balance = decision
    print(allowed, balance)
    assert_type(decision.allowed, bool)
    assert_type(decision.code, Code)
    assert_type(decision.limits, tuple[LimitState, ...])
    assert_type(decision.refused, tuple[LimitState, ...])
    assert_type(decision.retry_after, float | None)
    assert_type(decision.op, str | None)
    assert_type(decision.replayed, bool)
    assert_type(decision.degraded, bool)
    assert_type(decision.as_dict(), dict[str, Any])
    assert_type(decision.raise_if_refused(), Decision)
    state = decision["credits"]
    assert_type(state, LimitState)
    assert_type(state.subject, Subject)
    assert_type(state.limit, int | None)
    assert_type(state.used, int)
    assert_type(state.remaining, int | None)
    assert_type(state.resets_at, datetime | None)
    assert_type(state.retry_after, float | None)


def verified(found: Verification) -> None:
    if found:
        assert_type(found.decision, Decision | None)
    assert_type(found.valid, bool)
    assert_type(found.code, KeyCode)
    assert_type(found.credits, int | None)
    assert_type(found.ratelimits, dict[str, LimitState])
    assert_type(found.key_id, str | None)
    assert_type(found.subject, Subject | None)
    assert_type(found.owner, Subject | None)
    assert_type(found.name, str | None)
    assert_type(found.meta, Mapping[str, Any])
    assert_type(found.as_dict(), dict[str, Any])


def keys(meter: Meter) -> None:
    assert_type(meter.keys, Keys)
    key = meter.keys.create(
        ("acme", "a/b"),
        limits=[Pool("credits", 1000), Bucket("api", 5, "1s", auto=1)],
        join="free",
        name="ci",
        expires="30d",
        meta={"env": ["test"]},
        prefix="acme_live",
    )
    assert_type(key, ApiKey)
    assert_type(key.secret, str | None)
    assert_type(key.subject, Subject)
    assert_type(key.expires, datetime | None)
    assert_type(key.created, datetime)
    assert_type(meter.keys.create("acme", sha256=b"0" * 32).imported, bool)
    verified(meter.keys.verify(key.secret or "", {"tokens": 5}, auto=False, op=True))
    verified(meter.keys.verify("mk_", "tokens", 5, op="request-1"))
    assert_type(meter.keys.get(key.id), ApiKey | None)
    assert_type(meter.keys.list("acme"), list[ApiKey])
    assert_type(meter.keys.update(key.id, enabled=False, limits=(), name=None), ApiKey)
    meter.keys.update(key.id, expires=datetime(2030, 1, 1, tzinfo=UTC), meta={"a": 1})
    assert_type(meter.keys.rotate(key.id, overlap=timedelta(hours=1)), ApiKey)
    assert_type(meter.keys.revoke(key.id), bool)


async def async_keys(meter: AsyncMeter) -> None:
    assert_type(meter.keys, AsyncKeys)
    key = await meter.keys.create("acme", limits=[Flag("beta")])
    assert_type(key, ApiKey)
    verified(await meter.keys.verify(key.secret or "", "tokens", 5))
    assert_type(await meter.keys.get(key.id), ApiKey | None)
    assert_type(await meter.keys.list("acme"), list[ApiKey])
    assert_type(await meter.keys.update(key.id, enabled=True), ApiKey)
    assert_type(await meter.keys.rotate(key.id, overlap="1h"), ApiKey)
    assert_type(await meter.keys.revoke(key.id), bool)


def happened(event: Event) -> None:
    assert_type(event.id, str)
    assert_type(event.subject, Subject)
    assert_type(event.root, str)
    assert_type(event.limit, int | None)
    assert_type(event.remaining, int | None)
    assert_type(event.period_start, datetime)
    assert_type(event.period_end, datetime | None)
    assert_type(event.meta, dict[str, Any])
    assert_type(event.threshold, float | int | None)
    assert_type(event.as_dict(), dict[str, Any])


def sync() -> None:
    Meter(refusal_cache={"buckets": "1s", "pools": "200ms"})
    with Meter("redis://localhost", plans=plans(), observer=watch, refusal_cache="1s") as meter:
        assert_type(meter, Meter)
        assert_type(meter.url, str)
        assert_type(meter.revision, int)
        decisions(meter.check("acme/ana", "tokens", 5, join="free"))
        decisions(meter.consume(("acme", "a/b"), {"tokens": 5, "image": 1}, op=True, wait=2.5))
        decisions(meter.consume("acme", "tokens", wait="500ms", op="request-1"))
        decisions(meter.report("acme", "tokens", 5, op="request-2"))
        decisions(meter.refund("acme", "tokens", 5))
        decisions(meter.refund("acme", of="request-2"))
        operation = meter.operation("acme", "request-2")
        assert_type(operation, Operation)
        assert_type(operation.costs, Mapping[str, int])
        assert_type(operation.decision, Decision | None)
        assert_type(operation.refunded, bool)
        assert_type(operation.expires, datetime)
        with meter.reserve("acme", {"jobs": 1, "tokens": 500}, ttl="10m", op="call-1") as hold:
            assert_type(hold, Hold)
            decisions(hold.decision)
            hold.spend("tokens", 5)
            hold.spend({"tokens": 5, "image": 1})
            hold.renew(timedelta(minutes=1))
        taken = meter.reserve(("acme", "a/b"), "tokens", 5, ttl=2.5, wait=1, keepalive=True)
        if taken:
            decisions(taken.commit(3))
        decisions(meter.hold("acme", taken.id).commit({"tokens": 3}))
        meter.hold("acme", "call-2").release()
        with meter.lease("acme", "tokens", 1000, ttl=5, least=100, most=10_000) as lease:
            assert_type(lease, Lease)
            decisions(lease.consume())
            decisions(lease.consume(5))
            assert_type(lease.remaining, int)
            assert_type(lease.decision, Decision | None)
        kept = meter.lease(("acme", "a/b"), {"tokens": 5, "image": 1}, ttl="1m", join="free")
        assert_type(kept.closed, bool)
        kept.close()
        usage = meter.usage("acme")
        assert_type(usage, Usage)
        assert_type(usage.levels[0].holds, tuple[HoldState, ...])
        assert_type(usage.levels[0].holds[0].amounts, Mapping[str, int])
        assert_type(list(usage), list[LimitState])
        assert_type(usage.plans, dict[str, str])
        diff = meter.apply(plans(), dry_run=True, remove=["old"])
        assert_type(diff, Diff)
        assert_type(meter.plans(), dict[str, Plan])
        assert_type(meter.plans(retired=True), dict[str, Plan])
        meter.subscribe("acme", "free", change="reset", anchor=datetime(2025, 1, 1, tzinfo=UTC))
        meter.subscribe("acme/ana", limits=[Bucket("api", 5, "1m"), Flag("beta")], op="order-1")
        meter.subscribe("acme", "free", change="prorate", when="period_end")
        meter.subscribe("acme", "free", when=datetime(2030, 1, 1, tzinfo=UTC))
        meter.unsubscribe("acme", "free", when=timedelta(days=3))
        assert_type(usage.levels[0].pending, tuple[PlanChange, ...])
        assert_type(usage.levels[0].pending[0].at, datetime)
        assert_type(usage.levels[0].pending[0].plan, str | None)
        meter.override("acme", "credits", limit=None, overage=5, expires="30d")
        meter.override("acme", "burst", burst=100, expires=timedelta(days=1))
        meter.override("acme", "credits", clear=True)
        meter.adjust("acme", "credits", used=5)
        meter.set_meta("acme", {"customer": "cus_1", "tags": ["a"]})
        assert_type(meter.meta("acme"), dict[str, Any])
        assert_type(meter.forget("acme"), int)
        assert_type(meter.harvest(), int)
        assert_type(meter.harvest(limit=10), int)
        assert_type(meter.subjects("acme"), Iterator[Subject])
        items = [("a", "tokens"), (("a", "b/c"), {"tokens": 5}), ("a", "tokens", 3)]
        assert_type(meter.consume_many(items), list[Decision])
        assert_type(meter.consume_many([{"subject": "a", "costs": "x", "op": "1"}]), list[Decision])
        outcomes = meter.consume_many(items, return_exceptions=True)
        assert_type(outcomes, list[Decision | MeterdError])
        with meter.pipeline() as pipeline:
            queued = pipeline.consume("acme", "tokens", 5, op=True, join="free")
            pipeline.check("acme", "tokens", join="free")
            pipeline.report("acme", {"tokens": 1})
            pipeline.refund("acme", "tokens", op="x")
        decisions(queued.result())
        assert_type(queued.done, bool)
        meter.pipeline(raise_on_error=False).execute(raise_on_error=True)
        for event in meter.events("mails", ["warn", "exhausted"], follow=False, idle="5m"):
            happened(event)
        login = meter.limiter("login", Bucket("ip", 5, "1m"), Bucket("day", 50, "1d"))
        decisions(login.consume("1.2.3.4", 2, op="x", wait=1))
        decisions(login.check("1.2.3.4"))
        decisions(login.refund("1.2.3.4"))
        login.reset("1.2.3.4")


async def awaited() -> None:
    async with AsyncMeter(plans=plans(), timeout="2s", op_retention="7d") as meter:
        assert_type(meter, AsyncMeter)
        decisions(await meter.check("acme/ana", "tokens", 5, join="free"))
        decisions(await meter.consume(("acme", "a/b"), {"tokens": 5}, op=True, wait=2.5))
        decisions(await asyncio.create_task(meter.report("acme", "tokens", 5)))
        decisions(await asyncio.wait_for(meter.refund("acme", "tokens"), 1))
        one, two = await asyncio.gather(meter.consume("a", "x"), meter.usage("a"))
        assert_type(one, Decision)
        assert_type(two, Usage)
        async with meter.reserve("acme", {"jobs": 1, "tokens": 500}, ttl="10m") as hold:
            assert_type(hold, AsyncHold)
            hold.spend("tokens", 5)
            await hold.renew(60)
        taken = await meter.reserve("acme", "tokens", 5, keepalive=True)
        decisions(await taken.commit(3))
        decisions(await meter.hold("acme", taken.id).commit())
        await meter.hold("acme", "call-2").release()
        async with meter.lease("acme", "tokens", 1000, ttl=timedelta(seconds=5)) as lease:
            assert_type(lease, AsyncLease)
            decisions(await lease.consume(5))
        kept = await meter.lease("acme", {"tokens": 5}, most=5000)
        decisions(await asyncio.create_task(kept.consume()))
        await kept.close()
        assert_type(await meter.apply(), Diff)
        assert_type(await meter.plans(), dict[str, Plan])
        await meter.subscribe("acme", "free")
        await meter.unsubscribe("acme", "free", when="period_end")
        await meter.override("acme", "credits", limit=5)
        await meter.adjust("acme", "credits", used=5)
        await meter.set_meta("acme", {"customer": "cus_1"})
        assert_type(await meter.meta("acme"), dict[str, Any])
        assert_type(await meter.forget("acme"), int)
        assert_type(await meter.harvest(), int)
        found: AsyncIterator[Subject] = meter.subjects()
        async for subject in found:
            assert_type(subject, Subject)
        assert_type(await meter.consume_many([("acme", "tokens")]), list[Decision])
        many = await meter.consume_many([("acme", "tokens")], return_exceptions=True)
        assert_type(many, list[Decision | MeterdError])
        async with meter.pipeline() as pipeline:
            queued = pipeline.consume("acme", "tokens", 5, op=True)
        decisions(queued.result())
        await pipeline.execute(raise_on_error=False)
        async for event in meter.events("mails", types=("closed",)):
            happened(event)
        login = meter.limiter("login", Bucket("ip", 5, "1m"))
        decisions(await login.consume("1.2.3.4"))
        decisions(await login.check("1.2.3.4"))
        decisions(await login.refund("1.2.3.4"))
        await login.reset("1.2.3.4")


class Paper(Sink):
    """A sink of one's own."""

    name = "paper"

    def send(self, entry: Entry, meta: Mapping[str, Any], now_ms: int) -> Outcome:
        print(entry.id, entry.subject, entry.pool, entry.delta, entry.bill, entry.period_end_ms)
        return Outcome("retry", "out of paper", after=60.0, certain=True)


def exported(meter: Meter) -> None:
    sinks: list[Sink] = [
        Paper(),
        JsonLines("use.jsonl", name="archive"),
        Webhook("https://example.com", "whsec_c2VjcmV0", timeout=5, workers=2),
        StripeMeter("sk_test_1", event_names={"credits": "ai"}, account="acct_1", timeout=5),
    ]
    for sink in sinks:
        exporter = Exporter(meter, sink, attempts=3, interval="5s", lease=300)
        assert_type(exporter.run(follow=False), Report)
        assert_type(exporter.pending(10), list[Waiting])
        assert_type(exporter.dead(), list[Dead])
        assert_type(exporter.resend(["id"]), list[tuple[Dead, Outcome]])
        assert_type(exporter.discard(), list[Dead])
        exporter.retire()
        exporter.stop()


def paid(topup: TopUp) -> bool:
    print(topup.key, topup.subject, topup.pool, topup.amount, topup.number, topup.event.meta)
    return True


async def paid_later(topup: TopUp) -> None:
    print(topup.key)


async def topped_up(meter: Meter, later: AsyncMeter) -> None:
    tops = AutoTopUp(meter, "credits", 500, below=50, per_period=3, cooldown="1h", charge=paid)
    assert_type(tops.run("tops", follow=False, interval="5s"), list[TopUp])
    for event in meter.events("mine"):
        assert_type(tops.handle(event), TopUp | None)
    awaited = AsyncAutoTopUp(later, "credits", 500, per_period=3, charge=paid_later, expires="30d")
    assert_type(await awaited.run(follow=False), list[TopUp])


def mistakes(meter: Meter, later: AsyncMeter) -> None:
    """What a type checker is to find; an ignore that is not needed is an error of its own."""
    meter.consume("acme", "tokens", 1.5)  # type: ignore[arg-type]
    meter.consume("acme")  # type: ignore[call-arg]
    meter.consume("acme", ["tokens"])  # type: ignore[arg-type]
    meter.consume(5, "tokens")  # type: ignore[arg-type]
    meter.adjust("acme", "credits", 5)  # type: ignore[call-arg]
    meter.override("acme", name="credits", limit=5)  # type: ignore[call-arg, arg-type]
    Pool("credits", 5, "month", "calendar")  # type: ignore[call-arg]
    Plan("p", includes=["credits"])  # type: ignore[list-item]
    meterd.Mter("redis://localhost")  # type: ignore[attr-defined]
    Slots("jobs", 5, {"jobs": 1})  # type: ignore[call-arg]
    meter.reserve("acme", "jobs", 1, 60)  # type: ignore[call-arg]
    meter.hold("acme", "x").commit("tokens")  # type: ignore[arg-type]
    print(later.reserve("acme", "jobs").id)  # type: ignore[attr-defined]
    list(later.consume("acme", "tokens"))  # type: ignore[call-overload]
    print(later.consume("acme", "tokens").allowed)  # type: ignore[attr-defined]
    print(later.usage("acme")["credits"])  # type: ignore[index]
    meter.pipeline().consume("acme", "tokens", wait=1)  # type: ignore[call-arg]
    print(meter.pipeline().check("acme", "tokens").allowed)  # type: ignore[attr-defined]
    meter.keys.create("acme", secret="mk_")  # type: ignore[call-arg]
    meter.keys.update("key_", enabled=None)  # type: ignore[arg-type]
    print(later.keys.verify("mk_").valid)  # type: ignore[attr-defined]


def embedded_and_fake() -> None:
    clock = ManualClock(1_735_689_600_000)
    assert_type(clock.advance(days=31), int)
    assert_type(clock.now(), datetime)
    with Meter.embedded(plans=plans(), clock=clock) as meter:
        assert_type(meter, Meter)
    assert_type(AsyncMeter.embedded(plans=plans()), AsyncMeter)
    assert_type(fake(plans(), clock=clock, down=True), Meter)
    assert_type(async_fake(plans()), AsyncMeter)


def errors(meter: Meter) -> None:
    try:
        meter.consume("acme", "tokens", op="x").raise_if_refused()
    except Refused as error:
        decisions(error.decision)
    except OutcomeUnknown as error:
        assert_type(error.op, str | None)
    except BatchError as error:
        assert_type(error.results, list[Decision | MeterdError])
        assert_type(error.errors, dict[int, MeterdError])
    except CatalogMismatch as error:
        print(error.diff)


def http(meter: Meter, async_meter: AsyncMeter) -> None:
    app = FastAPI()
    meterd_fastapi.install(app, legacy=True, trusted_proxies=["10.0.0.0/8"])

    def user(request: Any) -> str | None:
        return None

    async def cost(request: Any) -> dict[str, int]:
        return {"tokens": 5}

    limit = meterd_fastapi.require(async_meter, cost, subject=user, join="free", hold=True)
    assert_type(limit, Callable[[Request], Awaitable[Permit]])
    meterd_fastapi.require(meter, key=True, statuses={Code.USAGE_EXCEEDED: 403})
    meterd_fastapi.require(meter.limiter("ip", Bucket("ip", 5, "1m")))

    @meterd_flask.require(meter, "tokens", lambda request: 5, key="X-Key")
    def view(name: str) -> str:
        return name

    assert_type(view("ana"), str)
    assert_type(asgi.MeterMiddleware(app, meter, "tokens"), asgi.MeterMiddleware)


def refusals(decision: Decision, permit: Permit, states: list[Reading]) -> None:
    refusal = answer(decision, {Code.USAGE_EXCEEDED: 403})
    assert_type(refusal, Answer)
    assert_type(refusal.status, int)
    assert_type(refusal.headers, tuple[tuple[str, str], ...])
    assert_type(refusal.body, bytes)
    assert_type(permit.hold, Hold | AsyncHold | None)
    permit.spend("tokens", 5)
    assert_type(ratelimit_fields(states, legacy=True), list[tuple[str, str]])
    assert_type(client_address("10.0.0.1", forwarded_for="203.0.113.7"), str | None)
    assert_type(client_subject("203.0.113.7"), str)
