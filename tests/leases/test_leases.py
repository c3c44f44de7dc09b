"""What a lease does: it takes, sells, gives back, and follows the pace."""

from __future__ import annotations

import gc
import warnings

import pytest

from meterd import Bucket, Code, PolicyError
from meterd.testing import ManualClock
from tests.client.meter_tools import requests_of
from tests.leases.lease_tools import Shop, holds, used


def test_a_chunk_counts_as_used_and_the_rest_goes_back(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "credits", 1000)
    assert used(meter) == 1000
    assert lease.remaining == 1000
    assert lease.sell(10) == 10
    assert lease.remaining == 990
    assert used(meter) == 1000
    lease.close()
    assert used(meter) == 10
    assert holds(meter) == 0
    assert lease.closed
    assert lease.remaining == 0


def test_granted_answers_are_those_of_the_call_the_units_came_from(shop: Shop) -> None:
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 100)
    first = lease.consume()
    assert first is lease.consume(5)
    assert first is lease.decision
    assert first["credits"].applied == 100
    assert lease.subject == "acme"


def test_the_first_sale_makes_a_piece_definite_and_no_sooner(
    shop: Shop, clock: ManualClock
) -> None:
    meter = shop.meter(clock=clock)
    unsold = shop.lease(meter, "acme", "credits", 1600, ttl=5)
    sold = shop.lease(meter, "bob", "credits", 1600, ttl=5)
    assert sold.consume()
    clock.advance(seconds=5)  # neither is closed: as if this process had died
    assert used(meter) == 0
    assert used(meter, subject="bob") == 100
    assert unsold.remaining == sold.remaining == 0


def test_a_lease_goes_on_after_its_chunk(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "credits", 50)
    assert lease.sell(220) == 220
    lease.close()
    assert used(meter) == 220


