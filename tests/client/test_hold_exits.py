"""How a `with` block leaves its hold: the rule, case by case, for both clients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from meterd import OpConflict, OutcomeUnknown, PolicyError, RateLimited
from tests.client.hold_tools import PLANS, AnyHold, known, reserve, used
from tests.client.meter_tools import Make, requests_of
from tests.support.proxy import FaultProxy


class Broken(Exception):
    pass


def fail(_: AnyHold) -> None:
    raise Broken


def spend_then(after: Callable[[AnyHold], None] | None) -> Callable[[AnyHold], None]:
    def body(hold: AnyHold) -> None:
        hold.spend("tokens", 3)
        hold.spend({"tokens": 4, "image": 1})
        if after is not None:
            after(hold)

    return body


def commit_then(after: Callable[[AnyHold], None] | None) -> Callable[[AnyHold], None]:
    def body(hold: AnyHold) -> None:
        hold.commit({"tokens": 6})
        if after is not None:
            after(hold)

    return body


def release_then(after: Callable[[AnyHold], None] | None) -> Callable[[AnyHold], None]:
    def body(hold: AnyHold) -> None:
        hold.release()
        if after is not None:
            after(hold)

    return body


def misuse(hold: AnyHold) -> None:
    hold.commit({"tokens": -1})


def misuse_quietly(hold: AnyHold) -> None:
    with pytest.raises(PolicyError):
        hold.commit({"tokens": 1.5})


# What happens inside a block that reserved 1 job and 50 tokens; the credits used afterwards, and
# what comes out of it.
CASES: dict[str, tuple[Callable[[AnyHold], None], int, type[Exception] | None]] = {
    "nothing": (lambda _: None, 50, None),
    "tally": (spend_then(None), 17, None),
    "exception": (fail, 0, Broken),
    "tally, exception": (spend_then(fail), 17, Broken),
    "commit": (commit_then(None), 6, None),
    "commit, exception": (commit_then(fail), 6, Broken),
    "commit, release": (commit_then(lambda hold: hold.release()), 6, OpConflict),
    "release": (release_then(None), 0, None),
    "release, exception": (release_then(fail), 0, Broken),
    "tally, release": (spend_then(release_then(None)), 0, None),
    "tally, commit": (spend_then(lambda hold: hold.commit() and None), 17, None),
    "tally of nothing": (lambda hold: hold.spend("tokens", 0), 0, None),
    "a wrong commit": (misuse, 50, PolicyError),  # stays held until its ttl
    "a wrong commit, caught": (misuse_quietly, 50, None),
}


@pytest.mark.parametrize("case", CASES)
def test_leaving(make: Make, case: str) -> None:
    body, credits, raised = CASES[case]
    meter = make(PLANS)
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 50})
    assert used(meter) == (1, 50)
    if raised is None:
        with hold as entered:
            body(entered)
    else:
        with pytest.raises(raised), hold as entered:
            body(entered)
    assert used(meter) == (int(case == "a wrong commit"), credits)


def test_entering_a_refused_hold_raises(make: Make) -> None:
    meter = make(PLANS)
    hold = reserve(meter, "acme", "jobs", 11)
    assert not hold
    assert repr(hold.raw).endswith("of 'acme', refused>")
    with pytest.raises(RateLimited) as caught, hold:
        raise Broken
    assert caught.value.decision is hold.decision
    for act in (hold.commit, lambda: hold.spend("jobs"), lambda: hold.renew(5)):
        with pytest.raises(RateLimited):
            act()
    hold.release()  # holds nothing
    assert used(meter) == (0, 0)


@pytest.mark.parametrize("tally", [False, True])
def test_an_error_while_leaving_hides_nothing(
    make: Make, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, tally: bool
) -> None:
    meter = make(PLANS, url=proxy.url, timeout=0.3)
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 9})

    def block() -> None:
        with hold:
            if tally:
                hold.spend("tokens", 3)
            proxy.partition(True)
            raise Broken

    with pytest.raises(Broken) as caught:
        block()
    (note,) = caught.value.__notes__
    way = "commit" if tally else "release"
    assert note.startswith(f"meterd: {way} of hold {hold.id!r} failed too: OutcomeUnknown: {way}: ")
    assert note.removeprefix("meterd: ") in caplog.text
    proxy.partition(False)
    assert used(make(PLANS)) == (1, 9)


def test_an_error_while_leaving_normally_is_raised(make: Make, proxy: FaultProxy) -> None:
    meter = make(PLANS, url=proxy.url, timeout=0.3)
    with pytest.raises(OutcomeUnknown) as caught, reserve(meter, "acme", "jobs") as hold:
        proxy.partition(True)
    assert caught.value.op == hold.id
    assert "again is safe" in str(caught.value)


@pytest.mark.parametrize("tally", [False, True])
def test_after_a_failed_commit_leaving_does_nothing(
    make: Make, proxy: FaultProxy, tally: bool
) -> None:
    meter = make(PLANS, url=proxy.url, timeout=0.3)
    seen = requests_of(meter)
    hold = reserve(meter, "acme", {"jobs": 1, "tokens": 9})

    def block() -> None:
        with hold:
            if tally:
                hold.spend("tokens", 2)
            proxy.partition(True)
            try:
                hold.commit({"tokens": 4})
            finally:
                proxy.partition(False)
                seen.clear()

    with pytest.raises(OutcomeUnknown):
        block()
    assert seen == []
    assert used(make(PLANS)) == (1, 9)
    # It can be said again: what was lost was the request.
    assert hold.commit({"tokens": 4})["credits"].used == 4


def test_a_hold_of_elsewhere_is_left_by_the_same_rule(make: Make) -> None:
    meter = make(PLANS)
    for tokens, body in ((3, "tally"), (9, "nothing"), (0, "exception")):
        hold_id = reserve(meter, "acme", {"jobs": 1, "tokens": 9}).id
        before = used(meter)[1] - 9
        with contextlib.suppress(Broken), known(meter, "acme", hold_id) as hold:
            if body == "tally":
                hold.spend("tokens", 3)
            elif body == "exception":
                raise Broken
        assert used(meter) == (0, before + tokens)
