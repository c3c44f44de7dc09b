"""API keys under faults: lost replies, processes killed between two steps, revoked while in use."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from meterd import Bucket, Meter, OutcomeUnknown, Plan, Pool, Unavailable
from tests.faults.fault_tools import (
    EVERY_WAY,
    LOSING,
    Workshop,
    certain,
    fresh_prefix,
    patience,
    snapshot,
)
from tests.support import proxy as faulty
from tests.support import servers
from tests.support.proxy import Fault, FaultProxy
from tests.support.servers import Server

PLANS = [
    Plan(
        "base",
        default=True,
        includes=[
            Pool("credits", 10**9, "month"),
            Bucket("open", 10**9, "366d", algorithm="fixed", on_error="allow", auto=1),
        ],
    ),
    Plan("buckets", includes=[Bucket("open", 10**9, "366d", on_error="allow", auto=1)]),
]
OWN = [Pool("credits", 10**6)]
SHA256 = hashlib.sha256(b"old-secret").hexdigest()
HARMLESS = (faulty.DUPLICATE, faulty.TRICKLE, faulty.delay(5))


@pytest.fixture
def direct(matrix_server: Server, prefix: str) -> Iterator[Meter]:
    with Meter(matrix_server.url, plans=PLANS, prefix=prefix, timeout=20) as made:
        yield made


def used(meter: Meter, subject: Any = "acme") -> int:
    return meter.usage(subject)["credits"].used


@EVERY_WAY
@pytest.mark.parametrize("fault", [*LOSING, *HARMLESS], ids=lambda fault: fault.kind)
def test_one_fault(
    proxy: FaultProxy, direct: Meter, either: Workshop, prefix: str, fault: Fault
) -> None:
    meter = either(proxy.url, prefix=prefix, timeout=patience(fault))
    key = direct.keys.create("acme")
    secret = str(key.secret)
    assert meter.keys.verify(secret)  # from here on one request each
    assert meter.keys.verify(secret)
    lost = fault in LOSING and fault != faulty.CUT_BEFORE

    proxy.next(fault)
    found = certain("v", lambda: meter.keys.verify(secret, "credits", 5, op="v"))
    assert (found.valid, found.decision.replayed) == (True, lost)
    assert used(direct) == 7
    proxy.next(fault)
    assert meter.keys.verify(secret, auto=False)  # charges nothing, so it may be asked again
    assert used(direct) == 7
    proxy.next(fault)
    if fault in HARMLESS:
        assert meter.keys.verify(secret, "credits", 3)
    else:
        with pytest.raises(OutcomeUnknown):
            meter.keys.verify(secret, "credits", 3)
    assert used(direct) == (7 if fault == faulty.CUT_BEFORE else 10)

    proxy.next(fault)
    changed = meter.keys.update(key.id, name="x", enabled=False)
    assert (changed.name, changed.enabled) == ("x", False)
    assert direct.keys.verify(secret).code == "DISABLED"
    meter.keys.update(key.id, enabled=True)
    # What is waited for is waited for once: a cut shows the same at every request.
    requests = (2,) if fault in (faulty.DROP, faulty.STALL) else (0, 1, 2)
    for skipped in requests:
        proxy.next(*[faulty.delay(0)] * skipped, fault)
        new = meter.keys.rotate(key.id, overlap="1h")
        assert direct.keys.verify(str(new.secret))
    for skipped in requests:
        proxy.next(*[faulty.delay(0)] * skipped, fault)
        made = meter.keys.create("acme", limits=OWN)
        assert direct.keys.verify(str(made.secret))
        proxy.next(*[faulty.delay(0)] * skipped, fault)
        assert meter.keys.revoke(made.id)
        assert not direct.keys.verify(str(made.secret))
    assert [one.id for one in direct.keys.list("acme")] == [key.id]


def test_nobody_is_let_in_unseen() -> None:
    """Whatever buckets say: without the server nobody knows who that is."""
    with servers.start() as server, Meter(server.url, plans=PLANS, timeout=0.3) as meter:
        known = meter.keys.create("acme", join="buckets")
        assert meter.keys.verify(str(known.secret))
        unknown = meter.keys.create("acme")
        server.stop()
        assert meter.consume("acme", "open").degraded
        for secret in (known.secret, unknown.secret):
            for costs, auto in ((None, True), (None, False), ("open", False)):
                with pytest.raises(Unavailable):
                    meter.keys.verify(str(secret), costs, auto=auto)
        broken = str(known.secret)[:-1] + ("a" if str(known.secret)[-1] != "a" else "b")
        assert meter.keys.verify(broken).code == "NOT_FOUND"  # that is known without it


# Processes that end between two steps -------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """A transport that carries out so many steps and then kills, before or after the next one."""

    def __init__(self, inner: Any, left: int, late: bool) -> None:
        self._inner = inner
        self.left = left
        self._late = late

    def _step(self, name: str, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self._late:
            raise Killed
        found = getattr(self._inner, name)(*args)
        if self.left == 0:
            raise Killed
        return found

    def send(self, *args: Any) -> Any:
        return self._step("send", *args)

    def send_to(self, *args: Any) -> Any:
        return self._step("send_to", *args)

    def nodes(self, *args: Any) -> Any:
        return self._step("nodes", *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def killed(meter: Meter, left: int, late: bool, work: Callable[[], Any]) -> bool:
    """Whether the work was killed, and not done with before that."""
    inner: Any = meter._transport
    meter._transport = Dying(inner, left, late)  # type: ignore[assignment]
    try:
        work()
        return False
    except Killed:
        return True
    finally:
        meter._transport = inner


@pytest.fixture(params=[True, False], ids=["functions", "scripts"])
def stores(request: pytest.FixtureRequest, server: Server) -> Iterator[Callable[[], Meter]]:
    made: list[Meter] = []

    def make() -> Meter:
        named = {"functions": request.param, "prefix": fresh_prefix(), "timeout": 20}
        made.append(Meter(server.url, plans=PLANS, **named).open())
        warm = made[-1].keys.create("warm", limits=OWN)  # what is loaded once is loaded
        assert made[-1].keys.verify(str(warm.secret))
        made[-1].forget("warm")
        return made[-1]

    yield make
    for meter in made:
        meter.close()


def every_step(
    stores: Callable[[], Meter],
    before: Callable[[Meter], Any],
    work: Callable[[Meter, Any], Any],
    after: Callable[[Meter, Any, bool], None],
) -> int:
    """Kills `work` at each of its steps, early and late; `after` resumes and looks. How many."""
    kills = 0
    for late in (False, True):
        step = 1
        while True:
            meter = stores()
            given = before(meter)
            dead = killed(meter, step, late, lambda m=meter, g=given: work(m, g))
            after(meter, given, dead)
            if not dead:
                break
            step, kills = step + 1, kills + 1
    return kills


def test_create_is_killed(stores: Callable[[], Meter]) -> None:
    def after(meter: Meter, _: Any, dead: bool) -> None:
        for found in meter.keys.list("acme"):  # nobody has its secret, but it can be told apart
            assert meter.usage(found.subject)["credits"].limit == 10**6
            assert meter.keys.revoke(found.id)
        key = meter.keys.create("acme", limits=OWN, join="buckets", name="x")
        assert meter.keys.verify(str(key.secret)).credits == 10**6 - 1
        assert [one.id for one in meter.keys.list("acme")] == [key.id]
        meter.forget("acme")
        assert meter.keys.list("acme") == []

    kills = every_step(
        stores,
        lambda meter: None,
        lambda meter, _: meter.keys.create("acme", limits=OWN, join="buckets", name="x"),
        after,
    )
    assert kills >= 8


def test_an_import_is_killed(stores: Callable[[], Meter]) -> None:
    def after(meter: Meter, _: Any, dead: bool) -> None:
        done = meter.keys.verify("old-secret")
        assert done.valid or dead
        if not done:
            # The same owner goes on, even with something else; any other owner can have it, too.
            key = meter.keys.create("acme", sha256=SHA256, name="second", expires="1h")
            found = meter.keys.verify("old-secret")
            assert (found.valid, found.name, found.key_id) == (True, "second", key.id)
            assert meter.usage(key.subject)["credits"].limit == 10**9  # no limits of its own
        (only,) = meter.keys.list("acme")
        meter.keys.revoke(only.id)
        assert meter.keys.verify("old-secret").code == "NOT_FOUND"
        other = meter.keys.create("globex", sha256=SHA256)
        assert meter.keys.verify("old-secret").key_id == other.id
        assert meter.keys.list("acme") == []

    kills = every_step(
        stores,
        lambda meter: None,
        lambda meter, _: meter.keys.create("acme", sha256=SHA256, limits=OWN, name="first"),
        after,
    )
    assert kills >= 12


def test_rotate_is_killed(stores: Callable[[], Meter]) -> None:
    def before(meter: Meter) -> Any:
        return meter.keys.create("acme", limits=OWN)

    def after(meter: Meter, key: Any, dead: bool) -> None:
        assert meter.keys.verify(str(key.secret))  # whatever became of it, that is for an hour
        new = meter.keys.rotate(key.id)
        assert meter.keys.verify(str(new.secret))
        assert not meter.keys.verify(str(key.secret))
        assert len(meter.keys.list("acme")) == 1

    kills = every_step(
        stores, before, lambda meter, key: meter.keys.rotate(key.id, overlap="1h"), after
    )
    assert kills >= 6


def test_update_is_killed(stores: Callable[[], Meter]) -> None:
    changes = {"enabled": True, "name": "new", "limits": [Pool("credits", 5)], "meta": {"a": 1}}

    def before(meter: Meter) -> Any:
        key = meter.keys.create("acme", limits=OWN)
        meter.keys.update(key.id, enabled=False)
        return key

    def after(meter: Meter, key: Any, dead: bool) -> None:
        found = meter.keys.verify(str(key.secret), {"credits": 0})
        if found:  # never enabled without the limits that were to come with it
            assert found.credits == 5
        assert meter.keys.update(key.id, **changes).name == "new"
        found = meter.keys.verify(str(key.secret), {"credits": 0})
        assert (found.valid, found.credits, found.meta) == (True, 5, {"a": 1})

    kills = every_step(
        stores, before, lambda meter, key: meter.keys.update(key.id, **changes), after
    )
    assert kills >= 8


@pytest.mark.parametrize("verb", ["revoke", "forget the owner", "forget the key"])
def test_the_end_of_keys_is_killed(stores: Callable[[], Meter], server: Server, verb: str) -> None:
    def before(meter: Meter) -> Any:
        key = meter.keys.create("acme", limits=OWN, sha256=SHA256)
        assert meter.keys.verify("old-secret")
        return key

    def work(meter: Meter, key: Any) -> Any:
        if verb == "revoke":
            return meter.keys.revoke(key.id)
        return meter.forget("acme" if "owner" in verb else key.subject)

    def after(meter: Meter, key: Any, dead: bool) -> None:
        seen = meter.keys.verify("old-secret").code
        assert seen in ("VALID", "NOT_FOUND")  # and never one that lacks its limits
        if seen == "VALID":
            assert meter.usage(key.subject)["credits"].limit == 10**6
        work(meter, key)
        assert meter.keys.verify("old-secret").code == "NOT_FOUND"
        assert meter.keys.list("acme") == []
        meter.forget("acme")
        left = {name for name in snapshot(server, meter._keys.prefix) if b":{store}:" not in name}
        assert left == set()

    assert every_step(stores, before, work, after) >= 8


# Revoked while in use -----------------------------------------------------------------------------


@pytest.mark.parametrize("matrix_server", ["valkey-9.1", "redis-6.2"], indirect=True)
@pytest.mark.parametrize("end", ["revoke", "disable", "rotate"])
def test_once_it_has_ended_nobody_gets_in(
    matrix_server: Server, direct: Meter, prefix: str, end: str
) -> None:
    """Two processes, 32 threads: what began after the end was refused, and what was let in paid."""
    with Meter(matrix_server.url, prefix=prefix, timeout=60) as other:
        key = direct.keys.create("acme")
        secret, over = str(key.secret), threading.Event()
        warm, barrier = threading.Barrier(33), threading.Barrier(33)

        def verify(number: int) -> Counter[tuple[bool, str]]:
            meter = direct if number % 2 else other
            seen: Counter[tuple[bool, str]] = Counter()
            assert meter.keys.verify(secret)
            warm.wait()
            barrier.wait()
            late = 0
            while late < 5:
                after = over.is_set()
                seen[after, str(meter.keys.verify(secret).code)] += 1
                late += after
            return seen

        with ThreadPoolExecutor(32) as pool:
            running = [pool.submit(verify, number) for number in range(32)]
            warm.wait()
            barrier.wait()
            if end == "revoke":
                assert direct.keys.revoke(key.id)
            elif end == "disable":
                direct.keys.update(key.id, enabled=False)
            else:
                direct.keys.rotate(key.id)
            over.set()
            total: Counter[tuple[bool, str]] = sum((one.result() for one in running), Counter())
        said = "DISABLED" if end == "disable" else "NOT_FOUND"
        assert total[True, said] == 32 * 5
        assert set(total) <= {(True, said), (False, said), (False, "VALID")}
        assert used(direct) == 32 + total[False, "VALID"]


@pytest.mark.parametrize("matrix_server", ["valkey-9.1"], indirect=True)
def test_imports_race(matrix_server: Server, direct: Meter, prefix: str) -> None:
    """Of many owners that import the same secret, one has it, and nothing is left of the others."""
    with Meter(matrix_server.url, prefix=prefix, timeout=60) as other:
        barrier = threading.Barrier(16)

        def work(number: int) -> Any:
            barrier.wait()
            try:
                meter = direct if number % 2 else other
                return meter.keys.create(f"owner{number}", sha256=SHA256)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(16) as pool:
            done = list(pool.map(work, range(16)))
        won = [key for key in done if not isinstance(key, str)]
        assert len(won) == 1
        assert direct.keys.verify("old-secret").key_id == won[0].id
        keys = [key.id for n in range(16) for key in direct.keys.list(f"owner{n}")]
        assert keys == [won[0].id]
