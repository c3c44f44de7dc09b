"""The delivery loop: what is sent, kept, tried again, given up; several sinks and exporters."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meterd import AsyncMeter, Meter, PolicyError, Unavailable
from meterd.export import Entry, Exporter, JsonLines, Outcome, Sink, SinkError, StripeMeter, Webhook
from meterd.testing import ManualClock, fake
from tests.export.export_tools import AT, Elapsed, Streams, apart, together
from tests.export.receivers import DAY_S, KEY, SILENCE, Answer, Receiver, Scripted, Stripe, refusal
from tests.support import servers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(AT + 60_000)


@pytest.fixture
def meter(server: servers.Server, prefix: str, clock: ManualClock) -> Iterator[Meter]:
    with Meter(server.url, prefix=prefix, clock=clock, timeout=5) as made:
        yield made


@pytest.fixture
def provider() -> Iterator[Stripe]:
    with Stripe() as made:
        yield made


class Box:
    """A sink that takes everything, one by one: `got`. `say` decides otherwise."""

    def __new__(cls, name: str = "box", workers: int = 4) -> Any:
        class Made(Sink):
            def __init__(self) -> None:
                self.name = name
                self.workers = workers
                self.got: list[Entry] = []
                self.say: Callable[[Entry], Outcome] = lambda entry: Outcome("delivered")

            def send(self, entry: Entry, meta: Any, now_ms: int) -> Outcome:
                outcome = self.say(entry)
                if outcome.kind == "delivered":
                    self.got.append(entry)
                return outcome

        return Made()


Make = Callable[..., Exporter]


@pytest.fixture
def elapsed() -> Elapsed:
    return Elapsed()


@pytest.fixture
def exporter(meter: Meter, elapsed: Elapsed) -> Make:
    """`exporter(sink, **options)`: one for which no time passes."""

    def make(sink: Sink, which: Meter = meter, **options: Any) -> Exporter:
        made = Exporter(which, sink, **options)
        made._turn.monotonic = elapsed
        made._sleep = elapsed.sleep
        return made

    return make


def stripe(provider: Stripe, **how: Any) -> StripeMeter:
    return StripeMeter(KEY, api_base=provider.url, **{"timeout": 10.0, **how})


def keys_of(server: servers.Server, prefix: str, kind: str) -> list[str]:
    return list(server.admin.scan_iter(f"{prefix}:{{???}}:{kind}*", 5000))


# --- Everything once


def test_everything_is_delivered_and_removed(
    exporter: Make, streams: Streams, server: servers.Server, prefix: str
) -> None:
    roots = [*apart(30), *together(4)[1:]]
    for root in roots:
        for seq in range(1, 4):
            streams.use(f"{root}/ana", seq, seq=seq, birth="7-0")
    box = Box()
    report = exporter(box).run()
    assert (report.delivered, report.dead, report.waiting, report.retrying) == (99, 0, 0, 0)
    assert len({entry.id for entry in box.got}) == 99
    for root in roots:
        assert [entry.delta for entry in box.got if entry.root == root] == [1, 2, 3]
        assert streams.length(root) == 0
    assert keys_of(server, prefix, "lease") == []
    assert keys_of(server, prefix, "tries") == []
    assert exporter(box).run().delivered == 0


def test_thousands_in_one_partition(exporter: Make, streams: Streams, tmp_path: Path) -> None:
    for number in range(9000):
        streams.use("acme", number)
    file = tmp_path / "use.jsonl"
    assert exporter(JsonLines(file)).run().delivered == 9000
    assert [json.loads(line)["delta"] for line in file.read_text().splitlines()] == [*range(9000)]
    assert streams.length("acme") == 0


def test_harvest_comes_first(meter: Meter, exporter: Make, streams: Streams) -> None:
    meter.harvest = lambda: streams.use("acme") and 1  # type: ignore[attr-defined, assignment]
    assert exporter(Box()).run().delivered == 1


def test_to_stripe(meter: Meter, exporter: Make, streams: Streams, provider: Stripe) -> None:
    roots = apart(12)
    for number, root in enumerate(roots):
        meter.set_meta(root, {"stripe_customer": f"cus_{number % 6}"})
        for pool in ("credits", "tokens"):
            for seq in range(4):
                streams.use(f"{root}/x", seq + 1, pool=pool, seq=seq, birth=f"{number}-0")
    provider.slow_s = 0.002
    report = exporter(stripe(provider)).run()
    assert report.delivered == 96
    assert provider.billed == {
        (f"cus_{n}", pool): 20 for n in range(6) for pool in ("credits", "tokens")
    }
    assert provider.overlaps == 0  # one call at a time for each customer and meter
    assert len(provider.got) == 96


# --- What is tried again


def test_what_fails_is_tried_again_later(
    exporter: Make, streams: Streams, elapsed: Elapsed, server: servers.Server, prefix: str
) -> None:
    for root in apart(3):
        streams.use(root)
    failing = iter(["c0"] * 3)
    box = Box()
    box.say = lambda entry: (
        Outcome("retry", "busy")
        if entry.root == "c0" and next(failing, None)
        else Outcome("delivered")
    )
    report = exporter(box).run()
    assert (report.delivered, report.retrying, report.reasons) == (3, 0, {})
    assert len(elapsed.slept) == 3
    assert [0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(elapsed.slept)] == [True] * 3
    assert keys_of(server, prefix, "tries") == []


def test_a_run_ends_when_nothing_helps(exporter: Make, streams: Streams, elapsed: Elapsed) -> None:
    streams.use("acme")
    box = Box()
    box.say = lambda entry: Outcome("retry", "down")
    first = exporter(box, attempts=3)
    report = first.run()
    assert (report.delivered, report.retrying, report.reasons) == (0, 1, {"down": 1})
    (waiting,) = first.pending()
    assert (waiting.entry.root, waiting.attempts, waiting.reason) == ("acme", 3, "down")
    assert waiting.as_dict()["attempts"] == 3
    box.say = lambda entry: Outcome("delivered")
    assert exporter(box).run().delivered == 1  # another process
    assert first.pending() == []


def test_a_receiver_that_says_when_is_left_alone_until_then(
    exporter: Make, streams: Streams, elapsed: Elapsed
) -> None:
    streams.use("acme")
    said = iter([Outcome("retry", "later", 50.0), Outcome("delivered")])
    box = Box()
    box.say = lambda entry: next(said)
    assert exporter(box).run().delivered == 1
    assert elapsed.slept == [pytest.approx(50, abs=0.1)]


def test_one_that_always_fails_holds_up_nobody(exporter: Make, streams: Streams) -> None:
    for number in range(20):
        streams.use("acme", number)
    box = Box()
    box.say = lambda entry: Outcome("retry" if entry.delta == 0 else "delivered", "no")
    report = exporter(box).run()
    assert (report.delivered, report.retrying) == (19, 1)


def test_a_customer_at_the_limit_is_asked_once_a_pass(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe, elapsed: Elapsed
) -> None:
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    for number in range(10):
        streams.use("acme", number + 1)
    provider.plan = [refusal(429, "slow", Retry_After="9")] * 2
    assert exporter(stripe(provider)).run().delivered == 10
    assert elapsed.slept == [pytest.approx(9, abs=0.1)] * 2
    assert len(provider.got) == 12
    assert provider.billed == {("cus_1", "credits"): 55}


# --- What waits


def test_a_customer_without_stripe(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe, elapsed: Elapsed
) -> None:
    meter.set_meta("c0", {"stripe_customer": "cus_0"})
    streams.use("c0")
    for _ in range(2):
        streams.use("c1")
    first = exporter(stripe(provider))
    report = first.run()
    assert (report.delivered, report.waiting, report.dead) == (1, 2, 0)
    assert report.reasons == {"customer 'c1' has no meta stripe_customer": 2}
    assert [one.reason for one in first.pending()] == list(report.reasons) * 2
    assert elapsed.slept == []  # waiting would not help
    assert first.run().waiting == 2
    meter.set_meta("c1", {"stripe_customer": "cus_1"})
    assert first.run().delivered == 0  # not looked at again so soon
    elapsed.now += 31
    assert first.run().delivered == 2
    assert streams.length("c1") == 0


def test_pending_shows_what_nobody_has_read(exporter: Make, streams: Streams) -> None:
    for root in apart(3):
        streams.use(root)
        streams.use(root)
    looking = exporter(Box())
    assert len(looking.pending()) == 6
    assert len(looking.pending(4)) == 4
    assert looking.pending()[0].reason == ""
    looking.run()
    assert looking.pending() == []


# --- What is given up


def dead_one(meter: Meter, streams: Streams, provider: Stripe, make: Make) -> Exporter:
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    streams.use("acme", 7)
    provider.plan = [refusal(400, "No active meter found for event name credits.")]
    made = make(stripe(provider))
    report = made.run()
    assert (report.delivered, report.dead) == (0, 1)
    return made


def test_a_refusal_becomes_a_dead_letter(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe
) -> None:
    made = dead_one(meter, streams, provider, exporter)
    assert streams.length("acme") == 0
    (letter,) = made.dead()
    assert "No active meter found" in letter.reason
    assert letter.entry is not None
    assert letter.entry.delta == 7
    assert letter.id == letter.entry.id
    assert letter.as_dict()["attempted"] == "2025-01-02T00:01:00+00:00"
    assert made.run().delivered == 0
    assert exporter(Box()).dead() == []  # not another sink's
    assert len(provider.got) == 1


def test_dead_letters_are_sent_again_on_command(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe
) -> None:
    made = dead_one(meter, streams, provider, exporter)
    (letter,) = made.dead()
    with pytest.raises(PolicyError, match="no dead letter of stripe has the id nonsense"):
        made.resend(["nonsense"])
    provider.plan = [refusal(400, "Still none."), refusal(500, "oops")]
    assert [(one.id, outcome.kind) for one, outcome in made.resend([letter.id])] == [
        (letter.id, "dead")
    ]
    assert made.dead()[0].reason.endswith("Still none.")
    assert made.resend()[0][1].kind == "retry"
    assert len(made.dead()) == 1
    assert made.resend()[0][1].kind == "delivered"
    assert made.dead() == []
    assert made.resend() == []
    assert provider.billed == {("cus_1", "credits"): 7}


def test_dead_letters_are_given_up_on_command(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe
) -> None:
    made = dead_one(meter, streams, provider, exporter)
    with pytest.raises(PolicyError):
        made.discard(["nonsense"])
    assert [one.reason for one in made.discard()]
    assert made.dead() == []
    assert provider.billed == {}


def test_what_may_have_arrived_too_long_ago_is_not_sent_by_itself(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe, clock: ManualClock
) -> None:
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    streams.use("acme", 7)
    provider.after = [SILENCE]  # it arrived, and nobody was told
    first = exporter(stripe(provider, timeout=0.3), attempts=1)
    assert first.run().retrying == 1
    assert provider.billed == {("cus_1", "credits"): 7}
    clock.advance(hours=23, minutes=54)
    provider.now_s = clock.now_ms / 1000
    assert exporter(stripe(provider)).run().delivered == 1  # it says that it knows it
    streams.use("acme", 5)
    provider.after = [SILENCE]
    exporter(stripe(provider, timeout=0.3), attempts=1).run()
    clock.advance(hours=24)
    provider.now_s = clock.now_ms / 1000
    last = exporter(stripe(provider))
    assert last.run().dead == 1
    (letter,) = last.dead()
    assert "may have arrived" in letter.reason
    assert provider.billed == {("cus_1", "credits"): 12}


@pytest.mark.parametrize("answer", [refusal(429, "slow"), refusal(409, "locked")])
def test_what_certainly_never_arrived_may_be_tried_for_days(
    meter: Meter,
    exporter: Make,
    streams: Streams,
    provider: Stripe,
    clock: ManualClock,
    answer: Scripted,
) -> None:
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    streams.use("acme", 7)
    for _ in range(3):
        provider.plan = [answer]
        assert exporter(stripe(provider), attempts=1).run().retrying == 1
        clock.advance(hours=30)
        provider.now_s = clock.now_ms / 1000
    assert exporter(stripe(provider)).run().delivered == 1
    assert provider.billed == {("cus_1", "credits"): 7}


def test_what_waited_for_its_customer_may_be_old(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe, clock: ManualClock
) -> None:
    streams.use("acme", 7)
    assert exporter(stripe(provider)).run().waiting == 1
    clock.advance(days=20)
    provider.now_s = clock.now_ms / 1000
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    assert exporter(stripe(provider)).run().delivered == 1


def test_too_old_for_stripe_altogether(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe, clock: ManualClock
) -> None:
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    streams.use("acme", 7)
    clock.advance(days=90)
    provider.now_s += 90 * DAY_S
    made = exporter(stripe(provider))
    assert made.run().dead == 1
    assert "35 calendar days" in made.dead()[0].reason
    assert made.resend()[0][1].kind == "dead"
    assert provider.billed == {}


@pytest.mark.parametrize("apart_s", [600 * DAY_S, -600 * DAY_S])
def test_a_provider_whose_date_is_another_takes_all_the_same(
    meter: Meter,
    exporter: Make,
    streams: Streams,
    provider: Stripe,
    clock: ManualClock,
    elapsed: Elapsed,
    apart_s: int,
) -> None:
    """A stand-in for Stripe, or a proxy, may have any clock: only a refused timestamp counts."""
    provider.now_s += apart_s
    provider.tolerant = True
    provider.plan = [Answer(502, "<html>", {}), refusal(400, "No such meter")]
    for _ in range(2):
        for name in ("acme", "ben", "cho", "dee"):
            meter.set_meta(name, {"stripe_customer": f"cus_{name}"})
            streams.use(name, 7)
        clock.advance(days=31)
    report = exporter(stripe(provider, workers=1)).run()
    assert (report.delivered, report.dead, report.retrying) == (7, 1, 0)
    assert len(elapsed.slept) == 1


def test_a_clock_that_is_ahead_of_the_provider(
    meter: Meter,
    exporter: Make,
    streams: Streams,
    provider: Stripe,
    elapsed: Elapsed,
) -> None:
    """Use of a period that has not begun for Stripe waits, and a run does not wait with it."""
    meter.set_meta("acme", {"stripe_customer": "cus_1"})
    streams.use("acme", 7)
    right = provider.now_s
    provider.now_s -= 40 * DAY_S
    made = exporter(stripe(provider))
    report = made.run()
    assert (report.delivered, report.dead, report.retrying) == (0, 0, 1)
    assert elapsed.slept == []
    provider.now_s = right
    assert exporter(stripe(provider)).run().delivered == 1


def test_what_cannot_be_read_is_kept(
    exporter: Make, streams: Streams, server: servers.Server, tmp_path: Path
) -> None:
    server.admin.xadd(streams.key("acme", b"outbox"), {b"o": b"\xc1\xff"})
    streams.use("acme")
    made = exporter(JsonLines(tmp_path / "f"))
    report = made.run()
    assert (report.delivered, report.dead) == (1, 1)
    (letter,) = made.dead()
    assert letter.entry is None
    assert "cannot be read" in letter.reason
    assert json.dumps(letter.as_dict())
    assert made.resend()[0][1].kind == "dead"
    made.discard([letter.id])
    assert made.dead() == []


# --- A sink that cannot deliver at all


def test_a_wrong_key_loses_nothing(
    meter: Meter, exporter: Make, streams: Streams, provider: Stripe, clock: ManualClock
) -> None:
    for root in apart(5):
        meter.set_meta(root, {"stripe_customer": root})
        streams.use(root)
    wrong = StripeMeter("sk_test_wrong", api_base=provider.url)
    with pytest.raises(SinkError, match="Invalid API Key"):
        exporter(wrong).run()
    clock.advance(hours=48)  # nothing was delivered, so nothing is too old
    provider.now_s = clock.now_ms / 1000
    assert exporter(stripe(provider)).run().delivered == 5


def test_a_bug_in_a_sink_loses_nothing(exporter: Make, streams: Streams) -> None:
    for root in apart(5):
        streams.use(root)
    box = Box()

    def say(entry: Entry) -> Outcome:
        if entry.root == "c1":
            raise ZeroDivisionError
        return Outcome("delivered")

    box.say = say
    with pytest.raises(ZeroDivisionError):
        exporter(box).run()
    box.say = lambda entry: Outcome("delivered")
    exporter(box).run()
    assert len(box.got) == 5


def test_a_full_disk_loses_nothing(exporter: Make, streams: Streams, tmp_path: Path) -> None:
    streams.use("acme")
    with pytest.raises(SinkError, match="No space"):
        exporter(JsonLines("/dev/full")).run()
    assert exporter(JsonLines(tmp_path / "f")).run().delivered == 1


# --- Several sinks


def test_every_sink_gets_everything(exporter: Make, streams: Streams) -> None:
    one, two = Box("one"), Box("two")
    streams.use("c0")
    exporter(one).run()
    assert streams.length("c0") == 0  # nobody else is known yet
    exporter(two).run()
    for _ in range(3):
        streams.use("c0")
        streams.use("c1")
    exporter(one).run()
    assert streams.length("c0") == 3  # kept for the other, which has never read this stream
    exporter(two).run()
    assert streams.length("c0") == streams.length("c1") == 0
    assert (len(one.got), len(two.got)) == (7, 6)


def test_a_sink_that_comes_while_another_follows(exporter: Make, streams: Streams) -> None:
    one, two = Box("one"), Box("two")
    following = exporter(one)
    steps = iter([lambda: exporter(two).run(), lambda: streams.use("c0"), following.stop])
    following._sleep = lambda seconds: next(steps)()
    following.run(follow=True)
    assert len(one.got) == streams.length("c0") == 1
    exporter(two).run()
    assert len(two.got) == 1
    assert streams.length("c0") == 0


def test_a_sink_that_waits_keeps_only_what_it_waits_for(exporter: Make, streams: Streams) -> None:
    one, two = Box("one"), Box("two")
    exporter(two).run()
    exporter(one).run()
    for number in range(4):
        streams.use("c0", number)
    two.say = lambda entry: Outcome("waiting" if entry.delta == 1 else "delivered", "hm")
    exporter(two).run()
    exporter(one).run()
    assert streams.length("c0") == 1
    assert [one.entry.delta for one in exporter(two).pending()] == [1]
    assert exporter(one).pending() == []


def test_a_sink_that_is_retired_keeps_nothing(
    exporter: Make, streams: Streams, server: servers.Server, prefix: str
) -> None:
    one, two = Box("one"), Box("two")
    two.say = lambda entry: Outcome("retry", "no")
    exporter(two, attempts=1).run()
    streams.use("c0")
    exporter(two, attempts=1).run()
    exporter(one).run()
    assert streams.length("c0") == 1
    exporter(two).retire()
    assert keys_of(server, prefix, "tries") == []
    exporter(one).run()
    assert streams.length("c0") == 0
    assert len(one.got) == 1


def test_what_a_crash_left_settled_is_trimmed(
    exporter: Make, streams: Streams, server: servers.Server
) -> None:
    box = Box()
    ids = [streams.use("c0", number) for number in range(4)]
    box.say = lambda entry: Outcome("waiting" if entry.delta == 2 else "delivered", "hm")
    exporter(box).run()
    assert streams.length("c0") == 1
    left = [streams.use("c0", 10 + number) for number in range(2)]
    key = streams.key("c0", b"outbox")
    server.client().xreadgroup("box", "meterd", {key: ">"})
    server.admin.xack(key, "box", ids[2], *left)  # and then it was killed, before it deleted them
    assert streams.length("c0") == 3
    exporter(box).run()
    assert streams.length("c0") == 0


# --- Several exporters


def test_exporters_take_turns(
    exporter: Make, meter: Meter, streams: Streams, elapsed: Elapsed
) -> None:
    roots = apart(6)
    for root in roots:
        streams.use(root)
    first, second = Box(), Box()
    other = exporter(second)
    reports = []

    def say(entry: Entry) -> Outcome:
        if not reports:
            reports.append(None)
            reports.append(other.run())
        return Outcome("delivered")

    first.workers = 1
    first.say = say
    exporter(first).run()
    assert reports[1].busy == 6
    assert reports[1].delivered == 0
    assert (len(first.got), len(second.got)) == (6, 0)


def test_a_killed_exporters_partitions_are_left_to_others(
    exporter: Make, streams: Streams, server: servers.Server, prefix: str
) -> None:
    streams.use("acme")
    key = streams.key("acme", b"lease:box")
    server.admin.set(key, "somebody", px=60_000)
    box = Box()
    report = exporter(box).run()
    assert (report.delivered, report.busy) == (0, 1)
    assert server.admin.get(key) == "somebody"
    server.admin.delete(key)  # as its end does
    assert exporter(box).run().delivered == 1


def test_a_lease_that_runs_out_is_not_worked_on(
    exporter: Make, streams: Streams, elapsed: Elapsed, server: servers.Server
) -> None:
    for number in range(3):
        streams.use("acme", number)
    box = Box(workers=1)

    def say(entry: Entry) -> Outcome:
        if entry.delta == 0:
            elapsed.now += 200  # suspended; the lease is for 120
        return Outcome("delivered")

    box.say = say
    made = exporter(box)
    made._sleep = lambda seconds: made.stop()
    made.run()
    assert [entry.delta for entry in box.got] == [0]
    # Somebody else's by now, for all we know.
    assert server.admin.exists(streams.key("acme", b"lease:box"))


def test_a_lease_is_renewed(
    exporter: Make, streams: Streams, elapsed: Elapsed, server: servers.Server
) -> None:
    for number in range(300):
        streams.use("acme", number)
    key = streams.key("acme", b"lease:box")
    left: list[int] = []
    box = Box(workers=1)

    def say(entry: Entry) -> Outcome:
        if entry.delta == 0:
            server.admin.pexpire(key, 60_000)
            elapsed.now += 60
        left.append(server.admin.pttl(key))
        return Outcome("delivered")

    box.say = say
    assert exporter(box).run().delivered == 300
    assert left[0] <= 60_000
    assert left[-1] > 60_000


def test_many_exporters_at_once(
    server: servers.Server, prefix: str, streams: Streams, provider: Stripe, clock: ManualClock
) -> None:
    roots = apart(40)
    with Meter(server.url, prefix=prefix, clock=clock, timeout=5) as meter:
        for root in roots:
            meter.set_meta(root, {"stripe_customer": f"cus_{root}"})
            for number in range(5):
                streams.use(root, number + 1)

        def work() -> None:
            with Meter(server.url, prefix=prefix, clock=clock, timeout=5) as own:
                for _ in range(3):
                    Exporter(own, stripe(provider)).run()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        Exporter(meter, stripe(provider)).run()
    assert provider.billed == {(f"cus_{root}", "credits"): 15 for root in roots}
    assert provider.overlaps == 0
    assert len(provider.got) == 200


# --- Following


def test_following_ends_on_command(exporter: Make, streams: Streams) -> None:
    streams.use("c0")
    box = Box()
    made = exporter(box)
    passes = iter(range(5))

    def sleep(seconds: float) -> None:
        if next(passes, None) is None:
            made.stop()
        streams.use("c1")

    made._sleep = sleep
    made.run(follow=True)
    assert len(box.got) == 6


def test_following_survives_a_server_that_is_away(prefix: str, tmp_path: Path) -> None:
    with servers.start() as own:
        streams = Streams(own.admin, prefix)
        with Meter(own.url, prefix=prefix, timeout=0.2) as meter:
            box = Box()
            made = Exporter(meter, box)
            streams.use("c0")
            steps = iter([own.stop, lambda: None, own.restart, lambda: streams.use("c1")])
            slept: list[float] = []

            def sleep(seconds: float) -> None:
                slept.append(seconds)
                step: Any = next(steps, made.stop)
                step()

            made._sleep = sleep
            made.run(follow=True)
            assert [entry.root for entry in box.got] in (["c0", "c1"], ["c0"])
            assert len(slept) == 5
            own.stop()
            with pytest.raises(Unavailable):
                made.run()
            own.restart()


def test_wrong_arguments(meter: Meter) -> None:
    with pytest.raises(PolicyError, match="name"):
        Exporter(meter, Box("a b"))
    with pytest.raises(PolicyError, match=r"^interval: "):
        Exporter(meter, Box(), interval=0)
    with pytest.raises(PolicyError, match=r"^lease: .* twice"):
        Exporter(meter, Box(), lease=10)
    with pytest.raises(PolicyError, match=r"^meter: "):
        Exporter(AsyncMeter("redis://x"), Box())  # type: ignore[arg-type]


# --- Elsewhere


def test_on_fakeredis() -> None:
    with fake() as meter:
        from tests.export.test_events import Through

        streams = Streams(Through(meter), "meterd")
        streams.use("c0")
        streams.use("c1")
        box = Box()
        said = iter([Outcome("dead", "no")])
        box.say = lambda entry: next(said, Outcome("delivered"))
        made = Exporter(meter, box)
        report = made.run()
        assert (report.delivered, report.dead) == (1, 1)
        assert made.resend()[0][1].kind == "delivered"
        assert made.pending() == []


@pytest.mark.matrix
def test_every_server(matrix_server: servers.Server, prefix: str) -> None:
    streams = Streams(matrix_server.admin, prefix)
    one, two = Box("one"), Box("two")
    with Meter(matrix_server.url, prefix=prefix) as meter:
        Exporter(meter, two).run()
        for root in apart(5):
            streams.use(root)
            streams.use(root)
        one.say = lambda entry: Outcome("dead" if entry.root == "c1" else "delivered", "no")
        report = Exporter(meter, one).run()
        assert (report.delivered, report.dead) == (8, 2)
        assert len(Exporter(meter, one).resend()) == 2
        assert Exporter(meter, two).run().delivered == 10
        assert all(streams.length(root) == 0 for root in apart(5))


def test_a_cluster(prefix: str) -> None:
    import redis

    with servers.Cluster() as cluster:
        admin = redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
        streams = Streams(admin, prefix)
        roots = apart(40)
        for root in roots:
            streams.use(root)
        box = Box()
        with Meter(cluster.url, prefix=prefix, timeout=5) as meter:
            assert Exporter(meter, box).run().delivered == 40
            assert {entry.root for entry in box.got} == set(roots)
        admin.close()


def test_webhooks(exporter: Make, streams: Streams) -> None:
    with Receiver() as receiver:
        receiver.plan = [Answer(500), Answer(400, "what?")]
        for _ in range(4):
            streams.use("acme")
        made = exporter(Webhook(receiver.url, SECRET))
        report = made.run()
        assert (report.delivered, report.dead) == (3, 1)
        assert len(receiver.got) == 5
        assert made.dead()[0].reason.endswith("answered 400: what?")
        assert DAY_S
