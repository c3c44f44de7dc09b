"""Calling scripts: the right command for the server, repair of what it lost, and typed outcomes.

A call is repeated only when it certainly never ran (the function or script was missing, nothing was
sent) or when running twice is harmless (it only reads, or carries an operation id). Everything else
ends in an error that says which of the two it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from meterd.errors import OutcomeUnknown, PolicyError, ScriptError, Unavailable
from meterd.flow import Flow, Nodes, Send, SendTo, Sleep
from meterd.scripts import READ_ONLY, Scripts
from meterd.transport import MaybeSent, Node, NotSent, Request
from meterd.wire import command, script_call

NOTHING: Any = object()
_REPAIRS = 8  # a server that loses its scripts faster than this is not usable


class HorizonNeeded(Exception):
    """A policy's time zones are not written out far enough for an instant."""

    def __init__(self, policy: bytes, needed_ms: int) -> None:
        super().__init__(policy, needed_ms)
        self.policy = policy
        self.needed_ms = needed_ms


# redis-py turns some error codes into classes and takes them off the text.
_CODES = {
    NoScriptError: "NOSCRIPT",
    NoPermissionError: "NOPERM",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
}


def _text(reply: ResponseError) -> str:
    """An error reply as the server wrote it, code first."""
    for known, code in _CODES.items():
        if isinstance(reply, known):
            return f"{code} {reply}"
    return str(reply)


def _pause(losses: int) -> float:
    """Seconds before the next attempt."""
    return min(0.0005 * (1 << min(losses, 6)), 0.02)


def outcome_unknown(entry: str, op: str | None, error: Exception) -> OutcomeUnknown:
    advice = (
        f"repeat it with op={op!r}"
        if op
        else "it was applied once or not at all (calls with op= can be repeated)"
    )
    return OutcomeUnknown(f"{entry}: sent, but the answer was lost: {error}; {advice}", op)


