"""What a handler requires: who is charged, what, and what becomes of it. No framework, no I/O.

A `Requirement` is what somebody wrote beside a handler, checked once. `admit` is the flow that
carries it out for one request; what came of it is a `Permit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meterd.aio import AsyncMeter
from meterd.aiohold import AsyncHold
from meterd.client import Meter
from meterd.errors import OutcomeUnknown, PolicyError, Unavailable
from meterd.hold import Hold
from meterd.http.problem import Answer, answer_by, checked_statuses
from meterd.http.steps import Ask, Steps, Value
from meterd.http.view import RequestView, api_key, client_subject
from meterd.http.windows import Windows
from meterd.keys import Subject
from meterd.limiter import AsyncLimiter, Limiter
from meterd.result import Decision
from meterd.timespec import shown

AnyMeter = Meter | AsyncMeter | Limiter | AsyncLimiter
# A function of the request: gives the value or, in an event loop, something to await for it.
OfRequest = Callable[[Any], Any]
GivenCosts = str | Mapping[str, int] | OfRequest | None
GivenAmount = int | OfRequest
GivenSubject = str | tuple[str, ...] | OfRequest | None
GivenKey = str | bool | OfRequest | None
Statuses = Mapping[Any, int] | None


@dataclass(slots=True)
class Permit:
    """What came of a requirement. True if the request may go on.

    `decision`: None if nothing was charged. `verification`: of the API key, where one was required.
    `hold`: what was reserved, to be ended when the response has been sent. `refusal`: the response
    to send instead.
    """

    subject: Subject | None = None
    decision: Decision | None = None
    verification: Any = None
    hold: Hold | AsyncHold | None = None
    refusal: Answer | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return self.refusal is None

    def spend(self, costs: str | Mapping[str, int], amount: int = 1) -> None:
        """Adds to what this request used so far: `hold.spend`. No I/O."""
        if self.hold is None:
            raise PolicyError("spend: nothing is held for this request; say hold=True")
        self.hold.spend(costs, amount)


class Requirement:
    """What a handler requires, checked. `asynchronous`: its meter is awaited."""

    def __init__(
        self,
        meter: AnyMeter,
        costs: GivenCosts = None,
        amount: GivenAmount = 1,
        *,
        subject: GivenSubject = None,
        key: GivenKey = None,
        join: str | None = None,
        hold: bool = False,
        statuses: Statuses = None,
    ) -> None:
        if not isinstance(meter, AnyMeter):
            raise PolicyError(f"require: {shown(meter)} is no Meter, AsyncMeter or limiter")
        self.limiter = isinstance(meter, Limiter | AsyncLimiter)
        if self.limiter and not (costs is None and key is None and join is None and not hold):
            raise PolicyError("require: a limiter takes amount, subject and statuses only")
        if not self.limiter and costs is None and (key is None or hold):
            raise PolicyError("require: costs say what is charged; without, give key=")
        if key is not None and (subject is not None or join is not None):
            raise PolicyError("require: the key says who is charged; give key= or subject=, join=")
        if key is not None and not (key is True or callable(key) or (key and type(key) is str)):
            raise PolicyError(
                f"require: key={shown(key)}; allowed: True, the name of a header, or a function"
            )
        if not isinstance(hold, bool):
            raise PolicyError(f"require: hold={shown(hold)}; allowed: True or False")
        self.meter: Any = meter
        self.costs = costs
        self.amount = amount
        self.subject = subject
        self.key = key
        self.join = join
        self.hold = hold
        self.statuses = checked_statuses(statuses)
        self.asynchronous = isinstance(meter, AsyncMeter | AsyncLimiter)
        if isinstance(meter, Limiter | AsyncLimiter):
            operations = meter._calls._operations
            self.windows = Windows(operations.store, meter._calls._plan)
        else:
            operations = meter._operations
            self.windows = Windows(operations.store)
        self._clock = operations.clock

    def refuse_async(self, where: str) -> None:
        """For adapters that cannot await; raises `PolicyError` if that would be needed."""
        if self.asynchronous:
            raise PolicyError(f"require: {where} cannot await; give it a Meter, not an AsyncMeter")

    def now_ms(self) -> int:
        """The test clock's instant, else this machine's."""
        return time.time_ns() // 1_000_000 if self._clock is None else self._clock()

    def admit(self, view: RequestView) -> Steps[Permit]:
        """Charges or reserves; a refusal is in the permit. Raises what is the application's fault.

        Where the server cannot be asked, or its answer was lost, the request is refused as well.
        """
        try:
            if self.key is not None:
                return (yield from self._by_key(self.key, view))
            return (yield from self._by_subject(view))
        except (Unavailable, OutcomeUnknown) as error:
            return Permit(refusal=answer_by(error, self.statuses))

    def _by_subject(self, view: RequestView) -> Steps[Permit]:
        costs = yield from _value("costs", self.costs, view)
        if costs is None and not self.limiter:
            return Permit()
        amount = yield from _value("amount", self.amount, view)
        subject = yield from _value("subject", self.subject, view)
        if subject is None:
            subject = client_subject(view.client)
        if self.hold:
            return (yield from self._reserve(Permit(subject), costs, amount))
        if self.limiter:
            decision = yield self._ask(lambda: self.meter.consume(subject, amount))
        else:
            decision = yield self._ask(
                lambda: self.meter.consume(subject, costs, amount, join=self.join)
            )
        return self._decided(Permit(subject), decision)

    def _by_key(self, key: Any, view: RequestView) -> Steps[Permit]:
        if key is True:
            secret = api_key(view.header)
        elif isinstance(key, str):
            secret = (view.header(key) or "").strip()
        else:
            secret = yield from _value("key", key, view)
        if not isinstance(secret, str) or not secret:
            return self._refused(Permit(), "NO_KEY")
        costs = yield from _value("costs", self.costs, view)
        amount = yield from _value("amount", self.amount, view)
        keys = self.meter.keys
        if self.hold and costs is not None:
            verification = yield self._ask(lambda: keys.verify(secret, auto=False))
        else:
            verification = yield self._ask(lambda: keys.verify(secret, costs, amount))
        permit = Permit(verification.subject, verification.decision, verification)
        if not verification.valid:
            decision = verification.decision
            code = str(verification.code)
            refusing = decision is not None and not decision and str(decision.code) == code
            return self._refused(permit, decision if refusing else code)
        if self.hold and costs is not None:
            return (yield from self._reserve(permit, costs, amount))
        return permit

    def _reserve(self, permit: Permit, costs: Any, amount: int) -> Steps[Permit]:
        permit.hold = yield self._ask(
            lambda: self.meter.reserve(
                permit.subject, costs, amount, join=self.join, keepalive=True
            ),
            undo=lambda hold: hold.release(),
        )
        assert permit.hold is not None
        return self._decided(permit, permit.hold.decision)

    def _ask(self, call: Callable[[], Any], undo: Callable[[Any], Any] | None = None) -> Ask:
        return Ask(call, not self.asynchronous, undo)

    def _decided(self, permit: Permit, decision: Decision) -> Permit:
        permit.decision = decision
        return permit if decision else self._refused(permit, decision)

    def _refused(self, permit: Permit, outcome: Decision | str) -> Permit:
        permit.refusal = answer_by(outcome, self.statuses)
        return permit


def _value(what: str, given: Any, view: RequestView) -> Steps[Any]:
    """What was given, or what the function that was given makes of the request."""
    if not callable(given):
        return given
    return (yield Value(given(view.given), what))