def test_mappings_and_paths(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    meter.subscribe("acme/ana", limits=[Bucket("fixed", 7, "1m")])
    unit = {"tokens": 3, "image": 1, "fixed": 1}
    lease = shop.lease(meter, "acme/ana", unit, 5)
    unit["tokens"] = 0  # its own from the start
    assert used(meter) == 65
    assert lease.sell(6) == 6
    assert lease.sell(6) == 1
    lease.close()
    assert used(meter) == 7 * 13
    assert used(meter, "fixed", "acme/ana") == 7


def test_the_last_units_are_sold(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    other = shop.lease(meter, "acme", "few", 37)
    lease = shop.lease(meter, "acme", "few", 60)
    assert lease.sell(100) == 63
    refusal = lease.consume()
    assert not refusal.allowed
    assert refusal.code is Code.USAGE_EXCEEDED
    assert refusal["few"].used == 100
    other.close()
    assert lease.sell(100) == 37
    assert used(meter, "few") == 100


def test_the_first_chunk_is_what_is_there_down_to_the_least(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    meter.consume("acme", "few", 70)
    assert shop.lease(meter, "acme", "few", 60).remaining == 30
    lease = shop.lease(meter, "acme", "few", 60, least=31)
    assert lease.remaining == 0
    assert not lease.decision.allowed


def test_a_refused_lease_asks_again(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "nothing")
    assert lease.consume().code is Code.NOT_INCLUDED
    meter.consume("acme", "few", 100)
    lease = shop.lease(meter, "acme", "few", 10)
    assert lease.consume().code is Code.USAGE_EXCEEDED
    meter.refund("acme", "few", 3)
    assert lease.sell(5) == 3


def test_more_than_a_chunk_is_an_ordinary_consume(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "few", 60)
    big = lease.consume(40)
    assert big.allowed
    assert big["few"].applied == 60  # from the chunk: it is there
    big = lease.consume(30)
    assert big["few"].applied == 30
    assert lease.remaining == 20
    assert lease.consume(
        30
    ).allowed  # the server has but 10: its own chunk does not stand in the way
    assert used(meter, "few") == 100
    assert not lease.consume(1).allowed


def test_nothing_always_fits(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    meter.consume("acme", "few", 100)
    lease = shop.lease(meter, "acme", "few", 10)
    assert lease.consume(0).allowed


@pytest.mark.parametrize("name", ["fixed", "sliding"])
def test_a_chunk_ends_with_the_window_it_was_charged_to(
    shop: Shop, clock: ManualClock, name: str
) -> None:
    meter = shop.meter(clock=clock)
    meter.consume("acme", name)
    end = meter.usage("acme")[name].resets_at_ms
    clock.advance(milliseconds=end - clock.now_ms - 1000)
    lease = shop.lease(meter, "acme", name, 400, ttl="1h")
    assert lease.sell(100) == 100
    clock.advance(milliseconds=999)
    assert lease.remaining == 300
    clock.advance(milliseconds=1)
    assert lease.remaining == 0
    assert lease.consume().allowed
    assert used(meter, name) >= 1


def test_a_chunk_of_a_token_bucket_ends_when_that_would_be_full(
    shop: Shop, clock: ManualClock
) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "token", 100, ttl=5)  # 100 a second flow back
    clock.advance(milliseconds=999)
    assert lease.remaining == 100
    clock.advance(milliseconds=1)
    assert lease.remaining == 0


def test_a_chunk_ends_with_its_period_although_its_ttl_is_longer(
    shop: Shop, clock: ManualClock
) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "credits", 100, ttl="100d")
    assert lease.consume().allowed
    clock.advance(days=30)
    assert lease.remaining == 99
    clock.advance(days=1)  # a month later
    assert lease.remaining == 0
    assert used(meter) == 0
    assert lease.consume().allowed


def test_the_size_follows_the_pace_between_its_bounds(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "credits", 100, ttl=4, least=20, most=5000)
    for _ in range(40):
        lease.sell(100)  # 1000 a second: a quarter of the ttl sells 1000
        clock.advance(milliseconds=100)
    lease.sell(1)
    assert 800 <= lease.raw._chunk.size <= 1300
    for _ in range(40):
        lease.sell(2_000)  # more than the most
        clock.advance(milliseconds=100)
    assert lease.raw._chunk.size == 5000
    lease.close()
    lease = shop.lease(meter, "acme", "credits", 100, ttl=4, least=20)
    for _ in range(40):
        lease.sell(1)
        clock.advance(seconds=2)
    assert lease.raw._chunk.size == 20


def test_at_a_slow_pace_there_is_no_chunk(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "credits", 100, ttl=4)
    for _ in range(30):
        assert lease.sell(1) == 1
        clock.advance(seconds=2)
    assert lease.remaining == 0
    assert used(meter) <= 30 + 6 + 2
    sent = requests_of(meter)
    assert lease.sell(1) == 1
    assert len(sent) == 1


def test_flags_alone_are_sold_without_a_hold(shop: Shop, clock: ManualClock) -> None:
    meter = shop.meter(clock=clock)
    lease = shop.lease(meter, "acme", "export", 100)
    sent = requests_of(meter)
    assert lease.sell(100) == 100
    assert not sent
    lease.close()
    assert not sent


def test_round_trips(shop: Shop) -> None:
    """A chunk takes one to reserve, one a piece, one to settle."""
    meter = shop.meter()
    shop.lease(meter, "acme", "credits", 10).close()
    sent = requests_of(meter)
    lease = shop.lease(meter, "acme", "credits", 1600, least=1600)
    assert lease.sell(1600) == 1600
    assert len(sent) == 17
    assert lease.sell(1) == 1
    assert len(sent) == 20
    lease.close()
    assert len(sent) == 21


def test_a_refusal_is_remembered_for_a_moment(shop: Shop) -> None:
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "few", 100)
    assert lease.sell(100) == 100
    sent = requests_of(meter)
    assert lease.sell(200) == 0
    assert 1 <= len(sent) < 40
    meter.refund("acme", "few", 5)
    shop.wait(0.06)
    assert lease.sell(5) == 5


def test_idle_leases_hold_nothing(shop: Shop) -> None:
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 1000, ttl=3)
    busy = shop.lease(meter, "bob", "credits", 1000, ttl=3)
    for _ in range(18):
        shop.wait(0.1)
        busy.sell(1)
    assert used(meter) == 0
    assert busy.remaining > 0
    assert holds(meter) == 0
    assert lease.sell(3) == 3
    lease.close()
    assert used(meter) == 3


def test_what_is_over_is_given_back_to_the_unit(shop: Shop) -> None:
    """By whoever holds it, before the ttl: after it, what is definite would stay charged."""
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 1600, ttl=3)
    for _ in range(14):
        lease.sell(1)
        shop.wait(0.1)
    shop.wait(1.7)
    assert used(meter) == 14
    assert lease.remaining == 0