class Session:
    """How to talk to one store's servers. Shared by every operation of a meter."""

    def __init__(self, scripts: Scripts, timeout: float, *, functions: bool = True) -> None:
        self.scripts = scripts
        self.timeout = timeout
        self.functions = functions  # until a server says that it has none
        self._loading = 0.0  # until when some call is at it; 0: none is

    def call(
        self,
        entry: str,
        keys: Sequence[bytes],
        args: Sequence[bytes],
        *,
        op: str | None = None,
        harmless: bool = False,
        deadline: float | None = None,
        given: Any = NOTHING,
    ) -> Flow[Any]:
        """The reply of one script. `harmless`: running it twice changes nothing more.

        `given`: what came of the first attempt, an FCALL that was made already.

        Raises `Unavailable`, `OutcomeUnknown`, `PolicyError`, `ScriptError`, `HorizonNeeded`.
        """
        reads = entry in READ_ONLY
        repeatable = harmless or reads or op is not None
        if deadline is None:
            deadline = time.monotonic() + self.timeout
        repairs = losses = 0
        whole = False  # send the script's text instead of its digest
        while True:
            functions = self.functions  # other calls may find out while this one waits
            try:
                if given is NOTHING:
                    packed = self._pack(entry, keys, args, functions, whole)
                    left = deadline - time.monotonic()
                    # Where repeating is safe, half of what is left is kept for another try.
                    patience = left / 2 if repeatable and left > 0.02 else left
                    reply = yield Send(Request(packed, keys[0]), max(patience, 0.001))
                else:
                    functions = True
                    reply, given = given, NOTHING
                    if isinstance(reply, (NotSent, MaybeSent)):
                        raise reply
            except (NotSent, MaybeSent) as error:
                lost = losses > 0 or isinstance(error, MaybeSent)
                if not lost:
                    raise Unavailable(f"{entry}: the server could not be asked: {error}") from error
                if repeatable and deadline - time.monotonic() > 0.02:
                    losses += 1
                    yield Sleep(_pause(losses))
                    continue
                if reads:
                    raise Unavailable(f"{entry}: no answer in time: {error}") from error
                raise outcome_unknown(entry, op, error) from error
            if not isinstance(reply, ResponseError):
                return reply
            repairs += 1
            if repairs > _REPAIRS:
                raise ScriptError(self.scripts.explain(entry, _text(reply), functions=functions))
            try:
                text = _text(reply)
                whole = yield from self._repair(entry, keys[0], text, functions, deadline, repairs)
            except Unavailable as error:
                if losses and not reads:
                    # This attempt did not run; the one whose answer was lost may have.
                    raise outcome_unknown(entry, op, error) from error
                raise

    def function(self, entry: str) -> tuple[bytes, bytes]:
        """How a call of an entry begins on a server with functions."""
        verb = b"FCALL_RO" if entry in READ_ONLY else b"FCALL"
        return verb, self.scripts.function_name(entry).encode()

    def _pack(
        self,
        entry: str,
        keys: Sequence[bytes],
        args: Sequence[bytes],
        functions: bool,
        whole: bool,
    ) -> bytes:
        if functions:
            return script_call(self.function(entry), keys, args)
        program = self.scripts.script(entry)
        if whole:
            return script_call((b"EVAL", program.text.encode()), keys, args)
        return script_call((b"EVALSHA", program.sha1.encode()), keys, args)

    def _repair(
        self,
        entry: str,
        key: bytes,
        message: str,
        functions: bool,
        deadline: float,
        attempt: int,
    ) -> Flow[bool]:
        """Does what an error reply asks for, or raises what it means. True: send the script."""
        upper = message.upper()
        if "NOSCRIPT" in upper:
            return True
        if functions:
            if "UNKNOWN COMMAND" in upper:
                self.functions = False
                return False
            if "FUNCTION NOT FOUND" in upper:
                # The library is long: calls that miss it side by side send it once, then see
                # whether that was where they are asked. Missed again: there are other nodes that
                # lack it, and a slot on its way has the call asked at one that is not its owner.
                begun = time.monotonic()
                patience = begun + max(deadline - begun, 0) / 4
                pauses = 0
                while time.monotonic() < min(self._loading, patience):
                    pauses += 1
                    yield Sleep(_pause(pauses))
                if not pauses or time.monotonic() < self._loading:
                    yield from self._load(key, deadline, everywhere=attempt > 1)
                return False
        raise self._meaning(entry, message, functions)

    def _load(self, key: bytes, deadline: float, *, everywhere: bool) -> Flow[None]:
        self._loading = deadline
        try:
            yield from self._load_at(key, deadline, everywhere=everywhere)
        finally:
            self._loading = 0.0

    def _load_at(self, key: bytes, deadline: float, *, everywhere: bool) -> Flow[None]:
        text = self.scripts.library.text.encode()
        packed = command(b"FUNCTION", b"LOAD", b"REPLACE", text)
        left = max(deadline - time.monotonic(), 0.05)
        steps: list[Send | SendTo] = [Send(Request(packed, key), left / 2)]
        if everywhere:
            nodes = yield from self.nodes()
            steps = [SendTo(node, Request(packed, None), left / len(nodes)) for node in nodes]
        problem: Exception = NotSent("no server is known")
        loaded = False
        for step in steps:
            reply = yield from self._insist(step, deadline)
            if isinstance(reply, Exception):
                problem = reply
            else:
                loaded = True
        if not loaded:
            self._unloaded(problem)

    def _insist(self, step: Send | SendTo, deadline: float) -> Flow[Any]:
        """A step that is harmless to repeat, until it is answered; errors come back as values."""
        losses = 0
        while True:
            try:
                return (yield step)
            except NotSent as error:
                return error
            except MaybeSent as error:
                if deadline - time.monotonic() < 0.02:
                    return error
                losses += 1
                yield Sleep(_pause(losses))

    def _unloaded(self, problem: Exception) -> None:
        """No server took the library: forbidden, not now, or a bug of ours?"""
        if not isinstance(problem, ResponseError):
            raise Unavailable(f"the function library could not be loaded: {problem}") from problem
        upper = _text(problem).upper()
        if "NOPERM" in upper or "UNKNOWN" in upper:
            self.functions = False
        elif "OOM" in upper:
            raise Unavailable(f"the server is out of memory: {problem}")
        elif "READONLY" in upper or "LOADING" in upper:
            raise Unavailable(f"the function library could not be loaded: {problem}")
        else:
            raise ScriptError(f"the function library was refused: {problem}")

    def _meaning(self, entry: str, message: str, functions: bool) -> Exception:
        """What an error reply means to the caller."""
        for marker in ("METERD-ARGUMENT ", "METERD-OVERFLOW ", "METERD-HORIZON "):
            _, found, rest = message.partition(marker)
            if not found:
                continue
            rest = rest.partition(" script: ")[0]
            if marker == "METERD-HORIZON ":
                name, needed = rest.split()[:2]
                return HorizonNeeded(bytes.fromhex(name), int(needed.rstrip(",.")))
            if marker == "METERD-OVERFLOW ":
                return PolicyError(
                    f"{entry}: the counter of {rest.split()[0]!r} would pass 9*10**15; "
                    "nothing was applied"
                )
            return PolicyError(f"{entry}: {rest}")
        upper = message.upper()
        if upper.startswith("OOM") or "-OOM " in upper or " OOM COMMAND" in upper:
            return Unavailable(
                f"{entry}: the server is out of memory; nothing was applied: {message}"
            )
        if upper.startswith(
            ("NOPERM", "NOAUTH", "READONLY", "LOADING", "BUSY ", "MISCONF", "NOREPLICAS")
        ):
            return Unavailable(f"{entry}: {message}")
        return ScriptError(self.scripts.explain(entry, message, functions=functions))

    # Plain commands ------------------------------------------------------------------------------

    def plain(
        self, key: bytes | None, *commands: Sequence[bytes], timeout: float | None = None
    ) -> Flow[list[Any]]:
        """The replies of commands that are harmless to repeat."""
        packed = b"".join([command(*parts) for parts in commands])
        request = Request(packed, key, len(commands))
        return (yield from self._patiently(lambda left: Send(request, left), timeout))

    def plain_to(self, node: Node, *commands: Sequence[bytes]) -> Flow[list[Any]]:
        packed = b"".join([command(*parts) for parts in commands])
        request = Request(packed, None, len(commands))
        return (yield from self._patiently(lambda left: SendTo(node, request, left), None))

    def nodes(self) -> Flow[list[Node]]:
        try:
            found: list[Node] = yield Nodes()
        except (NotSent, MaybeSent) as error:
            raise Unavailable(str(error)) from error
        return found

    def _patiently(self, step: Any, timeout: float | None) -> Flow[list[Any]]:
        deadline = time.monotonic() + (timeout or self.timeout)
        losses = 0
        while True:
            left = deadline - time.monotonic()
            try:
                made = step(max(left / 2 if left > 0.02 else left, 0.001))
                reply = yield made
            except NotSent as error:
                raise Unavailable(f"the server could not be asked: {error}") from error
            except MaybeSent as error:
                if deadline - time.monotonic() < 0.02:
                    raise Unavailable(f"no answer in time: {error}") from error
                losses += 1
                yield Sleep(_pause(losses))
                continue
            return reply if made.request.replies > 1 else [reply]
