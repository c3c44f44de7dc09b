"""`demo` and `doctor`: see that meterd works, and that the server it uses is fit for balances."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from meterd.cli import checks
from meterd.cli.backlog import look
from meterd.cli.base import ERROR, UNREACHABLE, State, fail, verb
from meterd.cli.checks import FAIL, OK, WARN, Check
from meterd.client import default_url
from meterd.demo import Promise, run_demo
from meterd.errors import Unavailable
from meterd.keys import Keyspace
from meterd.revision import Catalog
from meterd.scripts import own_scripts
from meterd.term import Look, number
from meterd.transport import MaybeSent, Node, NotSent, Request, open_transport, pack, redact
from meterd.transport.base import SyncTransport

SECONDS = 5.0  # patience with one question


@verb()
@click.pass_obj
def demo(state: State) -> None:
    """Watch meterd keep its promises, on a private server that is gone afterwards.

    Takes a few seconds and needs nothing but this package. Exits with 1 if a promise is broken.
    """
    look = state.look()

    def say(text: str) -> None:
        if not state.json:
            click.echo(text, color=look.color)

    say(look.bold("meterd demo"))
    outcome = run_demo(
        lambda line: say(look.dim(line)), lambda promise: say(_promise(promise, look))
    )
    rates = (
        f"{number(outcome.sync_per_s)} decisions/s from one thread{look.dot}"
        f"{number(outcome.async_per_s)} decisions/s from one event loop"
    )
    say(f"{rates} (two limits each)")
    say(look.dim(f"done in {outcome.seconds:.1f} s; next: meterd --help"))
    if state.json:
        state.emit(outcome.as_dict(), "")
    if not outcome.passed:
        click.get_current_context().exit(ERROR)


def _promise(promise: Promise, look: Look) -> str:
    mark = look.style("PASS", fg="green", bold=True)
    if not promise.kept:
        mark = look.style("FAIL", fg="red", bold=True)
    seen = look.dim(f"{look.clean(promise.seen)} ({promise.seconds:.2f} s)")
    return f"{mark}  {promise.says}\n      {seen}"


@verb()
@click.pass_obj
def doctor(state: State) -> None:
    """Check the server and the store: is this a safe home for balances?

    Exits with 1 if a check fails, with 4 if the server cannot be reached.
    """
    settings = state.settings()
    url = settings.get("url") or default_url()
    timeout = settings.get("timeout", 1.0)
    transport = open_transport(url, timeout=timeout, max_connections=2)
    try:
        found = list(_examine(transport, settings))
        code = ERROR if any(check.state == FAIL for check in found) else 0
    except (Unavailable, NotSent, MaybeSent) as error:
        found = [Check("connection", FAIL, str(error), "start the server, or give another --url")]
        fail(str(error), UNREACHABLE)
        code = UNREACHABLE
    finally:
        transport.close()
    data = {"url": redact(url), "ok": not code, "checks": [check.as_dict() for check in found]}
    if state.json or code != UNREACHABLE:
        state.emit(data, lambda look: _text(redact(url), found, look))
    if code:
        click.get_current_context().exit(code)


def _examine(transport: SyncTransport, settings: dict[str, Any]) -> Iterator[Check]:
    transport.open()
    yield Check("connection", OK, f"{transport.kind} at {transport.url}")
    accepted = bool(settings.get("accept_eviction"))
    library = own_scripts().library_name
    nodes = transport.nodes()
    for node in nodes:
        ask = _Asker(transport, node)
        name = str(node) if len(nodes) > 1 else ""
        info, config = ask.info(), ask.config("appendfsync", "save")
        for check in (
            checks.server(info),
            checks.role(info),
            checks.persistence(info, config),
            checks.eviction(info, accepted),
            checks.functions(ask.libraries(), library),
            ask.skew(),
        ):
            yield Check(check.name, check.state, check.found, check.advice, name)
    first = _Asker(transport, nodes[0])
    yield checks.cluster(first.cluster() if transport.kind == "cluster" else None)
    yield from _store(transport, settings.get("prefix", "meterd"))


def _store(transport: SyncTransport, prefix: str) -> Iterator[Check]:
    """What the store holds. Read from its keys, because a meter that opens a store marks it."""
    keys = Keyspace(prefix)
    kind = transport.send(Request(pack("GET", keys.clock), keys.clock), SECONDS)
    raw = transport.send(Request(pack("GET", keys.catalog), keys.catalog), SECONDS)
    yield checks.store_clock(kind.decode() if isinstance(kind, bytes) else None)
    catalog = Catalog.from_bytes(raw) if isinstance(raw, bytes) else Catalog()
    yield checks.catalog(catalog.revision, len(catalog.live()))
    backlog = look(transport, keys, SECONDS)
    yield checks.events(backlog)
    yield checks.export(backlog)


class _Asker:
    """Questions to one server. What it may not or cannot answer comes back empty."""

    def __init__(self, transport: SyncTransport, node: Node) -> None:
        self._transport = transport
        self._node = node

    def _ask(self, *words: str) -> Any:
        reply = self._transport.send_to(self._node, Request(pack(*words), None), SECONDS)
        return None if isinstance(reply, Exception) else reply

    def info(self) -> dict[str, str]:
        return checks.parse_info(_text_of(self._ask("INFO")))

    def cluster(self) -> dict[str, str]:
        return checks.parse_info(_text_of(self._ask("CLUSTER", "INFO")))

    def config(self, *names: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in names:  # one at a time: Redis 6.2 takes only one
            reply = self._ask("CONFIG", "GET", name)
            if isinstance(reply, dict):
                found |= {_text_of(key): _text_of(value) for key, value in reply.items()}
            elif isinstance(reply, list) and len(reply) == 2:
                found[_text_of(reply[0])] = _text_of(reply[1])
        return found

    def libraries(self) -> list[str] | None:
        """Names of meterd's function libraries; None where the server has no functions."""
        reply = self._ask("FUNCTION", "LIST", "LIBRARYNAME", "meterd_*")
        if reply is None:
            return None
        names = []
        for entry in reply:
            pairs = (
                entry.items()
                if isinstance(entry, dict)
                else zip(entry[::2], entry[1::2], strict=False)
            )
            names += [_text_of(value) for key, value in pairs if _text_of(key) == "library_name"]
        return names

    def skew(self) -> Check:
        started = time.time()
        reply = self._ask("TIME")
        ended = time.time()
        if not isinstance(reply, list):
            return Check("time", WARN, "the server does not tell its time")
        server_ms = int(reply[0]) * 1000 + int(reply[1]) // 1000
        return checks.skew(
            server_ms, round((started + ended) * 500), round((ended - started) * 1000)
        )


def _text_of(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply or "")


def _text(url: str, found: list[Check], look: Look) -> str:
    colors = {OK: "green", WARN: "yellow", FAIL: "red"}
    width = max(len(check.name) for check in found)
    lines = [look.bold(look.clean(url))]
    for check in found:
        mark = look.style(check.state.ljust(4), fg=colors[check.state], bold=check.state != OK)
        where = f" [{check.node}]" if check.node else ""
        lines.append(look.clean(f"{check.name.ljust(width)}  {check.found}{where}"))
        lines[-1] = f"{mark}  {lines[-1]}"
        if check.advice and check.state != OK:
            lines.append(" " * (width + 8) + look.dim(f"{look.arrow} {check.advice}"))
    counts = {state: sum(check.state == state for check in found) for state in colors}
    lines.append(look.dot.join(f"{count} {state}" for state, count in counts.items() if count))
    return "\n".join(lines)


COMMANDS = (demo, doctor)
