"""Leases when the server is away, an answer is lost, or nothing is remembered."""

from __future__ import annotations

import pytest

from meterd import Bucket, Meter, OutcomeUnknown, Plan, Pool, Unavailable
from meterd.testing import ManualClock
from meterd.transport import NotSent
from tests.client.meter_tools import AnyMeter, requests_of
from tests.leases.lease_tools import Shop, holds, used
from tests.support import proxy as faulty
from tests.support.proxy import FaultProxy
from tests.support.servers import Server


@pytest.fixture
def meter(shop: Shop, proxy: FaultProxy, clock: ManualClock) -> AnyMeter:
    made = shop.meter(url=proxy.url, clock=clock, timeout=0.3)
    made.consume("anybody", "credits")  # what a first call makes ready is ready
    return made


@pytest.fixture
def direct(shop: Shop, clock: ManualClock) -> AnyMeter:
    return shop.meter(clock=clock)


LOSING = [faulty.CUT_BEFORE, faulty.CUT_AFTER, faulty.DROP]
each_loss = pytest.mark.parametrize("loss", LOSING, ids=lambda loss: loss.kind)


@each_loss
def test_a_lost_answer_to_the_first_chunk(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy, clock: ManualClock,
    loss: faulty.Fault,
) -> None:  # fmt: skip
    proxy.next(loss)
    with pytest.raises(Unavailable, match="nothing was sold"):
        shop.lease(meter, "acme", "credits", 100, ttl=5)
    clock.advance(seconds=5)
    assert used(direct) == 0


@each_loss
def test_a_lost_answer_to_a_later_chunk_is_given_back_by_the_next_call(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy, loss: faulty.Fault
) -> None:
    lease = shop.lease(meter, "acme", "credits", 64, least=64)
    assert lease.sell(64) == 64
    proxy.next(faulty.PASS, loss)  # the settlement, the next chunk
    with pytest.raises(Unavailable, match="nothing was sold"):
        lease.consume()
    assert used(direct) in (64, 128)
    assert lease.consume().allowed
    assert used(direct) == 128
    lease.close()
    assert used(direct) == 65
    assert holds(direct) == 0


@each_loss
def test_a_lost_answer_to_a_tally_or_a_settlement_is_repeated(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy, loss: faulty.Fault
) -> None:
    lease = shop.lease(meter, "acme", "credits", 64, least=64)
    proxy.next(loss)
    assert lease.sell(4) == 4
    proxy.next(loss)
    assert lease.sell(60) == 60
    proxy.next(loss)
    assert lease.sell(1) == 1
    proxy.next(loss)
    lease.close()
    assert used(direct) == 65
    assert holds(direct) == 0


def test_what_a_lost_tally_may_have_made_definite_is_counted(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy, clock: ManualClock
) -> None:
    lease = shop.lease(meter, "acme", "credits", 160, ttl=5)
    proxy.faults = lambda _: faulty.CUT_AFTER
    with pytest.raises(Unavailable, match="nothing was sold"):
        lease.consume(30)
    proxy.calm()
    sent = requests_of(meter)
    assert lease.sell(30) == 30
    assert len(sent) == 1
    clock.advance(seconds=5)
    assert used(direct) == 30


def test_what_is_definite_is_sold_while_the_server_is_away(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy
) -> None:
    lease = shop.lease(meter, "acme", "credits", 160)
    assert lease.consume().allowed  # ten are definite
    proxy.partition(True)
    assert lease.sell(9) == 9
    with pytest.raises(Unavailable, match="nothing was sold"):
        lease.consume()
    proxy.partition(False)
    assert lease.remaining == 150
    assert lease.sell(150) == 150
    lease.close()
    assert used(direct) == 160


