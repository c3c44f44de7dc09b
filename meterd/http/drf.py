"""Django REST framework: a throttle, which knows who is authenticated.

    class Chat(APIView):
        throttle_classes = [throttle(meter, "messages", subject=lambda r: f"user:{r.user.pk}")]

It needs `meterd.http.django.MeterMiddleware`, as `require` does there. The permit is
`request.meterd`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from meterd.http.django import Denied, exchange_of
from meterd.http.require import (
    AnyMeter,
    GivenAmount,
    GivenCosts,
    GivenKey,
    GivenSubject,
    Permit,
    Requirement,
    Statuses,
)

__all__ = ["MeterThrottle", "Permit", "throttle"]


class MeterThrottle(BaseThrottle):  # type: ignore[misc]  # without annotations
    """What `throttle` makes; refusals become responses of meterd, not `Throttled`."""

    requirement: ClassVar[Requirement]

    def allow_request(self, request: Request, view: Any) -> bool:
        django_request = request._request
        exchange, seen = exchange_of(django_request, request)
        permit = exchange.admit(self.requirement, seen)
        django_request.meterd = permit
        if permit.refusal is not None:
            raise Denied(permit.refusal)
        return True


def throttle(
    meter: AnyMeter,
    costs: GivenCosts = None,
    amount: GivenAmount = 1,
    *,
    subject: GivenSubject = None,
    key: GivenKey = None,
    join: str | None = None,
    hold: bool = False,
    statuses: Statuses = None,
) -> type[MeterThrottle]:
    """A throttle class that charges `costs`, or with `hold=True` reserves them, before the view.

    Arguments as for `meterd.http.fastapi.require`; functions get the framework's `Request`. The
    meter has to be a `Meter`. For DEFAULT_THROTTLE_CLASSES, give the class a name in a module.
    """
    made = Requirement(
        meter, costs, amount, subject=subject, key=key, join=join, hold=hold, statuses=statuses
    )
    made.refuse_async("Django REST framework")
    return type("MeterThrottle", (MeterThrottle,), {"requirement": made})
