"""Sinks one by one: what they send, and what each kind of answer means."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgpack
import pytest
from standardwebhooks import Webhook as Verifier

from meterd import Event, PolicyError
from meterd.export import Entry, JsonLines, Outcome, Sink, SinkError, StripeMeter, Webhook
from meterd.export.entry import decode_entry
from meterd.export.sink import backoff, retry_after
from tests.export.export_tools import AT, END, START
from tests.export.receivers import (
    DAY_S,
    GARBAGE,
    HANG_UP,
    KEY,
    SILENCE,
    Answer,
    Receiver,
    Scripted,
    Stripe,
    refusal,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
META = {"stripe_customer": "cus_1"}


def entry(**changes: Any) -> Entry:
    row = ["acme/ana", "credits", 5, 1, "1735689600000-0", START, END, AT, "use"]
    return decode_entry(7, b"1-1", msgpack.packb(row))._replace(**changes)


_made: list[Sink] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def kept(sink: Any) -> Any:
    """A sink that is closed at the end of the test."""
    _made.append(sink)
    return sink


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture
def provider() -> Iterator[Stripe]:
    with Stripe() as made:
        yield made


# --- Entries


def row(**changes: Any) -> bytes:
    known = {
        "subject": "acme/a%2Fb", "pool": "credits", "delta": 5, "seq": 3, "birth": "17-0",
        "start": START, "end": END, "at": AT, "bill": "use",
    }  # fmt: skip
    packed: bytes = msgpack.packb(list((known | changes).values()))
    return packed


def test_an_entry() -> None:
    found = decode_entry(0, b"55-1", row())
    assert found.as_dict() == {
        "id": found.id,
        "subject": ["acme", "a/b"],
        "customer": "acme",
        "pool": "credits",
        "delta": 5,
        "bill": "use",
        "period_start": "2025-01-01T00:00:00+00:00",
        "period_end": "2025-02-01T00:00:00+00:00",
        "at": "2025-01-02T00:00:00+00:00",
    }
    assert decode_entry(0, b"55-1", row(end=None, delta=-3.0)).as_dict()["period_end"] is None


def test_identifiers_are_apart_and_fit() -> None:
    first = decode_entry(0, b"55-1", row(birth="")).id
    assert first == decode_entry(0, b"99-9", row(birth="55-1")).id  # the first names the others
    others = [
        decode_entry(1, b"55-1", row(birth="")),
        decode_entry(0, b"55-2", row(birth="")),
        decode_entry(0, b"55-1", row(birth="", pool="other")),
        decode_entry(0, b"55-1", row(birth="", seq=4)),
        decode_entry(0, b"55-1", row(birth="", subject="acme/ab")),
        decode_entry(0, b"55-1", row(birth="", pool="a.b")),
        decode_entry(0, b"55-1", row(birth="", pool="p" * 64)),
        decode_entry(0, b"55-1", row(birth="", pool="p" * 63)),
    ]
    ids = {first, *(one.id for one in others)}
    assert len(ids) == 9
    long = decode_entry(0, b"1735689600000-100000", row(birth="", pool="p" * 64, seq=2**53)).id
    for one in [*ids, long]:
        assert len(one) <= 100
        assert "." not in one  # a webhook id must have none


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb(1), row(delta="5"), row(subject=7)])
def test_what_is_no_entry(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        decode_entry(0, b"1-1", data)


# --- When to try again


def test_backoff_grows_and_listens() -> None:
    for attempts in range(1, 12):
        longest = min(0.5 * 2**attempts, 600)
        assert all(longest / 2 <= backoff(attempts) <= longest for _ in range(50))
    assert backoff(1, 40.0) == 40
    assert backoff(1, 86400.0) == 3600  # nobody makes us wait for a day
    assert backoff(10**6) <= 600


def test_retry_after() -> None:
    assert retry_after("7", 0) == 7
    assert retry_after(formatdate(1000, usegmt=True), 990) == 10
    assert retry_after(formatdate(1000, usegmt=True), 1010) == 0
    assert retry_after(None, 0) is None
    assert retry_after("soon", 0) is None


# --- JSON lines


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "use.jsonl"
    for number in range(2):
        sink = JsonLines(file)
        sink.write([entry(id=f"{number}-{n}") for n in range(3)])
        sink.close()
    assert [line["id"] for line in lines(file)] == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert lines(file)[0] == entry(id="0-0").as_dict()


@pytest.mark.parametrize("torn", ['{"id": "x"', "x" * 200_000])
def test_a_line_that_a_crash_cut_short_is_removed(tmp_path: Path, torn: str) -> None:
    for before in ("", '{"id":"whole"}\n'):
        file = tmp_path / "use.jsonl"
        file.write_text(before + torn)
        sink = JsonLines(file)
        sink.write([entry()])
        sink.close()
        assert file.read_text().startswith(before + '{"id":"')
        assert torn not in file.read_text()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = JsonLines(tmp_path / "f"), JsonLines(tmp_path / "f")
    first.write([entry()])
    with pytest.raises(SinkError, match="another exporter"):
        second.write([entry()])
    first.close()
    second.write([entry()])
    second.close()
    assert len(lines(tmp_path / "f")) == 2


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="No such file"):
        JsonLines(tmp_path / "missing" / "f").write([entry()])
    sinks = [JsonLines("/dev/full"), JsonLines("/dev/full")]  # which is nobody's alone
    for sink in sinks:
        with pytest.raises(SinkError, match="No space left"):
            sink.write([entry()])
    for sink in sinks:
        sink.close()


def test_half_of_what_was_written_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JsonLines(tmp_path / "f")
    sink.write([entry(id="1")])
    original = os.write
    calls = iter([10])

    def write(descriptor: int, data: Any) -> int:
        if (most := next(calls, None)) is None:
            raise OSError(28, "No space left on device")
        return original(descriptor, data[:most])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(SinkError, match="No space"):
            sink.write([entry(id="2")])
    sink.write([entry(id="3")])
    sink.close()
    assert [line["id"] for line in lines(tmp_path / "f")] == ["1", "3"]


def test_it_is_on_the_disk_when_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        original(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    sink = JsonLines(tmp_path / "f")
    sink.write([entry()])
    assert synced == [(tmp_path / "f").stat().st_size]
    sink.close()


# --- Webhooks


def hook(receiver: Receiver, **how: Any) -> Webhook:
    made: Webhook = kept(Webhook(f"{receiver.url}/in?x=1", SECRET, **{"timeout": 10.0, **how}))
    return made


def test_a_webhook_can_be_verified(receiver: Receiver) -> None:
    sink = hook(receiver)
    for _ in range(2):
        assert sink.send(entry(), {}, 0) == Outcome("delivered")
    first, second = receiver.got
    assert first.path == "/in?x=1"
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == entry().id
    said = Verifier(SECRET).verify(first.body, dict(first.headers))
    assert said == {
        "type": "usage.recorded",
        "timestamp": "2025-01-02T00:00:00+00:00",
        "data": entry().as_dict(),
    }
    assert abs(int(first.headers["webhook-timestamp"]) - time.time()) < 60


def test_an_event_as_a_webhook(receiver: Receiver) -> None:
    moment = datetime(2025, 1, 1, tzinfo=UTC)
    event = Event("0QG-1-1", "warn", "acme", "credits", "free", 100, 80, 20, moment, None, moment,
                  {"crm": 7}, 0.8)  # fmt: skip
    assert hook(receiver).send_event(event).kind == "delivered"
    (got,) = receiver.got
    said = Verifier(SECRET).verify(got.body, dict(got.headers))
    assert said["type"] == "limit.warn"
    assert said["data"] == event.as_dict()
    assert got.headers["webhook-id"] == event.id


@pytest.mark.parametrize(
    ("answer", "kind", "certain"),
    [
        (Answer(200, "not JSON"), "delivered", False),
        (Answer(204, ""), "delivered", False),
        (Answer(301, "", {"location": "http://elsewhere"}), "retry", False),
        (Answer(400, "no"), "dead", False),
        (Answer(401, "no"), "dead", False),
        (Answer(404, "no"), "dead", False),
        (Answer(408, ""), "retry", False),
        (Answer(410, "gone"), "dead", False),
        (Answer(429, ""), "retry", True),
        (Answer(500, "oops"), "retry", False),
        (Answer(503, "x" * 100_000), "retry", False),
        (SILENCE, "retry", False),
        (HANG_UP, "retry", False),
        (GARBAGE, "retry", False),
    ],
)
def test_what_an_answer_to_a_webhook_means(
    receiver: Receiver, answer: Scripted, kind: str, certain: bool
) -> None:
    receiver.plan = [answer]
    sink = hook(receiver, timeout=0.3 if answer == SILENCE else 10.0)
    outcome = sink.send(entry(), {}, 0)
    sink._timeout = 10.0
    assert (outcome.kind, outcome.certain) == (kind, certain)
    assert len(outcome.reason) < 500
    if kind != "delivered":
        assert receiver.url.removeprefix("http://") in outcome.reason
    assert sink.send(entry(), {}, 0).kind == "delivered"  # whatever became of the connection


def test_a_receiver_that_says_when(receiver: Receiver) -> None:
    receiver.plan = [Answer(429, "", {"Retry-After": "17"})]
    assert hook(receiver).send(entry(), {}, 0).after == 17


def test_nobody_there() -> None:
    with Receiver() as gone:
        sink = hook(gone)
    assert sink.send(entry(), {}, 0).kind == "retry"


def test_a_connection_that_was_closed_while_idle(receiver: Receiver) -> None:
    receiver.plan = [Answer(), HANG_UP]
    sink = hook(receiver)
    assert sink.send(entry(), {}, 0).kind == "delivered"
    assert sink.send(entry(), {}, 0).kind == "delivered"
    assert len(receiver.got) == 3


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("ftp://x/y", SECRET),
        ("http://", SECRET),
        ("nonsense", SECRET),
        ("http://[::1", SECRET),
        ("http://h:99999/", SECRET),
        ("https://h/", "whsec_"),
        ("https://h/", "whsec_canary*canary"),
        ("https://h/", ""),
    ],
)
def test_a_webhook_that_cannot_work(url: str, secret: str) -> None:
    with pytest.raises(PolicyError, match=r"^webhook ") as caught:
        Webhook(url, secret)
    assert "canary" not in str(caught.value)


# --- Stripe


def stripe(provider: Stripe, **how: Any) -> StripeMeter:
    how = {"timeout": 10.0, **how}
    made: StripeMeter = kept(StripeMeter(KEY, api_base=provider.url, **how))
    return made


def test_a_meter_event(provider: Stripe) -> None:
    sink = stripe(provider, event_names={"credits": "ai_credits"})
    assert sink.lane(entry(), META, AT) == ("cus_1", "ai_credits")
    assert sink.send(entry(), META, AT) == Outcome("delivered")
    assert provider.events == [
        {
            "event_name": "ai_credits",
            "identifier": entry().id,
            "timestamp": AT // 1000,
            "customer": "cus_1",
            "value": "5",
        }
    ]


def test_the_same_again_is_delivered_once(provider: Stripe) -> None:
    sink = stripe(provider)
    for _ in range(3):
        assert sink.send(entry(), META, AT) == Outcome("delivered")
    assert provider.billed == {("cus_1", "credits"): 5}
    keys = {got.headers["idempotency-key"] for got in provider.got}
    assert len(keys) == 3  # or a stored 500 would be repeated for a day


@pytest.mark.parametrize("code", ["resource_already_exists", "duplicate_meter_event"])
def test_duplicates_by_their_code(provider: Stripe, code: str) -> None:
    error = {"type": "invalid_request_error", "message": "no", "code": code}
    provider.plan = [Answer(400, json.dumps({"error": error}))]
    assert stripe(provider).send(entry(), META, AT) == Outcome("delivered")


@pytest.mark.parametrize("status", [400, 409])
@pytest.mark.parametrize(
    "words",
    [
        "An event already exists with identifier {}.",
        "A meter event with identifier {} already exists.",
        "A meter event with this identifier already exists",
        "Duplicate identifier: {}",
        "The identifier {} was already used",
    ],
)
def test_duplicates_by_their_words(provider: Stripe, status: int, words: str) -> None:
    provider.plan = [refusal(status, words.format(entry().id))]
    assert stripe(provider).send(entry(), META, AT) == Outcome("delivered")


@pytest.mark.parametrize(
    "words", ["Invalid identifier: {}", "A price already exists", "Another request is under way"]
)
def test_what_is_no_duplicate(provider: Stripe, words: str) -> None:
    provider.plan = [refusal(400, words.format(entry().id))]
    assert stripe(provider).send(entry(), META, AT).kind == "dead"


@pytest.mark.parametrize(
    ("answer", "kind", "certain"),
    [
        (refusal(400, "No active meter found"), "dead", False),
        (refusal(402, "no"), "dead", False),
        (refusal(404, "no"), "dead", False),
        (refusal(409, "lock_timeout"), "retry", True),
        (refusal(429, "slow down"), "retry", True),
        (refusal(500, "oops"), "retry", False),
        (Answer(200, "<html>"), "retry", False),
        (Answer(200, "[]"), "retry", False),
        (Answer(200, "null"), "retry", False),
        (Answer(200, '{"error": "an odd proxy"}'), "retry", False),
        (Answer(200, '{"object": "customer", "id": "cus_1"}'), "retry", False),
        (Answer(400, "<html>"), "retry", False),
        (Answer(403, "<html>"), "retry", False),
        (Answer(503, "<html>"), "retry", False),
        (Answer(500, ""), "retry", False),
        (SILENCE, "retry", False),
        (HANG_UP, "retry", False),
        (GARBAGE, "retry", False),
    ],
)
def test_what_an_answer_of_stripe_means(
    provider: Stripe, answer: Scripted, kind: str, certain: bool
) -> None:
    provider.plan = [answer]
    sink = stripe(provider, timeout=0.3 if answer == SILENCE else 10.0)
    outcome = sink.send(entry(), META, AT)
    sink = stripe(provider)
    assert (outcome.kind, outcome.certain) == (kind, certain)
    assert outcome.reason
    if isinstance(answer, Answer) and "message" in answer.body:
        assert json.loads(answer.body)["error"]["message"] in outcome.reason  # its own words
    assert sink.send(entry(), META, AT) == Outcome("delivered")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("body", ["<html>", json.dumps({"error": {"message": "no"}})])
def test_stripe_says_when(provider: Stripe, status: int, body: str) -> None:
    provider.plan = [Answer(status, body, {"Retry-After": "23"})]
    assert stripe(provider).send(entry(), META, AT).after == 23


def test_a_wrong_key_stops_everything_and_is_not_shown(provider: Stripe) -> None:
    sink = kept(StripeMeter("sk_test_wrongcanary", api_base=provider.url))
    with pytest.raises(SinkError, match="Invalid API Key") as caught:
        sink.send(entry(), META, AT)
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(sink)
    with pytest.raises(PolicyError, match="empty"):
        StripeMeter(" ")


@pytest.mark.parametrize("meta", [{}, {"stripe_customer": ""}, {"stripe_customer": 7}])
def test_a_customer_that_stripe_does_not_know(provider: Stripe, meta: dict[str, Any]) -> None:
    outcome = stripe(provider).lane(entry(), meta, AT)
    assert outcome == Outcome("waiting", "customer 'acme' has no meta stripe_customer")


def test_no_use_is_no_event_and_negative_use_is_one(provider: Stripe) -> None:
    sink = stripe(provider)
    assert sink.lane(entry(delta=0), META, AT) == Outcome("delivered")
    assert sink.send(entry(delta=-3), META, AT) == Outcome("delivered")
    assert provider.billed == {("cus_1", "credits"): -3}
    provider.check = lambda event: refusal(400, "must be positive")
    outcome = sink.send(entry(id="2", delta=-3), META, AT)
    assert outcome.kind == "dead"
    assert "must be positive" in outcome.reason


@pytest.mark.parametrize(
    ("now_s", "changes", "wanted"),
    [
        (AT // 1000 + 60, {}, AT // 1000),  # when it was harvested
        (AT // 1000 - 5, {}, AT // 1000 - 5),  # never after now
        (END // 1000 + DAY_S, {"at_ms": END + 999}, END // 1000 - 1),  # inside its period
        (AT // 1000, {"at_ms": START - 5000}, START // 1000),
        (AT // 1000, {"period_start_ms": AT - 500, "at_ms": AT - 400}, AT // 1000),
        (AT // 1000, {"period_start_ms": AT - 5000, "period_end_ms": AT}, AT // 1000 - 1),
        (AT // 1000 + 40 * DAY_S, {"period_end_ms": None}, AT // 1000 + 5 * DAY_S + 300),
        (START // 1000 - 100, {}, START // 1000),  # a clock that is a little behind
    ],
)  # fmt: skip
def test_the_timestamp(provider: Stripe, now_s: int, changes: dict[str, Any], wanted: int) -> None:
    provider.now_s = now_s
    sink = stripe(provider)
    assert sink.send(entry(**changes), META, now_s * 1000) == Outcome("delivered")
    assert provider.events[0]["timestamp"] == wanted


def test_a_period_that_has_only_just_begun(provider: Stripe) -> None:
    """Its first whole second is waited for: a timestamp is in the period and not after now."""
    sink = stripe(provider)
    slept: list[float] = []
    sink._sleep = slept.append  # type: ignore[assignment]
    new = entry(period_start_ms=AT - 900, at_ms=AT - 600)
    assert sink.send(new, META, AT - 600) == Outcome("delivered")
    assert slept == [pytest.approx(0.6)]
    assert provider.events[0]["timestamp"] == AT // 1000
    assert sink.send(new._replace(id="2"), META, AT) == Outcome("delivered")
    assert len(slept) == 1


def test_a_period_that_stripe_takes_no_more(provider: Stripe) -> None:
    """That is for Stripe to say: nobody else knows its clock."""
    now_ms = END + 36 * DAY_S * 1000
    provider.now_s = now_ms / 1000
    outcome = stripe(provider).send(entry(), META, now_ms)
    assert outcome.kind == "dead"
    assert "35 calendar days" in outcome.reason
    assert len(provider.got) == 1


def test_a_store_whose_clock_is_ahead(provider: Stripe) -> None:
    """Stripe's shows in the answer that refuses the timestamp; the next one is right."""
    provider.now_s = AT / 1000 - 3600
    sink = stripe(provider)
    first = sink.send(entry(period_start_ms=AT - 7_200_000), META, AT)
    assert (first.kind, first.after, first.certain) == ("retry", 0.0, True)
    assert "timestamp" in first.reason
    assert sink.send(entry(period_start_ms=AT - 7_200_000), META, AT).kind == "delivered"
    assert abs(provider.events[0]["timestamp"] - provider.now_s) < 3
    early = sink.lane(entry(period_start_ms=AT - 1000), META, AT)
    assert isinstance(early, Outcome)
    assert (early.kind, early.certain) == ("retry", True)
    assert early.after == pytest.approx(3599, abs=3)
    provider.now_s = AT / 1000  # set right: that shows in any answer
    later = entry(id="2", period_start_ms=AT - 7_200_000)
    assert sink.send(later, META, AT).kind == "delivered"
    assert sink.send(later._replace(id="3"), META, AT).kind == "delivered"
    assert provider.events[-1]["timestamp"] == AT // 1000


def test_the_packages_are_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "stripe", None)
    monkeypatch.setitem(__import__("sys").modules, "standardwebhooks", None)
    with pytest.raises(PolicyError, match=r"meterd\[stripe\]"):
        StripeMeter(KEY)
    with pytest.raises(PolicyError, match=r"meterd\[webhooks\]"):
        Webhook("https://h/", SECRET)
