"""A server that is down, full, busy, read-only or silent: what every verb says, and what stays."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from meterd import Meter, OutcomeUnknown, Plan, Pool, Unavailable
from tests.faults.fault_tools import CREDITS, Workshop, allowing, fresh_prefix, snapshot, used
from tests.support import servers
from tests.support.proxy import FaultProxy
from tests.support.servers import Server, wait_until

PLANS = [CREDITS, Plan("add-on", group="extra", includes=[allowing("fixed", 5)])]

READS: dict[str, Callable[[Any], Any]] = {
    "check": lambda m: m.check("acme", "credits", 5),
    "usage": lambda m: m.usage("acme"),
    "meta": lambda m: m.meta("acme"),
}
GIVES: dict[str, Callable[[Any], Any]] = {
    "refund": lambda m: m.refund("acme", "credits", 1),
    "forget": lambda m: m.forget("acme"),
}
WRITES: dict[str, Callable[[Any], Any]] = {
    "consume": lambda m: m.consume("acme", "credits", 5),
    "consume, op": lambda m: m.consume("acme", "credits", 5, op="later"),
    "consume, unseen": lambda m: m.consume("unseen", "credits", 5),
    "report": lambda m: m.report("acme", "credits", 5),
    "subscribe": lambda m: m.subscribe("acme", "add-on"),
    "unsubscribe": lambda m: m.unsubscribe("acme", "credits"),
    "override": lambda m: m.override("acme", "credits", limit=7),
    "adjust": lambda m: m.adjust("acme", "credits", used=7),
    "set_meta": lambda m: m.set_meta("acme", {"b": 2}),
    "apply": lambda m: m.apply([Plan("more", group="m", includes=[Pool("p", 1)])]),
}
VERBS = READS | GIVES | WRITES


# Both clients; every server, the asynchronous client on two of them.
EVERYWHERE = pytest.mark.parametrize(
    ("either", "own"),
    [
        *(("sync", name) for name in servers.BINARIES),
        ("async", "valkey-9.1"),
        ("async", "redis-6.2"),
    ],
    indirect=True,
)


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that may be broken."""
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    with servers.start(request.param, appendonly=True) as started:
        yield started


def opened(either: Workshop, server: Server, prefix: str, timeout: float = 20) -> Any:
    """A meter in use, whose store holds something to lose."""
    meter = either(server.url, plans=PLANS, prefix=prefix, timeout=timeout)
    meter.consume("acme", "credits", 5)
    meter.set_meta("acme", {"a": 1})
    return meter


def all_unavailable(meter: Any, verbs: dict[str, Callable[[Any], Any]]) -> None:
    for name, call in verbs.items():
        try:
            call(meter)
        except Unavailable:
            continue
        raise AssertionError(f"{name} got through")


# --- Nobody there


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nowhere/at.all"])
def test_connection_refused(either: Workshop, url: str) -> None:
    meter = either(url, plans=PLANS, timeout=5)
    all_unavailable(meter, VERBS)
    with pytest.raises(Unavailable, match="cannot reach"):
        meter.open()


@pytest.mark.matrix
@EVERYWHERE
def test_down_and_up_again(own: Server, either: Workshop, prefix: str) -> None:
    """An idle connection that died is no excuse: nothing was sent, so nothing is unknown."""
    meter = opened(either, own, prefix)
    before = snapshot(own, prefix)
    own.kill()
    all_unavailable(meter, VERBS)
    own.restart()
    assert snapshot(own, prefix) == before
    decision = meter.consume("acme", "credits", 5, op="later")
    assert decision["credits"].used == 10
    assert not decision.replayed


# --- Full


@contextlib.contextmanager
def full(server: Server) -> Iterator[None]:
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)


@pytest.mark.matrix
@EVERYWHERE
@pytest.mark.parametrize("functions", [True, False], ids=["functions", "evalsha"])
def test_out_of_memory(own: Server, either: Workshop, prefix: str, functions: bool) -> None:
    meter = opened(either, own, prefix)
    meter._session.functions = functions
    meter.consume("acme", "credits", 5)
    before = snapshot(own, prefix)
    with full(own):
        for ask in READS.values():
            ask(meter)
        all_unavailable(meter, WRITES)
        own.ask("SCRIPT", "FLUSH")
        if own.name != "redis-6.2":
            own.ask("FUNCTION", "FLUSH")
        all_unavailable(meter, WRITES)
    assert snapshot(own, prefix) == before
    decision = meter.consume("acme", "credits", 5, op="later")
    assert decision["credits"].used == 15
    assert not decision.replayed


@pytest.mark.matrix
@EVERYWHERE
def test_giving_back_needs_no_memory(own: Server, either: Workshop, prefix: str) -> None:
    meter = opened(either, own, prefix)
    meter.refund("acme", "credits", 1)
    with full(own):
        if own.name == "redis-6.2":  # scripts have no flags there
            all_unavailable(meter, {"refund": GIVES["refund"]})
            assert used(meter, "acme") == 4
        else:
            assert meter.refund("acme", "credits", 1)["credits"].used == 3
            assert meter.refund("acme", "credits", 1, op="back")["credits"].used == 2
            assert meter.refund("acme", "credits", 1, op="back").replayed
        assert meter.forget("acme") > 0
        assert used(meter, "acme") == 0


