"""`Meter`, the synchronous client: its verbs. How they are carried out is in `caller`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from meterd.base import Costs, default_url
from meterd.batch import Item, all_or_error, calls_of
from meterd.caller import Caller
from meterd.catalog import Diff
from meterd.errors import MeterdError
from meterd.grant import Grant
from meterd.hold import Hold
from meterd.keys import Subject, display
from meterd.lease import Lease
from meterd.limiter import Limiter
from meterd.past import Operation
from meterd.policy import Bucket, Limit, Plan
from meterd.result import Decision, Usage
from meterd.timespec import Instant, Seconds

if TYPE_CHECKING:
    from meterd.event import Event
    from meterd.events import EventReader
    from meterd.keyverbs import Keys
    from meterd.pipeline import Pipeline

T = TypeVar("T")


class Meter(Caller):
    """The synchronous client. Thread-safe; one made before a fork is safe in each child.

    `url`: redis:// rediss:// unix:// redis+cluster:// redis+sentinel://, else METERD_URL, else
    meterd.toml. `plans` fill an empty catalog or are compared with the stored one (`apply=True`
    puts them there). `timeout`: seconds that bound every call. `clock`: a test clock; a store
    remembers which kind it runs on. `op_retention`: how long operation ids are kept.
    `observer(verb, subject, outcome, seconds)` is called after every call. `refusal_cache`: for how
    long at most a refusal by buckets is answered from memory, "1s"; for pools as well:
    {"buckets": "1s", "pools": "200ms"} (`meterd.refusals` has the rule). The constructor does no
    I/O.
    """

    @classmethod
    def embedded(cls, plans: Sequence[Plan] | None = None, **settings: Any) -> Self:
        """A meter on a private server of its own, gone when closed. Takes what `Meter` takes."""
        from meterd.embedded import EmbeddedServer

        server = EmbeddedServer.start()
        try:
            meter = cls(server.url, plans=plans, **settings)
            meter._server = server
            meter.open()
        except BaseException:
            server.close()
            raise
        return meter

    def check(
        self, subject: Subject, costs: Costs, amount: int = 1, *, join: str | None = None
    ) -> Decision:
        """The answer `consume` would give now; writes nothing."""
        return self._charge(self._shapes, "check", subject, costs, amount, None, join, 0)

    def consume(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | bool | None = None,
        join: str | None = None,
        wait: Seconds = 0,
    ) -> Decision:
        """Charges every limit that the costs reach, on every level of the path, or none of them.

        `op`: an operation id (True makes one): the same call again returns the first answer and
        charges nothing. `join`: the plan an unseen customer gets. `wait`: seconds in all to sleep
        `retry_after` and try again. Raises `PolicyError`, `OpConflict`, `Unavailable` (nothing
        applied), `OutcomeUnknown` (sent, answer lost, no `op`).
        """
        patience: Any = wait
        if self._recall is not None and op is None and patience.__class__ is int and patience == 0:
            known = self._recall(None, subject, costs, amount, join)
            if known is not None:
                return known
        return self._charge(self._shapes, "consume", subject, costs, amount, op, join, wait)

    def report(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        op: str | bool | None = None,
        join: str | None = None,
    ) -> Decision:
        """Records use that has happened: pools go beyond their limit, buckets take what is left.

        Raises `NotIncluded` or `NoPlan` where nothing can be recorded, else as `consume`.
        """
        return self._charge(self._shapes, "report", subject, costs, amount, op, join, 0)

    def refund(
        self,
        subject: Subject,
        costs: Costs | None = None,
        amount: int = 1,
        *,
        of: str | None = None,
        op: str | bool | None = None,
    ) -> Decision:
        """Gives use of the running period back, never below zero; `applied` says what came back.

        `of`: an operation id, instead of `costs`: gives back that whole consume, report, or commit
        (the id of its hold), once, to where it came from; what of that is over lapses. Again, it is
        answered as the first time (`replayed`), so it can be repeated without `op`. Raises
        `OpNotFound` for an id that is unknown or no longer kept, `PolicyError` for what cannot be
        given back, or was charged on another path.
        """
        if costs is not None and of is None:
            return self._charge(self._shapes, "refund", subject, costs, amount, op, None, 0)
        flow = self._past.refund(subject, costs, amount, of, op)
        return self._call("refund", subject, flow)

    @overload
    def consume_many(
        self, items: Iterable[Item], *, return_exceptions: Literal[False] = False
    ) -> list[Decision]: ...

    @overload
    def consume_many(
        self, items: Iterable[Item], *, return_exceptions: bool
    ) -> list[Decision | MeterdError]: ...

    def consume_many(
        self, items: Iterable[Item], *, return_exceptions: bool = False
    ) -> list[Decision] | list[Decision | MeterdError]:
        """`consume` for each item, in few round trips; the decisions in the order of the items.

        An item is `(subject, costs)`, `(subject, costs, amount)` or a mapping of `consume`'s
        keyword arguments (without `wait`). Each is decided by itself, those of one subject in
        order. If some fail, the others count: `BatchError` carries every outcome, or with
        `return_exceptions=True` errors stand in the list.
        """
        calls = calls_of(items)
        outcomes: list[Any] = self._drive(self._batch(calls).rounds())
        return outcomes if return_exceptions else all_or_error(calls, outcomes)

    def pipeline(self, *, raise_on_error: bool = True) -> Pipeline:
        """Calls gathered now and sent together: `with meter.pipeline() as p: a = p.consume(...)`.

        What the calls return has a `result()` once the block has ended, or `execute()` was called.
        """
        from meterd.pipeline import Pipeline

        return Pipeline(self, raise_on_error)

    def reserve(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1,
        *,
        ttl: Seconds = 60,
        op: str | bool | None = None,
        join: str | None = None,
        wait: Seconds = 0,
        keepalive: bool = False,
    ) -> Hold:
        """Charges as `consume` does, until the hold is committed, released, or `ttl` seconds old.

        With `with`, leaving the block commits what `hold.spend` counted, else what was reserved; an
        exception releases it unless something was counted. `op` becomes the hold's id: the same
        call again finds the same hold, whatever became of it.
        `keepalive`: the hold is renewed as long as it is neither finished nor let go of. Raises as
        `consume`; after `OutcomeUnknown` what may be held comes back once `ttl` has passed.
        """
        flow = self._holds.reserve(subject, costs, amount, ttl, op, join, wait)
        return Hold._reserved(self, self._call("reserve", subject, flow), subject, ttl, keepalive)

    def hold(self, subject: Subject, hold_id: str) -> Hold:
        """The hold of that id, to finish here what another process began. No I/O."""
        return Hold(self, subject, hold_id)

    def usage(self, subject: Subject, *, join: str | None = None) -> Usage:
        """A read-only picture of every limit at every level."""
        return self._call("usage", subject, self._administration.usage(subject, join))

    def operation(self, subject: Subject, op: str) -> Operation:
        """What became of an operation id, or of how the hold of that id was ended. Read-only.

        Ids belong to the root of `subject`. `OpNotFound`: it never ran, was refused, or is no
        longer kept; so it says what an `OutcomeUnknown` left open.
        """
        return self._call("operation", subject, self._past.operation(subject, op))

    @property
    def keys(self) -> Keys:
        """API keys: `meter.keys.verify(secret)` and the verbs that make and change them."""
        from meterd.keyverbs import Keys

        return Keys(self, self._apikeys())

    def lease(
        self,
        subject: Subject,
        costs: Costs,
        amount: int = 1000,
        *,
        ttl: Seconds = 5,
        least: int = 1,
        most: int | None = None,
        join: str | None = None,
    ) -> Lease:
        """Takes `amount` units (they count as used from now on), to be sold here from memory.

        A unit is what `costs` says, once. Later chunks follow the pace of sales, between `least`
        and `most` (`amount` if not given). What is not sold goes back on `close`, or when nothing
        was sold for half of `ttl`, and in any case with its end. Raises `PolicyError` (also for an
        amount that a limit can never give) and `Unavailable`; refusals come from `lease.consume`.
        """
        return Lease(self, subject, costs, amount, ttl, least, most, join)

    def apply(
        self,
        plans: Sequence[Plan] | None = None,
        *,
        dry_run: bool = False,
        remove: Sequence[str] = (),
    ) -> Diff:
        """Puts plans (its own, without) into the catalog and returns the difference.

        Plans that are not mentioned stay; `remove` retires plans.
        """
        diff = self._run(self._store.apply(plans, dry_run=dry_run, remove=remove))
        if self._refusals is not None:
            self._refusals.clear()
        return diff

    def plans(self, *, retired: bool = False) -> dict[str, Plan]:
        """The stored catalog, read now: its plans by id, or those that take no new subscribers."""
        return self._run(self._store.listed(retired=retired))

    def subscribe(
        self,
        subject: Subject,
        plan: str | None = None,
        *,
        limits: Sequence[Limit] = (),
        change: str = "keep",
        when: str | Instant = "now",
        anchor: Instant | None = None,
        op: str | bool | None = None,
    ) -> None:
        """Gives a subject a plan of the catalog, or a private one (`limits=`), in its group.

        `change`: "keep" what was used; "reset" (the plan's pools start a new period); "prorate"
        (keep, and for the running period the limits of pools move only in proportion to what is
        left of it). `when`: "now"; "period_end", the next boundary of the pool of the longest
        interval in the plan that is left (none: now); or an instant (a past one: now). What is to
        come stands in `usage(subject).levels[-1].pending`; any later change of the group takes its
        place. `anchor`: an instant from which the plan's pools count their periods. `op`: an
        operation id: the same call again does nothing. Raises `PolicyError`, `OpConflict`,
        `UnsafeServer` (for `limits=` with pools), `Unavailable` (nothing applied), `OutcomeUnknown`
        (for "reset" without `op`).
        """
        flow = self._subscriptions.subscribe(subject, plan, limits, change, when, anchor, op)
        self._call("subscribe", subject, flow)

    def unsubscribe(self, subject: Subject, plan: str, *, when: str | Instant = "now") -> None:
        """Takes a plan away; its group falls back to its default plan, if it has one.

        `when`: as in `subscribe`. A plan that is not held: nothing happens.
        """
        self._call("unsubscribe", subject, self._subscriptions.unsubscribe(subject, plan, when))

    def grant(
        self,
        subject: Subject,
        name: str,
        amount: int,
        *,
        expires: Instant | None = None,
        starts: Instant | None = None,
        priority: int = 50,
        source: str = "",
        op: str | bool | None = None,
    ) -> Grant:
        """Gives a pool `amount` units of their own: a top-up, a bonus, what was paid in advance.

        They are spent from `starts` up to, not at, `expires`, in order of `priority` (0 to 100, low
        first; the period's own allowance has 50), then what expires soonest, then the oldest (of
        the same ms, by id); no plan change touches them. A pool that no plan includes is there with
        limit 0. `op`: the grant's id; the same call again returns the first answer (for 30 days at
        least). Raises `PolicyError` (also beyond 64 live grants, or 10**15 unspent, and where a
        level above has a bucket or flag of that name), `OpConflict`, `UnsafeServer`.
        """
        flow = self._grants.grant(subject, name, amount, expires, starts, priority, source, op)
        return self._call("grant", subject, flow)

    def void(self, subject: Subject, grant_id: str) -> int:
        """Takes back what a grant has left, and returns how much that was: 0 if it is spent.

        What open holds have of it stays with them; what comes back from them is lost. Raises
        `OpNotFound` for a grant that is not there (any more).
        """
        return self._call("void", subject, self._grants.void(subject, grant_id))

    def override(
        self,
        subject: Subject,
        name: str,
        /,
        *,
        expires: Instant | None = None,
        clear: bool = False,
        **fields: int | None,
    ) -> None:
        """Changes `limit`, `overage` or `burst` for one subject, whatever its plans say.

        Replaces an earlier override of that limit. It survives plan changes and ends at `expires`.
        """
        flow = self._administration.override(subject, name, expires, clear, fields)
        self._call("override", subject, flow)

    def adjust(self, subject: Subject, name: str, *, used: int) -> None:
        """Sets what was used in the running period or window: an absolute correction."""
        self._call("adjust", subject, self._administration.adjust(subject, name, used))

    def set_meta(self, subject: Subject, mapping: Mapping[str, Any]) -> None:
        """Stores JSON values beside the record; None removes a field."""
        self._call("set_meta", subject, self._administration.set_meta(subject, mapping))

    def meta(self, subject: Subject) -> dict[str, Any]:
        """What `set_meta` stored."""
        return self._call("meta", subject, self._administration.meta(subject))

    def forget(self, subject: Subject) -> int:
        """Removes everything at and below a subject; how many keys that were. Resumable."""
        return self._call("forget", subject, self._apikeys().forget(subject))

    def harvest(self, *, limit: int | None = None) -> int:
        """Puts what is billed and not there yet into the outbox; how many entries that made.

        Besides, periods that are over are told of (`closed`) where nobody has written since. Looks
        at the subjects that have something to settle, at most `limit` of them. May be called as
        often as one likes, by any number of processes, and again where it was interrupted.
        """
        return self._drive(self._harvest.rounds(limit))

    def subjects(self, root: str | None = None) -> Iterator[Subject]:
        """Every subject with a record, each once, in no order (SCAN, never KEYS)."""
        pattern = self._keys.subjects_pattern(root)
        self._run(self._store.prepare())
        seen: set[bytes] = set()
        for node in self._run(self._session.nodes()):
            cursor, more = 0, True
            while more:
                cursor, found = self._run(self._administration.page(node, cursor, pattern))
                more = cursor != 0
                for key in found:
                    if key not in seen:
                        seen.add(key)
                        segments = self._keys.parse_subject(key)
                        if root is None or segments[0] == root:
                            yield display(segments)

    def events(
        self,
        group: str,
        types: Sequence[str] | None = None,
        follow: bool = True,
        *,
        idle: Seconds = 60,
    ) -> Iterator[Event]:
        """What happened to limits, each event once for the group, whoever of its consumers gets it.

        An event is acknowledged when the next one is asked for. Left by an exception or `break` it
        stays with the group, and the next consumer to start gets it; what a killed consumer had is
        delivered again `idle` seconds later, as is an event whose handling takes longer: an event
        comes at least once, under the same `id`. A new group begins with the oldest event kept.
        `types`: of "warn", "exhausted", "overage", "closed"; the others are acknowledged unseen.
        Without `follow` it ends when what was there has been delivered. Raises `Unavailable`.
        """
        return self._following(self._reader(group, types, follow, idle))

    def _following(self, reader: EventReader) -> Iterator[Event]:
        try:
            while (event := self._drive(reader.next())) is not None:
                yield event
        finally:
            with suppress(MeterdError):
                self._drive(reader.close())

    def limiter(self, name: str, *limits: Bucket) -> Limiter:
        """Plain rate limiting without a catalog: `limiter("login", Bucket("ip", 5, "1m"))`."""
        return Limiter(self, self._limiter(name, limits))


__all__ = ["Meter", "default_url"]
