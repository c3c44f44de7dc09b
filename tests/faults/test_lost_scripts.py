"""A server that forgets its scripts, or everything: repaired at once, nothing charged twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from meterd import Meter, OutcomeUnknown, Unavailable
from tests.faults.fault_tools import CREDITS, Workshop, used
from tests.support import servers
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.matrix

Forget = Callable[[], None]


def has_functions(server: Server) -> bool:
    return server.name != "redis-6.2"


def ways_to_forget(server: Server) -> dict[str, Forget]:
    """What makes a server forget scripts without forgetting data."""

    def delete_libraries() -> None:
        for library in server.ask("FUNCTION", "LIST"):
            # A map or a flat list, as the protocol has it.
            fields = library if isinstance(library, list) else list(sum(library.items(), ()))
            name = fields[fields.index("library_name") + 1]
            if name.startswith("meterd_"):
                server.ask("FUNCTION", "DELETE", name)

    ways: dict[str, Forget] = {"scripts": lambda: server.ask("SCRIPT", "FLUSH")}
    if has_functions(server):
        ways["functions"] = lambda: server.ask("FUNCTION", "FLUSH")
        ways["libraries"] = delete_libraries
    return ways


@pytest.mark.parametrize("functions", [True, False], ids=["functions", "evalsha"])
def test_every_verb_after_every_loss(
    matrix_server: Server, either: Workshop, prefix: str, functions: bool
) -> None:
    meter = either(
        matrix_server.url, plans=[CREDITS], prefix=prefix, functions=functions, timeout=20
    )
    expected = 0
    for round_number, forget in enumerate(ways_to_forget(matrix_server).values()):
        for verb, change in (("consume", 5), ("report", 7), ("refund", -3)):
            for op in (None, f"{verb}-{round_number}"):
                forget()
                decision = getattr(meter, verb)("acme", "credits", abs(change), op=op)
                expected += change
                assert decision["credits"].used == expected
                assert not decision.replayed
        forget()
        again = meter.consume("acme", "credits", 5, op=f"consume-{round_number}")
        assert again.replayed
        forget()
        assert meter.check("acme", "credits")["credits"].used == expected
        forget()
        assert used(meter, "acme") == expected
        forget()
        meter.adjust("acme", "credits", used=expected + 10)
        expected += 10
        forget()
        meter.override("acme", "credits", limit=5000)
        forget()
        assert meter.usage("acme")["credits"].remaining == 5000 - expected
        forget()
        meter.subscribe("acme", "credits", change="keep")
        forget()
        meter.set_meta("acme", {"round": round_number})
        assert meter.meta("acme") == {"round": round_number}
        forget()
        assert not meter.apply()
    assert used(meter, "acme") == expected
    forget()
    assert meter.forget("acme") > 0


@pytest.mark.parametrize("functions", [True, False], ids=["functions", "evalsha"])
def test_threads_charge_while_scripts_are_flushed(
    matrix_server: Server, prefix: str, functions: bool
) -> None:
    """No answer is ever lost here, so every call succeeds and counts exactly once."""
    threads, calls = 4, 80
    ways = list(ways_to_forget(matrix_server).values())
    charged = [0] * threads
    with Meter(
        matrix_server.url, plans=[CREDITS], prefix=prefix, functions=functions, timeout=20
    ) as meter:

        def charge(number: int) -> None:
            for index in range(calls):
                op = f"op-{number}-{index}" if index % 2 else None
                assert meter.consume("acme", "credits", 1, op=op)
                assert meter.check("acme", "credits")
                charged[number] += 1

        with ThreadPoolExecutor(threads) as pool:
            charging = [pool.submit(charge, number) for number in range(threads)]
            for flushes in range(1, 11):
                # At the same time as the calls, yet not so often that none gets through.
                wait_until("charges", lambda n=flushes: sum(charged) > n * 25)
                ways[flushes % len(ways)]()
            for one in charging:
                one.result()
        assert used(meter, "acme") == threads * calls


@pytest.fixture(params=list(servers.BINARIES))
def durable(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of its own that loses nothing in a restart, nor when it is killed."""
    if not servers.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    # Synced once a second, it holds writes back while the disk is busy, and loses them if killed.
    with servers.start(request.param, "--appendfsync", "no", appendonly=True) as started:
        yield started


def test_a_restart_between_calls_is_not_noticed(durable: Server, either: Workshop) -> None:
    meter = either(durable.url, plans=[CREDITS], timeout=20)
    first = meter.consume("acme", "credits", 5, op="before")
    for number, again in enumerate((durable.restart, durable.kill), 1):
        again()
        if not durable.pid:
            durable.restart()
        assert meter.consume("acme", "credits", 5)["credits"].used == 5 + 5 * number
        replay = meter.consume("acme", "credits", 5, op="before")
        assert replay.replayed
        assert replay.limits == first.limits
    assert used(meter, "acme") == 15


def test_restarts_while_threads_charge(durable: Server) -> None:
    """Each thread repeats an operation until it has an answer; every one counts once."""
    threads = 3
    charged = [0] * threads
    over = threading.Event()
    with Meter(durable.url, plans=[CREDITS], timeout=5) as meter:
        meter.consume("acme", "credits", 1)

        def charge(number: int) -> None:
            while not over.is_set():
                op = f"op-{number}-{charged[number]}"
                with contextlib.suppress(Unavailable, OutcomeUnknown):
                    assert meter.consume("acme", "credits", 1, op=op)
                    charged[number] += 1

        def progress() -> None:
            seen = sum(charged)
            wait_until("a hundred charges", lambda: sum(charged) > seen + 100)

        with ThreadPoolExecutor(threads) as pool:
            charging = [pool.submit(charge, number) for number in range(threads)]
            try:
                for end in (durable.stop, durable.kill, durable.kill):
                    progress()
                    end()
                    durable.restart()
                progress()
            finally:
                over.set()
            for one in charging:
                one.result()
        # The last operation of a thread may have been given up unanswered, so it is settled first.
        for number in range(threads):
            meter.consume("acme", "credits", 1, op=f"op-{number}-{charged[number]}")
        assert used(meter, "acme") == sum(charged) + threads + 1


def test_an_emptied_server_is_filled_again(durable: Server, either: Workshop) -> None:
    meter = either(durable.url, plans=[CREDITS], timeout=20)
    meter.consume("acme", "credits", 5)
    durable.ask("FLUSHALL")
    durable.ask("SCRIPT", "FLUSH")
    assert meter.consume("acme", "credits", 3)["credits"].used == 3
    assert used(meter, "acme") == 3
    other = either(durable.url, plans=[CREDITS], timeout=20)
    assert other.consume("acme", "credits", 1)["credits"].used == 4