def test_one_that_is_dropped_comes_back_with_its_ttl(shop: Shop) -> None:
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 1600, ttl=3)
    assert lease.sell(1) == 1
    assert used(meter) == 1600
    del lease
    gc.collect()
    for _ in range(100):  # of what it had taken, only the piece that it sold from is gone
        if used(meter) == 100:
            return
        shop.wait(0.1)
    pytest.fail(f"{used(meter)} are used still")


def test_close_is_for_good_and_harmless_to_repeat(shop: Shop) -> None:
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 100)
    lease.close()
    lease.close()
    with pytest.raises(PolicyError, match="closed lease"):
        lease.consume()
    assert "closed" in repr(lease.raw)


def test_with(shop: Shop) -> None:
    meter = shop.meter()
    if shop.runner is None:
        with meter.raw.lease("acme", "credits", 100) as lease:
            assert lease.consume(3)
    else:

        async def main() -> None:
            async with meter.raw.lease("acme", "credits", 100) as lease:
                assert (await lease.consume(3)).allowed

        shop.runner.run(main())
    assert used(meter) == 3
    assert holds(meter) == 0


def test_a_forgotten_await_is_loud(shop: Shop) -> None:
    if shop.runner is None:
        return
    meter = shop.meter()
    lease = shop.lease(meter, "acme", "credits", 100)
    with pytest.raises(TypeError, match=r"await lease\.consume"):
        bool(lease.raw.consume())
    with pytest.raises(TypeError, match=r"await meter\.lease"):
        bool(meter.raw.lease("acme", "credits"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lease.raw.consume()
        gc.collect()
    assert any("never awaited" in str(one.message) for one in seen)


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"amount": 0}, "amount: got 0"),
        ({"amount": -1}, "amount: got -1"),
        ({"amount": 1.5}, r"amount: got 1\.5"),
        ({"amount": True}, "amount: got True"),
        ({"amount": 10**15 + 1}, "amount: got"),
        ({"least": 0}, "least: got 0"),
        ({"most": 0}, "most: got 0"),
        ({"least": 11}, "least <= amount <= most"),
        ({"most": 9}, "least <= amount <= most"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": -1}, "ttl"),
        ({"ttl": "367d"}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"costs": {}}, "costs"),
        ({"costs": {"tokens": -1}}, "amount of 'tokens'"),
        ({"costs": {"tokens": 10**15}}, "largest chunk"),
        ({"costs": 5}, "costs"),
        ({"subject": ""}, "subject"),
        ({"join": 5}, "join"),
        ({"costs": "jobs"}, "jobs"),
        ({"costs": {"tokens": 1, "jobs": 1}, "amount": 2}, "slots 'jobs'"),
    ],
)
def test_bad_input(shop: Shop, named: dict[str, object], text: str) -> None:
    meter = shop.meter()
    given = {"subject": "acme", "costs": "tokens", "amount": 10, **named}
    with pytest.raises(PolicyError, match=text):
        shop.lease(meter, **given).consume()
    assert used(meter) == 0
    assert holds(meter) == 0


@pytest.mark.parametrize("n", [-1, 1.0, True, "1", None, 10**15 + 1])
def test_bad_amounts(shop: Shop, n: object) -> None:
    lease = shop.lease(shop.meter(), "acme", "credits", 10)
    with pytest.raises(PolicyError):
        lease.consume(n)
    assert lease.remaining == 10


@pytest.mark.parametrize("name", ["few", "ever", "fixed", "sliding", "token"])
def test_more_than_a_limit_can_give(shop: Shop, name: str) -> None:
    meter = shop.meter()
    limit = meter.usage("acme")[name].limit
    shop.lease(meter, "acme", name, limit).close()
    with pytest.raises(PolicyError, match=f"{name}.*can ever give"):
        shop.lease(meter, "acme", name, limit + 1)
    meter.consume("acme", name, limit // 2)
    with pytest.raises(PolicyError, match=f"{name}.*can ever give"):
        shop.lease(meter, "acme", name, limit + 1)
    for costs, amount in (({name: 1}, limit + 1), ({name: 2}, limit), ({name: limit + 1}, 1)):
        with pytest.raises(PolicyError, match=f"{name}.*can ever give"):
            shop.lease(meter, "acme", costs, amount)
    assert shop.lease(meter, "acme", name, limit).remaining > limit // 3