def test_a_chunk_that_could_not_be_settled_goes_on_being_sold(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy
) -> None:
    lease = shop.lease(meter, "acme", "credits", 160, least=160)
    assert lease.sell(155) == 155
    transport = meter.raw._transport
    send = transport.send

    def away(*_: object) -> None:
        raise NotSent("away")

    transport.send = away
    with pytest.raises(Unavailable):
        lease.consume(20)  # more than is left: the rest should go back first
    assert lease.remaining == 5
    assert lease.sell(5) == 5
    transport.send = send
    lease.close()
    assert used(direct) == 160


def test_closing_without_a_server_can_be_repeated(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy
) -> None:
    lease = shop.lease(meter, "acme", "credits", 160)
    assert lease.sell(3) == 3
    proxy.partition(True)
    with pytest.raises((Unavailable, OutcomeUnknown)):
        lease.close()
    assert lease.closed
    proxy.partition(False)
    assert used(direct) == 160
    lease.close()
    assert used(direct) == 3


def test_a_late_settlement_charges_nothing_twice(
    shop: Shop, meter: AnyMeter, direct: AnyMeter, proxy: FaultProxy, clock: ManualClock
) -> None:
    lease = shop.lease(meter, "acme", "credits", 160, ttl=5)
    assert lease.sell(10) == 10
    proxy.partition(True)
    with pytest.raises((Unavailable, OutcomeUnknown)):
        lease.close()
    proxy.partition(False)
    clock.advance(seconds=5)
    lease.close()
    assert used(direct) == 10
    chunk_over = shop.lease(meter, "bob", "credits", 160, ttl=5)
    assert chunk_over.sell(10) == 10
    chunk_over.raw._chunk.expires += 10_000  # as if this clock were slow
    clock.advance(seconds=5)
    chunk_over.close()
    assert used(direct, subject="bob") == 10


def test_a_removed_record_ends_the_chunk(shop: Shop, meter: AnyMeter, direct: AnyMeter) -> None:
    lease = shop.lease(meter, "acme", "credits", 160)
    assert lease.sell(1) == 1
    direct.forget("acme")
    assert lease.sell(100) == 100
    assert used(direct) >= 100 - 9
    lease.close()


def test_a_bucket_that_fails_open(shop: Shop, proxy: FaultProxy, clock: ManualClock) -> None:
    plan = Plan(
        "open",
        default=True,
        includes=[
            Bucket("api", 100, "1m", on_error="allow"),
            Bucket("shut", 100, "1m", on_error="deny"),
            Pool("credits", 5, "month"),
        ],
    )
    meter = shop.meter(url=proxy.url, plans=[plan], clock=clock, timeout=0.2)
    meter.usage("acme")
    early = shop.lease(meter, "acme", "api", 10)
    proxy.close()
    assert early.consume().degraded  # nothing of its chunk is definite
    lease = shop.lease(meter, "acme", "api", 10)
    assert lease.remaining == 0
    decision = lease.consume()
    assert decision.allowed
    assert decision.degraded
    refusal = shop.lease(meter, "acme", "shut", 10).consume()
    assert refusal.degraded
    assert not refusal.allowed
    with pytest.raises(Unavailable):
        shop.lease(meter, "acme", "credits", 5)


def test_a_closed_meter(shop: Shop, server: Server) -> None:
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 160, ttl=1)
    lease.sell(1)
    meter.close()
    shop.wait(1.1)  # nothing is heard of the timer
    with Meter(server.url, prefix=meter.raw._keys.prefix) as other:
        assert other.usage("acme")["credits"].used == 10


def test_a_slow_answer_makes_no_chunk_last_longer(
    shop: Shop, proxy: FaultProxy, prefix: str
) -> None:
    plan = Plan("fast", default=True, includes=[Bucket("fixed", 100, "2s", algorithm="fixed")])
    meter = shop.meter(url=proxy.url, plans=[plan])
    meter.consume("anybody", "fixed")
    proxy.next(faulty.delay(1200))
    lease = shop.lease(meter, "acme", "fixed", 50, ttl="1h")  # the window ends 2 s after it began
    assert lease.remaining == 50
    shop.wait(0.8)
    assert lease.remaining == 0