@pytest.mark.matrix
@EVERYWHERE
def test_opening_a_full_server(own: Server, either: Workshop, prefix: str) -> None:
    opened(either, own, prefix)
    with full(own):
        running = either(own.url, plans=PLANS, prefix=prefix, timeout=20)
        assert running.check("acme", "credits")["credits"].used == 5
        for plans in (PLANS, None):
            empty = either(own.url, plans=plans, prefix=fresh_prefix(), timeout=20)
            with pytest.raises(Unavailable):
                empty.consume("acme", "credits")
            with pytest.raises(Unavailable):
                empty.open()
    assert empty.check("acme", "credits").code == "NO_PLAN"


# --- Cannot write, cannot answer


@pytest.mark.matrix
@EVERYWHERE
def test_a_read_only_replica(own: Server, either: Workshop, prefix: str) -> None:
    meter = opened(either, own, prefix)
    meter.check("acme", "credits")
    before = snapshot(own, prefix)
    own.ask("REPLICAOF", "127.0.0.1", 1)
    for ask in READS.values():
        ask(meter)
    all_unavailable(meter, GIVES | WRITES)
    with pytest.raises(Unavailable):
        either(own.url, plans=PLANS, prefix=fresh_prefix(), timeout=20).open()
    own.ask("REPLICAOF", "NO", "ONE")
    assert snapshot(own, prefix) == before
    assert meter.consume("acme", "credits", 5, op="later")["credits"].used == 10


def test_busy_with_somebody_elses_script(either: Workshop, prefix: str) -> None:
    with servers.start() as own:
        meter = opened(either, own, prefix)
        own.ask("CONFIG", "SET", "busy-reply-threshold", 20)
        stuck, killer = own.client(), own.client()

        def loop() -> None:
            with contextlib.suppress(redis.RedisError):
                stuck.eval("while true do end", 0)

        thread = threading.Thread(target=loop)
        thread.start()
        wait_until("a busy server", lambda: _is_busy(killer))
        all_unavailable(meter, WRITES)
        killer.script_kill()
        thread.join()
        assert meter.consume("acme", "credits", 5, op="later")["credits"].used == 10


def _is_busy(client: Any) -> bool:
    try:
        client.ping()
    except redis.RedisError as error:
        return "BUSY" in str(error)
    return False


def test_no_more_clients(either: Workshop, prefix: str) -> None:
    with servers.start() as own, contextlib.ExitStack() as others:
        opened(either, own, prefix).close()
        meter = either(own.url, plans=PLANS, prefix=prefix, timeout=20)
        own.ask("CONFIG", "SET", "maxclients", 3)
        for _ in range(3):
            one = others.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(own.socket)
        wait_until("no free place", lambda: _refused(own))
        meter.hurry(0.1)
        all_unavailable(meter, {name: VERBS[name] for name in ("check", "consume", "subscribe")})
        meter._store.ready = True  # as in a process that has been running for a while
        with pytest.raises(Unavailable):
            meter.consume("acme", "credits", 5)
        meter._store.ready = False
        meter.hurry(20)
        others.close()
        wait_until("a free place", lambda: not _refused(own))
        assert meter.consume("acme", "credits", 5, op="later")["credits"].used == 10


def _refused(server: Server) -> bool:
    """Whether a new connection is turned away."""
    with servers.client_of(server.url) as probe:
        try:
            probe.ping()
        except redis.RedisError:
            return True
    return False


# --- Silent


@pytest.fixture
def silent(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as proxy:
        yield proxy


def test_a_partition(silent: FaultProxy, server: Server, either: Workshop, prefix: str) -> None:
    meter = either(silent.url, plans=PLANS, prefix=prefix, timeout=5)
    meter.consume("acme", "credits", 5)
    meter.hurry(0.12)
    before = snapshot(server, prefix)
    silent.partition(True)
    all_unavailable(meter, READS)
    for name, op in (("consume", None), ("consume, op", "later"), ("report", None)):
        with pytest.raises(OutcomeUnknown) as caught:
            WRITES[name](meter)
        assert caught.value.op == op
    for name in ("override", "adjust", "set_meta", "unsubscribe"):
        with pytest.raises(OutcomeUnknown):
            WRITES[name](meter)
    silent.partition(False)
    assert silent.stats["swallowed"]
    assert snapshot(server, prefix) == before
    meter.hurry(5)
    decision = meter.consume("acme", "credits", 5, op="later")
    assert decision["credits"].used == 10
    assert not decision.replayed


def test_opening_into_a_partition(silent: FaultProxy, either: Workshop, prefix: str) -> None:
    meter = either(silent.url, plans=PLANS, prefix=prefix, timeout=0.1)
    silent.partition(True)
    all_unavailable(meter, {name: VERBS[name] for name in ("check", "consume", "subscribe")})
    with pytest.raises(Unavailable):
        meter.open()
    silent.partition(False)
    meter.hurry(5)
    assert meter.consume("acme", "credits")["credits"].used == 1


@pytest.mark.matrix
@EVERYWHERE
def test_a_stopped_server_runs_what_it_was_sent(own: Server, either: Workshop, prefix: str) -> None:
    """What lies in its sockets is executed late: an operation id counts once all the same."""
    meter = opened(either, own, prefix, timeout=5)
    meter.hurry(0.12)
    os.kill(own.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            meter.consume("acme", "credits", 100)
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                meter.consume("acme", "credits", 7, op="once")
        all_unavailable(meter, READS)
    finally:
        os.kill(own.pid, signal.SIGCONT)
    meter.hurry(20)
    assert meter.consume("acme", "credits", 7, op="once")["credits"].applied == 7
    with Meter(own.url, prefix=prefix, timeout=20) as other:
        # The call without an id was in the socket first, and ran once or not at all.
        assert used(other, "acme") in (5 + 7, 5 + 7 + 100)
