"""Every order in which attempts at one call can end: what the caller is told is never too much.

No network: a simulated server executes, loses or refuses each attempt, and counts what it charged.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import (
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ResponseError,
)

from meterd.errors import MeterdError, OutcomeUnknown, Unavailable
from meterd.flow import Flow, Nodes, Send, SendTo, Sleep
from meterd.scripts import Scripts
from meterd.session import Session
from meterd.transport import MaybeSent, Node, NotSent

OUTCOMES = ("answered", "not_sent", "lost_before", "lost_after", "missing", "full")
SCRIPTS = Scripts()


class Simulated:
    """Executes charges once per operation id, as the scripts do; ends attempts as it is told."""

    def __init__(self, outcomes: Iterable[str], with_op: bool) -> None:
        self.outcomes = iter(outcomes)
        self.with_op = with_op
        self.charged = 0
        self.lost = 0  # answers to the call itself

    def execute(self) -> bytes:
        if not (self.with_op and self.charged):
            self.charged += 1
        return b"answer"

    def attempt(self, packed: bytes) -> Any:
        outcome = next(self.outcomes, "answered")
        if outcome == "not_sent":
            raise NotSent("refused")
        if outcome == "lost_before":
            self.lost += b"FUNCTION" not in packed[:20]
            raise MaybeSent("lost on the way")
        if outcome == "full":
            return OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        if b"FUNCTION" in packed[:20]:
            if outcome == "lost_after":
                raise MaybeSent("lost on the way back")
            return b"name"
        if outcome == "missing":
            if b"FCALL" in packed[:20]:
                return ResponseError("ERR Function not found")
            if b"EVALSHA" in packed[:20]:
                return NoScriptError("No matching script.")
        answer = self.execute()
        if outcome == "lost_after":
            self.lost += 1
            raise MaybeSent("lost on the way back")
        return answer


def run(flow: Flow[Any], server: Simulated) -> Any:
    try:
        step = next(flow)
        while True:
            if type(step) is Sleep:
                step = flow.send(None)
                continue
            if type(step) is Nodes:
                step = flow.send([Node("here", 1)])
                continue
            assert isinstance(step, Send | SendTo)
            try:
                reply = server.attempt(step.request.packed)
            except (NotSent, MaybeSent) as error:
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as stop:
        return stop.value


def ending(flow: Flow[Any], server: Simulated) -> Any:
    """What the caller gets: the answer, or the error itself."""
    try:
        return run(flow, server)
    except MeterdError as error:
        return error


@pytest.mark.parametrize("functions", [True, False], ids=["functions", "evalsha"])
@pytest.mark.parametrize("op", ["op-1", None], ids=["op", "bare"])
def test_a_charge_is_never_reported_wrongly(op: str | None, functions: bool) -> None:
    kinds: Counter[type] = Counter()
    for outcomes in itertools.product(OUTCOMES, repeat=5):
        server = Simulated(outcomes, op is not None)
        session = Session(SCRIPTS, 1.0, functions=functions)
        end = ending(session.call("consume", [b"k"], [b""], op=op), server)
        kinds[type(end)] += 1
        if isinstance(end, bytes):
            assert server.charged == 1, outcomes
        elif isinstance(end, OutcomeUnknown):
            assert end.op == op
            assert server.charged <= 1, outcomes
            assert {"lost_before", "lost_after"} & set(outcomes)
        else:
            assert isinstance(end, Unavailable), (outcomes, end)
            assert server.charged == 0, (outcomes, end)
    assert set(kinds) == {bytes, OutcomeUnknown, Unavailable}


def test_a_charge_without_op_is_not_sent_again() -> None:
    for outcomes in itertools.product(OUTCOMES, repeat=4):
        server = Simulated(outcomes, False)
        end = ending(Session(SCRIPTS, 1.0).call("consume", [b"k"], [b""]), server)
        assert isinstance(end, OutcomeUnknown) == (server.lost > 0), outcomes
        assert server.lost <= 1


@pytest.mark.parametrize("entry", ["check", "usage"])
def test_a_question_is_asked_again(entry: str) -> None:
    for outcomes in itertools.product(OUTCOMES, repeat=4):
        server = Simulated(outcomes, False)
        end = ending(Session(SCRIPTS, 1.0).call(entry, [b"k"], [b""]), server)
        assert isinstance(end, bytes | Unavailable), (outcomes, end)
        if set(outcomes) <= {"answered", "lost_before", "lost_after"}:
            assert end == b"answer", outcomes


def test_others_find_out_meanwhile_that_there_are_no_functions() -> None:
    """Several calls are under way when the first learns it: each of them starts over."""
    session = Session(SCRIPTS, 1.0)
    flows = [session.call("consume", [b"k"], [b""]) for _ in range(3)]
    for flow in flows:
        assert b"FCALL" in next(flow).request.packed  # type: ignore[union-attr]
    for flow in flows:
        again = flow.send(ResponseError("unknown command `FCALL`, with args beginning with: `x`"))
        assert b"EVALSHA" in again.request.packed  # type: ignore[union-attr]


def missing_side_by_side(session: Session) -> list[Flow[Any]]:
    """Calls that have all learned that there is no library; the first is loading it."""
    flows = [session.call("consume", [b"k"], [b""]) for _ in range(3)]
    for flow in flows:
        next(flow)
    load, *pauses = [flow.send(ResponseError("Function not found")) for flow in flows]
    assert b"LOAD" in load.request.packed  # type: ignore[union-attr]
    assert all(isinstance(step, Sleep) for step in pauses)
    return flows


def test_a_library_refused_while_others_wait_for_it() -> None:
    first, *others = missing_side_by_side(Session(SCRIPTS, 1.0))
    again = first.send(NoPermissionError("this user may not run 'function|load'"))
    assert b"EVALSHA" in again.request.packed  # type: ignore[union-attr]
    for flow in others:
        assert b"EVALSHA" in flow.send(None).request.packed  # type: ignore[union-attr]


def test_a_library_that_another_call_brings() -> None:
    first, *others = missing_side_by_side(Session(SCRIPTS, 1.0))
    for flow in others:
        assert isinstance(flow.send(None), Sleep)
    for flow, reply in ((first, b"meterd"), *((flow, None) for flow in others)):
        assert b"FCALL" in flow.send(reply).request.packed  # type: ignore[union-attr]


def test_whoever_waited_long_enough_brings_the_library_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that is at it may wait for a node that is gone."""
    now = 1000.0
    monkeypatch.setattr("meterd.session.time", SimpleNamespace(monotonic=lambda: now))
    flows = missing_side_by_side(Session(SCRIPTS, 1.0))
    other = flows[1]
    step: Any = other.send(None)
    while isinstance(step, Sleep):
        now += step.seconds
        step = other.send(None)
    assert b"LOAD" in step.request.packed
    assert 1000.25 <= now < 1000.3
