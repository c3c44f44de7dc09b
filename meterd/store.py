"""What one store holds beside its records: the catalog, the policies, the clock it runs on.

The catalog is one value under a revision that grows with every apply; whoever wants to change it
says what it was. Policies and plan definitions are content-addressed and never change, so a process
keeps what it has seen. A running process looks at the catalog again every few seconds of use.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from meterd import wire
from meterd.catalog import (
    Diff,
    definition_bytes,
    definition_hash,
    diff,
    plan_from_bytes,
    validate_catalog,
)
from meterd.compile import (
    ABSENT,
    Policy,
    compile_policy,
    horizon_for,
    is_private,
    read_policy,
)
from meterd.errors import CatalogMismatch, PolicyError, ScriptError, Unavailable, UnsafeServer
from meterd.flow import Flow
from meterd.keys import Keyspace
from meterd.policy import Bucket, Limit, Plan, Pool, Slots
from meterd.revision import Catalog, checked_plans, plan_ids
from meterd.session import Session

REFRESH_SECONDS = 2.0  # an apply reaches every process in use within twice this


class Sight(NamedTuple):
    """What an unseen root gets by one revision of the catalog; `context` says so to a script."""

    revision: int
    context: bytes
    policy: Policy | None


def never_open(plan: Plan) -> set[str]:
    """The cost names that a plan charges to a limit which never answers without the server."""
    return {
        name
        for limit in plan.includes
        if isinstance(limit, Pool | Slots)
        or (isinstance(limit, Bucket) and limit.on_error == "raise")
        for name in limit.charges
    }


class Store:
    """One store as a process knows it."""

    def __init__(
        self,
        session: Session,
        keyspace: Keyspace,
        *,
        plans: Sequence[Plan] | None,
        apply: bool,
        manual: bool,
        accept_eviction: bool,
    ) -> None:
        self.session = session
        self.keys = keyspace
        self.catalog = Catalog()
        self.own_plans = None if plans is None else tuple(plans)
        self._apply = apply
        self._clock = b"manual" if manual else b"server"
        self._accept_eviction = accept_eviction
        self._evicts_nothing = False
        self.ready = False
        self.looked = 0.0
        self._horizon = horizon_for(0)
        self._policies: dict[bytes, Policy] = {}
        self._definitions: dict[bytes, Plan] = {}
        self._stored: set[bytes] = set()
        self.guarded: set[str] = set()  # cost names that private plans keep from failing open
        self._compiled: dict[tuple[Any, ...], Policy] = {}
        self.first_sights: dict[str | None, Sight] = {}
        if self.own_plans is not None:
            validate_catalog(self.own_plans)

    # Opening and refreshing ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        """A call's deadline, if it may begin; None: the store has to be prepared."""
        now = time.monotonic()
        if not self.ready or now - self.looked > REFRESH_SECONDS:
            return None
        return now + self.session.timeout

    def prepare(self) -> Flow[float]:
        """Before a call: opens the store the first time, looks at the catalog now and then.

        Returns the call's deadline. Looking takes at most half of its time: in a cluster the
        catalog may be out of reach while the subject is not.
        """
        now = time.monotonic()
        if self.ready and now - self.looked > REFRESH_SECONDS:
            self.looked = now  # the others go on meanwhile
            with contextlib.suppress(Unavailable):  # the call itself will say so
                yield from self.refresh(self.session.timeout / 4)
                yield from self._learn_guarded(self.session.timeout / 4)
        if not self.ready:
            yield from self.open()
            now = time.monotonic()
        return now + self.session.timeout

    def open(self) -> Flow[None]:
        """Marks the store's clock, reads the catalog, and sees to it that it knows our plans."""
        yield from self._read()
        if self.own_plans and not self.catalog.knows(self.own_plans):
            if self.catalog.plans and not self._apply:
                self._refuse()
            yield from self._put(self.own_plans, first_only=not self._apply)
        self.ready = True

    def _read(self) -> Flow[None]:
        keys, known = self.keys, self.catalog
        marked, clock, raw = yield from self.session.plain(
            keys.catalog,
            (b"SETNX", keys.clock, self._clock),
            (b"GET", keys.clock),
            (b"GET", keys.catalog),
        )
        for reply in (clock, raw):
            if isinstance(reply, ResponseError):
                raise Unavailable(f"the store could not be opened: {reply}")
        if clock is None and isinstance(marked, ResponseError):  # full, or read-only
            raise Unavailable(f"the store could not be opened: {marked}")
        if clock != self._clock:
            kept = bytes(clock or b"?").decode()
            raise PolicyError(
                f"the store under prefix {keys.prefix!r} runs on the {kept} clock, this meter on "
                f"the {self._clock.decode()} one; use another prefix (a test clock and the "
                "server's must never meet in one store)"
            )
        self._adopt(raw, known)
        yield from self._learn_guarded(None)

    def _learn_guarded(self, timeout: float | None) -> Flow[None]:
        # By itself: while a slot moves, commands sent together may not be answered together.
        (names,) = yield from self.session.plain(
            self.keys.private, (b"SMEMBERS", self.keys.private), timeout=timeout
        )
        if isinstance(names, ResponseError):
            raise Unavailable(f"the store could not be read: {names}")
        self.guarded |= {name.decode() for name in names}

    def _refuse(self) -> None:
        change = diff(self.catalog.live(), self.own_plans or ())
        raise CatalogMismatch(
            f"these plans are neither the stored catalog (revision {self.catalog.revision}) nor an "
            f"earlier revision of it; `meterd apply`, meter.apply() or apply=True would change:\n"
            f"{change}",
            change,
        )

    def refresh(self, timeout: float | None = None) -> Flow[None]:
        """Reads the catalog again."""
        known = self.catalog
        (raw,) = yield from self.session.plain(
            self.keys.catalog, (b"GET", self.keys.catalog), timeout=timeout
        )
        if isinstance(raw, ResponseError):
            raise Unavailable(f"the catalog could not be read: {raw}")
        self._adopt(raw, known)

    def _adopt(self, raw: bytes | None, known: Catalog) -> None:
        """Takes over what the store holds. `known`: the catalog we had when that was asked.

        If another call has brought a catalog meanwhile, this answer may be older than that one:
        then only a higher revision counts.
        """
        self.looked = time.monotonic()
        late = self.catalog is not known
        if raw is None:
            if not late and known.revision > 0:
                # The store was emptied under us: open it anew at the next call.
                self.catalog, self.ready = Catalog(), False
                self._stored.clear()
                self.first_sights = {}
        elif raw != self.catalog.raw:
            found = Catalog.from_bytes(raw)
            if not late or found.revision > self.catalog.revision:
                self.catalog = found
                self.first_sights = {}

    def listed(self, *, retired: bool) -> Flow[dict[str, Plan]]:
        """The plans of the catalog as it is now."""
        yield from self.prepare()
        yield from self.refresh()
        return self.catalog.live(retired=retired)

    # Applying ------------------------------------------------------------------------------------

    def apply(
        self,
        plans: Sequence[Plan] | None,
        *,
        dry_run: bool = False,
        remove: Sequence[str] = (),
    ) -> Flow[Diff]:
        """Puts plans into the catalog, whatever it held."""
        gone = plan_ids(remove)
        if plans is not None:
            wanted = checked_plans(plans)
        elif self.own_plans is None and not gone:
            raise PolicyError("apply: no plans given, neither here nor to Meter(plans=...)")
        else:
            wanted = tuple([plan for plan in self.own_plans or () if plan.id not in gone])
        if not self.ready:
            yield from self._read()
            if self.own_plans and not self.catalog.plans and not dry_run:
                yield from self._put(self.own_plans, first_only=True)
        yield from self.refresh()
        return (yield from self._put(wanted, gone, dry_run=dry_run))

    def _put(
        self,
        wanted: Sequence[Plan],
        gone: Sequence[str] = (),
        *,
        dry_run: bool = False,
        first_only: bool = False,
    ) -> Flow[Diff]:
        """The next revision. `first_only`: fill an empty catalog, otherwise only compare."""
        while True:
            before = self.catalog
            change = diff(before.live(), wanted, gone)
            after = before.applied(wanted, gone, self.session.scripts.digest)
            if dry_run or not change:
                return change
            if first_only and before.plans:
                if not before.knows(wanted):
                    self._refuse()
                return change
            yield from self._check_eviction(after)
            put = yield from self.session.call(
                "apply", [self.keys.catalog], [before.raw, after.raw], harmless=True
            )
            if put != 1:
                yield from self.refresh()
                if self.catalog.raw == after.raw:
                    return change  # it was us: the answer had been lost
                continue
            self._adopt(after.raw, before)
            yield from self._prune_libraries(before, after)
            return change

    def check_eviction(self) -> Flow[None]:
        """Before credits are given: once for each process."""
        if not self._evicts_nothing:
            yield from self._ask_eviction()
            self._evicts_nothing = True

    def check_pools(self, limits: Iterable[Limit]) -> Flow[None]:
        """Before a private plan is given that has pools."""
        if any(isinstance(limit, Pool) for limit in limits):
            yield from self.check_eviction()

    def _check_eviction(self, catalog: Catalog) -> Flow[None]:
        pools = any(isinstance(x, Pool) for plan in catalog.plans.values() for x in plan.includes)
        if pools:
            yield from self._ask_eviction()

    def _ask_eviction(self) -> Flow[None]:
        if self._accept_eviction:
            return
        for node in (yield from self.session.nodes()):
            (info,) = yield from self.session.plain_to(node, (b"INFO", b"memory"))
            if not isinstance(info, bytes):
                continue  # a server that does not tell
            for line in info.decode("utf-8", "replace").splitlines():
                name, _, value = line.partition(":")
                if name == "maxmemory_policy" and value.strip() != "noeviction":
                    raise UnsafeServer(
                        f"{node}: maxmemory-policy is {value.strip()!r}, so the server may delete "
                        "credits when memory is short; set it to noeviction (CONFIG SET "
                        "maxmemory-policy noeviction), or say accept_eviction=True"
                    )

    def _prune_libraries(self, before: Catalog, after: Catalog) -> Flow[None]:
        """Removes function libraries that an apply pushed out of the newest few.

        A process that still uses one loads it again when it is missed.
        """
        old = [name for name in before.libraries if name not in after.libraries]
        if not old or not self.session.functions:
            return
        for node in (yield from self.session.nodes()):
            for name in old:
                yield from self.session.plain_to(
                    node, (b"FUNCTION", b"DELETE", f"meterd_{name}".encode())
                )

    # Policies ------------------------------------------------------------------------------------

    def private_plans(self) -> list[Plan]:
        """Plans of single subjects, as far as this process has met them."""
        return [plan for plan in list(self._definitions.values()) if is_private(plan)]

    def extend_horizon(self, needed_ms: int) -> None:
        """From now on, zones are written out beyond that instant."""
        self._horizon = max(self._horizon, horizon_for(needed_ms))
        self.first_sights = {}

    def compile(self, plans: Iterable[Plan]) -> Policy:
        """The policy of a set of plans, at the current horizon."""
        held = tuple(plans)
        key = (self._horizon, *sorted(definition_hash(plan) for plan in held))
        policy = self._compiled.get(key)
        if policy is None:
            policy = compile_policy(held, self._horizon)
            if len(self._compiled) > 4096:
                self._compiled.clear()
            self._compiled[key] = policy
            self._policies[policy.name] = policy
            for plan in held:
                self._definitions[definition_hash(plan)] = plan
        return policy

    def keeps(self, policy: Policy) -> bool:
        """Whether the store is known to have a policy."""
        return policy.name in self._stored

    def keep(self, policy: Policy) -> Flow[None]:
        """Stores a policy and its plans' definitions, before any record can name it."""
        if self.keeps(policy):
            return
        fields: list[bytes] = [policy.name, policy.blob]
        guarded: set[str] = set()
        for _, _, digest, private in policy.plans:
            plan = self._definitions.get(digest)
            if plan is not None:
                fields += [b"d" + digest, definition_bytes(plan)]
                if private:
                    guarded |= never_open(plan)
        commands: list[tuple[bytes, ...]] = [(b"HSET", self.keys.policies, *fields)]
        if guarded - self.guarded:
            names = sorted(name.encode() for name in guarded)
            commands.insert(0, (b"SADD", self.keys.private, *names))
        for command in commands:
            (reply,) = yield from self.session.plain(self.keys.policies, command)
            if isinstance(reply, ResponseError):
                raise Unavailable(f"a policy could not be stored: {reply}")
        self.guarded |= guarded
        self._stored.add(policy.name)

    def policy(self, name: bytes) -> Flow[Policy]:
        """The policy of that name, from memory or from the store."""
        found = self._policies.get(name)
        if found is None:
            blob = yield from self._fetch(name)
            if blob is None:
                raise ScriptError(
                    f"a record names policy {name.hex()}, which is not in "
                    f"{self.keys.policies.decode()}: was a part of the store deleted?"
                )
            found = self._policies[name] = read_policy(blob)
            self._stored.add(name)
        return found

    def _fetch(self, name: bytes) -> Flow[bytes | None]:
        (blob,) = yield from self.session.plain(
            self.keys.policies, (b"HGET", self.keys.policies, name)
        )
        if isinstance(blob, ResponseError):
            raise Unavailable(f"a policy could not be read: {blob}")
        found: bytes | None = blob
        return found

    def plans_of(self, policy: Policy, *, current: bool) -> Flow[list[Plan]]:
        """The plans of a policy: as they were, or as the catalog has them now."""
        found = []
        for _, name, digest, private in policy.plans:
            if current and not private and name in self.catalog.plans:
                found.append(self.catalog.plans[name])
                continue
            found.append((yield from self.definition(name, digest)))
        return found

    def definition(self, name: str, digest: bytes) -> Flow[Plan]:
        """A plan as it was defined under that hash."""
        plan = self._definitions.get(digest)
        if plan is None:
            raw = yield from self._fetch(b"d" + digest)
            if raw is None:
                raise ScriptError(f"the definition of plan {name!r} is missing from the store")
            plan = self._definitions[digest] = plan_from_bytes(raw)
        return plan

    def context(self, join: str | None) -> bytes:
        """What a script has to know of the catalog."""
        return self.sight(join).context

    def sight(self, join: str | None) -> Sight:
        """What a root joins at first sight."""
        known = self.first_sights  # before the catalog: a new one comes first, then an empty memory
        found = known.get(join)
        if found is None:
            catalog = self.catalog
            plans, group = catalog.defaults(), ""
            if join is not None:
                if join in catalog.retired:
                    plans, group = {}, catalog.plans[join].group
                else:
                    plan = catalog.plan(join)
                    plans[plan.group] = plan
                    group = plan.group
            policy = self.compile(plans.values()) if plans else None
            context = wire.context(catalog.revision, policy.name if policy else ABSENT, group)
            found = known[join] = Sight(catalog.revision, context, policy)
        return found

    def retired(self, join: str | None) -> bool:
        """Whether `join` names a plan that only its holders may still name."""
        return join is not None and join in self.catalog.retired

    def brought_up(self, plans: Iterable[Plan], *, root: bool, join: str | None) -> list[Plan]:
        """A record's plans with what first sight adds in the groups where it has none."""
        held = {plan.group: plan for plan in plans}
        if root:
            if join is not None and self.catalog.plans[join].group not in held:
                plan = self.catalog.plan(join)
                held[plan.group] = plan
            for group, plan in self.catalog.defaults().items():
                held.setdefault(group, plan)
        return list(held.values())
