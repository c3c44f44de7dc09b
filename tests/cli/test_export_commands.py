"""`events`, `export` and what `doctor` says of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meterd.cli import checks
from meterd.cli.backlog import Backlog
from meterd.cli.checks import OK, WARN
from tests.cli.helpers import Run, data_of
from tests.export.export_tools import Streams, apart
from tests.export.receivers import KEY, Answer, Receiver, Stripe, refusal
from tests.support import servers
from tests.support.servers import Server, wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def streams(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)
    monkeypatch.delenv("METERD_WEBHOOK_SECRET", raising=False)
    return Streams(server.admin, os.environ["METERD_PREFIX"])


@pytest.fixture
def provider(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stripe]:
    with Stripe() as made:
        made.now_s = time.time()
        yield made


def use(streams: Streams, subject: str, delta: int = 5, **more: object) -> str:
    """Of a period that is running now."""
    now_ms = int(time.time() * 1000)
    times = {"start": now_ms - 60_000, "end": None, "at": now_ms}
    return streams.use(subject, delta, **(times | more))  # type: ignore[arg-type]


# --- events


def test_events_are_shown_once(run: Run, streams: Streams) -> None:
    streams.event("acme/ana", "warn", "0.8", remaining=20)
    streams.event("acme", "exhausted")
    result = run("events")
    assert result.exit_code == 0
    one, two = result.stdout.splitlines()
    assert "warn" in one
    assert one.endswith("acme/ana  credits 100 of 100 (past 0.8)")
    assert "exhausted  acme  credits" in two
    assert run("events").stdout == ""
    assert len(run("events", "others").stdout.splitlines()) == 2


def test_events_as_lines(run: Run, streams: Streams, tmp_path: Path) -> None:
    for kind in ("warn", "exhausted", "closed"):
        streams.event("acme", kind)
    shown = [json.loads(line) for line in run("events", "a", "--json").stdout.splitlines()]
    assert [row["type"] for row in shown] == ["warn", "exhausted", "closed"]
    result = run("events", "b", "--types", "warn,closed", "--to", "jsonl", "--file", "e.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    lines = [json.loads(line) for line in Path("e.jsonl").read_text().splitlines()]
    assert [row["type"] for row in lines] == ["warn", "closed"]


def test_events_as_webhooks(run: Run, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERD_WEBHOOK_SECRET", SECRET)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    ids = [streams.event("acme") for _ in range(3)]
    with Receiver() as receiver:
        receiver.plan = [Answer(500), Answer(), Answer(400, "no such thing")]
        result = run("events", "--to", "webhook", "--endpoint", receiver.url)
        assert result.exit_code == 1
        assert f"refused: {ids[1]}: " in result.stderr
        assert "no such thing" in result.stderr
        assert [got.headers["webhook-id"] for got in receiver.got] == [ids[0], *ids]
        assert run("events", "--to", "webhook", "--endpoint", receiver.url).exit_code == 0
        streams.event("acme")
        receiver.plan = [Answer(503)] * 5
        result = run("events", "--to", "webhook", "--endpoint", receiver.url)
        assert result.exit_code == 1
        assert "stays with the group" in result.stderr
        assert run("events", "--to", "webhook", "--endpoint", receiver.url).exit_code == 0
        assert SECRET not in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--types", "warned"],
        ["--endpoint", "http://x"],
        ["--file", "x"],
        ["--to", "webhook"],
        ["--to", "webhook", "--endpoint", "http://x"],
    ],
)
def test_wrong_words_for_events(run: Run, streams: Streams, words: list[str]) -> None:
    assert run("events", *words).exit_code == 2


def test_following_ends_when_it_is_told_to(server: Server, streams: Streams) -> None:
    """A process of its own: two events come while it waits, then it is terminated."""
    command = [sys.executable, "-m", "meterd", "events", "--follow", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        ids = [streams.event(root) for root in apart(2)]
        lines = [json.loads(child.stdout.readline()) for _ in ids]
        assert {line["id"] for line in lines} == set(ids)
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


# --- export


def test_export_to_lines(run: Run, streams: Streams) -> None:
    for root in apart(3):
        use(streams, root)
    result = run("export", "--to", "jsonl")
    assert result.exit_code == 0
    assert {json.loads(line)["customer"] for line in result.stdout.splitlines()} == set(apart(3))
    assert result.stderr.splitlines() == ["3 delivered"]
    use(streams, "acme")
    result = run("export", "--to", "jsonl", "--file", "use.jsonl", "--json")
    assert data_of(result)["delivered"] == 1
    assert json.loads(Path("use.jsonl").read_text())["customer"] == "acme"


def test_export_to_stripe(
    run: Run, streams: Streams, provider: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", KEY)
    Path("meterd.toml").write_text('[export.stripe]\nevent_names = { credits = "ai" }\n')
    to_stripe = ("export", "--to", "stripe", "--endpoint", provider.url)
    use(streams, "acme/ana", 7)
    result = run(*to_stripe)
    assert result.exit_code == 0  # nothing failed
    assert "1 waiting (see --pending)" in result.stdout
    assert "1 not delivered: customer 'acme' has no meta stripe_customer" in result.stderr
    (row,) = data_of(run("export", "--to", "stripe", "--pending", "--json"))
    assert row["delta"] == 7
    assert "credits +7  customer 'acme' has no" in run(*to_stripe, "--pending").stdout
    server_side = Streams(streams.admin, streams.keys.prefix)
    from meterd import Meter

    with Meter(prefix=streams.keys.prefix) as meter:
        meter.set_meta("acme", {"stripe_customer": "cus_1"})
    provider.plan = [refusal(400, "No active meter found for ai")]
    result = run(*to_stripe, "--event-name", "tokens=ai_tokens")
    assert result.exit_code == 1
    assert "1 dead (see --dead)" in result.stdout
    (letter,) = data_of(run("export", "--to", "stripe", "--dead", "--json"))
    assert "No active meter found for ai" in letter["reason"]
    assert "acme/ana  credits +7" in run("export", "--to", "stripe", "--dead").stdout
    assert run(*to_stripe, "--resend", "nonsense").exit_code == 1
    provider.plan = [refusal(400, "Still not")]
    result = run(*to_stripe, "--resend", letter["id"])
    assert result.exit_code == 1
    assert "Still not" in result.stdout
    assert run(*to_stripe, "--resend", "all").exit_code == 0
    assert provider.billed == {("cus_1", "ai"): 7}
    assert run("export", "--to", "stripe", "--dead").stdout == "no dead letters\n"
    assert run(*to_stripe, "--resend", "all").stdout == "no dead letters\n"
    assert server_side.length("acme") == 0


def test_dead_letters_can_be_given_up_and_sinks_retired(run: Run, streams: Streams) -> None:
    streams.admin.xadd(streams.key("acme", b"outbox"), {b"o": b"nonsense"})
    assert run("export", "--to", "jsonl", "--file", "f", "--name", "archive").exit_code == 1
    listed = ("export", "--to", "jsonl", "--name", "archive", "--dead", "--json")
    assert len(data_of(run(*listed))) == 1
    assert run("export", "--to", "jsonl", "--name", "archive", "--discard", "all").exit_code == 0
    assert data_of(run(*listed)) == []
    assert run("export", "--to", "jsonl", "--name", "archive", "--retire").exit_code == 0
    use(streams, "acme")
    assert run("export", "--to", "jsonl", "--file", "f").exit_code == 0
    assert streams.length("acme") == 0


@pytest.mark.parametrize("kind", ["stripe", "webhook"])
def test_secrets_come_from_a_file_and_are_shown_nowhere(
    run: Run, streams: Streams, server: Server, kind: str
) -> None:
    canary = "sk_test_CANARYcanary" if kind == "stripe" else "whsec_Q0FOQVJZY2FuYXJ5Q0FOQVJZ"
    Path("secret").write_text(canary + "\n")
    use(streams, "acme")
    from meterd import Meter

    with Meter(prefix=streams.keys.prefix) as meter:
        meter.set_meta("acme", {"stripe_customer": "cus_1"})
    with Receiver() as receiver:
        receiver.plan = [
            refusal(400, f"what is {canary}?"),
            refusal(401, f"Invalid API Key provided: {canary}"),
        ]
        where = ("export", "--to", kind, "--endpoint", receiver.url, "--secret-file", "secret")
        shown = [run(*where), run(*where, "--pending"), run(*where, "--dead", "--json")]
        use(streams, "acme")
        shown.append(run(*where))
    if kind == "stripe":
        assert any(canary in got.headers["authorization"] for got in receiver.got)
        for result in shown:
            assert canary not in result.output + result.stderr
        assert "***" in shown[2].output
        assert shown[3].exit_code == 1
        for key in server.admin.scan_iter(f"{streams.keys.prefix}:*dead"):
            assert canary.encode() not in server.client().hgetall(key).popitem()[1]
    else:
        assert all(canary not in str(got.headers) for got in receiver.got)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--to", "paper"],
        ["--to", "stripe"],
        ["--to", "webhook"],
        ["--to", "webhook", "--secret-file", "secret"],
        ["--to", "jsonl", "--endpoint", "http://x"],
        ["--to", "jsonl", "--event-name", "a=b"],
        ["--to", "stripe", "--file", "x", "--secret-file", "secret"],
        ["--to", "stripe", "--event-name", "a", "--secret-file", "secret"],
        ["--to", "jsonl", "--pending", "--dead"],
        ["--to", "jsonl", "--follow", "--resend", "all"],
    ],
)
def test_wrong_words_for_export(run: Run, streams: Streams, words: list[str]) -> None:
    Path("secret").write_text(SECRET)
    assert run("export", *words).exit_code == 2


@pytest.mark.parametrize("text", ["stripe = 7", "strip = {}", 'stripe = { event_names = "x" }',
                                  "stripe = { event_names = { a = 1 } }"])  # fmt: skip
def test_wrong_settings(run: Run, streams: Streams, text: str) -> None:
    Path("meterd.toml").write_text(f"[export]\n{text}\n")
    Path("secret").write_text(KEY)
    result = run("export", "--to", "stripe", "--secret-file", "secret")
    assert result.exit_code == 1
    assert "export.strip" in result.stderr


def test_export_follows_until_it_is_told_to_end(streams: Streams, tmp_path: Path) -> None:
    use(streams, "acme")
    words = ["export", "--to", "jsonl", "--follow", "--file", "use.jsonl", "--interval", "50ms"]
    child = subprocess.Popen([sys.executable, "-m", "meterd", *words], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        wait_until("first", lambda: streams.length("acme") == 0)
        use(streams, "acme")
        wait_until("second", lambda: streams.length("acme") == 0)
        child.send_signal(signal.SIGTERM)
        out, errors = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, errors
    assert out == "2 delivered\n"
    assert len(Path("use.jsonl").read_text().splitlines()) == 2


def test_a_server_that_is_away(run: Run, streams: Streams, tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/none"
    assert run("export", "--to", "jsonl", "--url", nowhere).exit_code == 4
    assert run("events", "--url", nowhere).exit_code == 4


# --- doctor


@pytest.mark.parametrize(
    ("backlog", "state", "says"),
    [
        (Backlog(), OK, "none yet"),
        (Backlog(events=5, readers={"a", "b"}), OK, "5 kept, read by a, b"),
        (Backlog(events=5, lost={"a": 1200}), WARN, "a has lost 1,200"),
        (Backlog(events=5, lost={"a": None}), WARN, "a has lost some"),
        (Backlog(refused="NOPERM"), WARN, "NOPERM"),
    ],
)
def test_what_doctor_says_of_events(backlog: Backlog, state: str, says: str) -> None:
    check = checks.events(backlog)
    assert (check.state, bool(check.advice)) == (state, state == WARN)
    assert says in check.found


@pytest.mark.parametrize(
    ("backlog", "state", "says"),
    [
        (Backlog(), OK, "nothing to deliver"),
        (Backlog(entries=5, oldest_s=59), OK, "the oldest 59 s old"),
        (Backlog(entries=5, oldest_s=7200), OK, "the oldest 2 h old"),
        (Backlog(entries=5, oldest_s=200_000), WARN, "the oldest 2 d old, not delivered"),
        (Backlog(dead=3), WARN, "3 dead letters"),
        (Backlog(refused="NOPERM"), WARN, "NOPERM"),
    ],
)
def test_what_doctor_says_of_the_export(backlog: Backlog, state: str, says: str) -> None:
    check = checks.export(backlog)
    assert (check.state, bool(check.advice)) == (state, state == WARN)
    assert says in check.found


def found_by_doctor(run: Run) -> dict[str, str]:
    checked = data_of(run("doctor", "--json"))["checks"]
    return {one["name"]: f"{one['state']}: {one['found']}" for one in checked}


def test_doctor_sees_what_was_lost(run: Run, streams: Streams, server: Server) -> None:
    for _ in range(10):
        streams.event("acme")
    run("events", "slow")
    for _ in range(10):
        streams.event("acme")
    assert found_by_doctor(run)["events"] == "ok: 20 kept, read by slow"
    server.admin.xtrim(streams.key("acme", b"events"), maxlen=7, approximate=False)
    assert found_by_doctor(run)["events"] == "warn: 7 kept, read by slow; slow has lost 3"
    assert len(run("events", "slow").stdout.splitlines()) == 7
    assert found_by_doctor(run)["events"] == "ok: 7 kept, read by slow"


def test_doctor_sees_what_was_read_and_lost(run: Run, streams: Streams, server: Server) -> None:
    key = streams.key("acme", b"events")
    for _ in range(4):
        streams.event("acme")
    server.admin.xgroup_create(key, "killed", "0")
    server.client().xreadgroup("killed", "meterd", {key: ">"})
    server.admin.xtrim(key, maxlen=2, approximate=False)
    assert "killed has lost some" in found_by_doctor(run)["events"]


def test_doctor_sees_the_outbox(run: Run, streams: Streams, server: Server) -> None:
    assert found_by_doctor(run)["export"] == "ok: nothing to deliver"
    run("export", "--to", "jsonl", "--file", "f")
    use(streams, "acme")
    assert "ok: 1 entries in the outbox, the oldest" in found_by_doctor(run)["export"]
    key = streams.key("acme", b"outbox")
    server.admin.delete(key)
    server.admin.xadd(key, {"o": "x"}, id="1-1")
    said = found_by_doctor(run)["export"]
    assert said.startswith("warn: 1 entries in the outbox")
    assert said.endswith("not delivered by jsonl")
    run("export", "--to", "jsonl", "--file", "f")
    assert found_by_doctor(run)["export"] == "warn: 1 dead letters; 0 entries in the outbox"


@pytest.mark.matrix
def test_doctor_on_every_server(
    run: Run, matrix_server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERD_URL", matrix_server.url)
    streams = Streams(matrix_server.admin, os.environ["METERD_PREFIX"])
    for _ in range(3):
        streams.event("acme")
    run("events", "g")
    use(streams, "acme")
    found = found_by_doctor(run)
    assert found["events"] == "ok: 3 kept, read by g"
    assert found["export"].startswith("ok: 1 entries")
