"""What `Meter` and `AsyncMeter` share: settings, checked, and the flows of every verb. No I/O."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meterd.administration import Administration
from meterd.batch import Batch, Call, Outcome
from meterd.errors import PolicyError
from meterd.forgetting import Forgetting
from meterd.grants import Grants
from meterd.harvest import Harvest
from meterd.holds import Holds, Reserved
from meterd.keys import Keyspace, Subject
from meterd.limiter import LimiterCalls
from meterd.operations import Operations
from meterd.past import Past
from meterd.policy import Bucket, Plan
from meterd.refusals import RefusalCache, Refusals, spans
from meterd.result import Decision
from meterd.revision import checked_plans
from meterd.scripts import Scripts, own_scripts
from meterd.session import Session
from meterd.shapes import Shapes
from meterd.store import Store
from meterd.subscriptions import Subscriptions
from meterd.timespec import Seconds, duration_ms, refuse, seconds

if TYPE_CHECKING:
    from meterd.apikeys import ApiKeys
    from meterd.events import EventReader

_log = logging.getLogger("meterd")

Costs = str | Mapping[str, int]
Observer = Callable[[str, Subject, str, float], None]


def default_url() -> str:
    """METERD_URL, else `url` of the settings file (see `meterd.settings`)."""
    found = os.environ.get("METERD_URL")
    if found:
        return found
    from meterd.catalog_toml import load_settings
    from meterd.settings import settings_file

    path = settings_file()
    url = load_settings(path).get("url") if path else None
    if url:
        return str(url)
    raise PolicyError(
        "no server given: pass a URL such as redis://localhost:6379/0, set METERD_URL, or write "
        'url = "..." into meterd.toml'
    )


class MeterBase:
    """Settings, checked; the flows of every verb; no I/O."""

    _transport: Any
    _waits = False  # whether a call may wait at the server for as long as it likes

    def __init__(
        self,
        url: str | None = None,
        *,
        plans: Sequence[Plan] | None = None,
        apply: bool = False,
        prefix: str = "meterd",
        timeout: Seconds = 1.0,
        max_connections: int = 50,
        clock: Any = None,
        op_retention: Any = "24h",
        accept_eviction: bool = False,
        observer: Observer | None = None,
        client: Any = None,
        scripts: Scripts | None = None,
        functions: bool = True,
        refusal_cache: RefusalCache | None = None,
    ) -> None:
        """`scripts`, `functions`: which Lua to run and how, for the testing kit and for tests."""
        if client is not None and url is not None:
            raise PolicyError("give a url or a client, not both")
        given = "" if client is not None else url if url is not None else default_url()
        self._timeout = seconds(timeout, "timeout")
        if type(max_connections) is not int or max_connections < 1:
            raise refuse("max_connections", max_connections, "a positive integer")
        if observer is not None and not callable(observer):
            raise refuse("observer", observer, "a function (verb, subject, outcome, seconds)")
        self._observer = observer
        if clock is not None and not hasattr(clock, "now_ms"):
            raise refuse("clock", clock, "something with now_ms, as meterd.testing.ManualClock")
        self._keys = Keyspace(prefix)
        session = Session(scripts or own_scripts(), self._timeout, functions=functions)
        self._store = Store(
            session,
            self._keys,
            plans=None if plans is None else checked_plans(plans),
            apply=apply,
            manual=clock is not None,
            accept_eviction=accept_eviction,
        )
        self._session = session
        self._operations = Operations(
            session,
            self._store,
            self._keys,
            clock=None if clock is None else lambda: _now_ms(clock),
            op_retention_ms=duration_ms(op_retention, field="op_retention"),
        )
        self._administration = Administration(self._operations)
        self._forgetting = Forgetting(self._administration)
        self._subscriptions = Subscriptions(self._operations)
        self._shapes = Shapes(self._operations)
        self._manual = clock is not None
        self._holds = Holds(self._operations)
        self._grants = Grants(self._operations)
        self._harvest = Harvest(self._operations)
        self._past = Past(self._operations)
        given_spans = spans(refusal_cache)
        self._refusals: Refusals | None = None
        # The shortest way to a remembered refusal, where nobody has to be told of it.
        self._recall: Callable[..., Decision | None] | None = None
        if given_spans is not None:
            read = None if clock is None else lambda: _now_ms(clock)
            self._refusals = Refusals(given_spans, self._store, read)
            if observer is None:
                self._recall = self._refusals.known
        self._api_keys: ApiKeys | None = None
        self._closed = False
        self._server: Any = None
        self._connect(given, self._timeout, max_connections, client)

    def _connect(self, url: str, timeout: float, max_connections: int, client: Any) -> None:
        """Makes the transport. No I/O."""
        raise NotImplementedError

    def _observe(self, verb: str, subject: Subject, outcome: str, started: float) -> None:
        if self._observer is None:
            return
        try:
            self._observer(verb, subject, outcome, time.perf_counter() - started)
        except Exception:  # noqa: BLE001  # metrics must not hide what became of a charge
            _log.exception("the observer failed on %s of %r (%s)", verb, subject, outcome)

    def _batch(self, calls: Sequence[Call]) -> Batch:
        watch = None
        refusals = self._refusals
        if self._observer is not None or refusals is not None:

            def watch(call: Call, outcome: Outcome, started: float) -> None:
                if refusals is not None:
                    refusals.after(None, call.verb, call.subject, call.join, outcome)
                self._observe(call.verb, call.subject, outcome_of(outcome), started)

        return Batch(self._shapes, self._operations, calls, watch)

    def _reader(
        self, group: str, types: Sequence[str] | None, follow: bool, idle: Seconds
    ) -> EventReader:
        from meterd.events import EventReader

        return EventReader(
            self._session,
            self._store,
            self._keys,
            group,
            types,
            follow,
            idle,
            waits=self._waits,
            scattered=self._transport.kind == "cluster",
        )

    def _limiter(self, name: str, limits: tuple[Bucket, ...]) -> LimiterCalls:
        return LimiterCalls(self._operations, name, limits)

    def _apikeys(self) -> ApiKeys:
        """The flows of API keys, which many a process never needs."""
        if self._api_keys is None:
            from meterd.apikeys import ApiKeys

            self._api_keys = ApiKeys(self._administration, self._refusals)
        return self._api_keys

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} prefix={self._keys.prefix!r}>"

    @property
    def url(self) -> str:
        """Where the server is, without secrets."""
        raise NotImplementedError

    @property
    def revision(self) -> int:
        """The catalog's revision as this meter last saw it; 0 before the first apply."""
        return self._store.catalog.revision


def _now_ms(clock: Any) -> int:
    now = clock.now_ms
    if callable(now):
        now = now()
    if type(now) is not int or not 0 <= now < 2**46:
        raise refuse("clock.now_ms", now, "an integer, ms since 1970")
    return now


def outcome_of(result: object) -> str:
    """What the observer is told: a code, or the name of the error."""
    if isinstance(result, Reserved):
        result = result.decision
    if isinstance(result, Decision):
        return str(result.code)
    if isinstance(result, BaseException):
        return type(result).__name__
    return "OK"
