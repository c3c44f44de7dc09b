"""Every order in which attempts at one call can end: what the caller is told is never too much.

No network: a simulated server executes, loses or refuses each attempt, and counts what it charged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from meterd.errors import MeterdError, OutcomeUnknown, ScriptError, Unavailable
from meterd.flow import Flow, Send, Sleep
from meterd.scripts import Scripts
from meterd.session import Session
from meterd.transport import MaybeSent, NotSent

OUTCOMES = ("answered", "not_sent", "lost_before", "lost_after", "missing", "full")
SCRIPTS = Scripts()


class Simulated:
    """Executes charges once per operation id, as the scripts do; ends attempts as it is told."""

    def __init__(self, outcomes: Iterable[str], with_op: bool) -> None:
        self.outcomes = iter(outcomes)
        self.with_op = with_op
        self.charged = 0
        self.attempts = 0

    def execute(self) -> bytes:
        if not (self.with_op and self.charged):
            self.charged += 1
        return b"answer"

    def attempt(self, packed: bytes) -> Any:
        outcome = next(self.outcomes, "answered")
        if outcome == "not_sent":
            raise NotSent("refused")
        if outcome == "lost_before":
            raise MaybeSent("lost on the way")
        if outcome == "full":
            return OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        if b"FUNCTION" in packed[:20]:
            if outcome == "lost_after":
                raise MaybeSent("lost on the way back")
            return b"name"
        self.attempts += 1
        if outcome == "missing":
            if b"FCALL" in packed[:20]:
                return ResponseError("ERR Function not found")
            if b"EVALSHA" in packed[:20]:
                return NoScriptError("No matching script.")
        answer = self.execute()
        if outcome == "lost_after":
            raise MaybeSent("lost on the way back")
        return answer


def run(flow: Flow[Any], server: Simulated) -> Any:
    try:
        step = next(flow)
        while True:
            if type(step) is Sleep:
                step = flow.send(None)
                continue
            assert type(step) is Send
            try:
                reply = server.attempt(step.request.packed)
            except (NotSent, MaybeSent) as error:
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize("functions", [True, False], ids=["functions", "evalsha"])
@pytest.mark.parametrize("op", ["op-1", None], ids=["op", "bare"])
def test_a_charge_is_never_reported_wrongly(op: str | None, functions: bool) -> None:
    ends = dict.fromkeys(("returned", "Unavailable", "OutcomeUnknown", "ScriptError"), 0)
    for outcomes in itertools.product(OUTCOMES, repeat=5):
        server = Simulated(outcomes, op is not None)
        session = Session(SCRIPTS, 1.0, functions=functions)
        try:
            answer = run(session.call("consume", [b"k"], [b""], op=op), server)
        except MeterdError as error:
            ends[type(error).__name__] += 1
            if isinstance(error, (Unavailable, ScriptError)):
                assert server.charged == 0, (outcomes, error)
            else:
                assert isinstance(error, OutcomeUnknown)
                assert error.op == op
                assert {"lost_before", "lost_after"} & set(outcomes)
                assert server.charged <= 1, outcomes
        else:
            ends["returned"] += 1
            assert answer == b"answer"
            assert server.charged == 1, outcomes
    assert all(count for name, count in ends.items() if name != "ScriptError"), ends


@pytest.mark.parametrize("entry", ["check", "usage"])
def test_a_question_is_asked_again_or_unavailable(entry: str) -> None:
    for outcomes in itertools.product(OUTCOMES, repeat=4):
        session = Session(SCRIPTS, 1.0)
        server = Simulated(outcomes, False)
        lost_first = outcomes[0].startswith("lost")
        try:
            run(session.call(entry, [b"k"], [b""]), server)
        except Unavailable:
            assert {"not_sent", "full", "lost_before", "lost_after"} & set(outcomes)
        else:
            assert not lost_first or server.attempts + outcomes.count("lost_before") > 1


def test_a_charge_without_op_is_sent_once() -> None:
    for outcomes in itertools.product(OUTCOMES, repeat=4):
        server = Simulated(outcomes, False)
        session = Session(SCRIPTS, 1.0)
        try:
            run(session.call("consume", [b"k"], [b""]), server)
        except MeterdError:
            continue
        assert "lost_before" not in outcomes[: server.attempts]
