"""One request and its response: what was permitted, told in the response, ended after it.

The rule by which holds end: a response that was sent completely, with a status below 400, commits
what was counted, else what was reserved. Any other way (an exception, a cancelled task, a client
that went away, an error status) commits what was counted, and releases the hold if that is nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from meterd.http.fields import Fields, Reading, ratelimit_fields
from meterd.http.problem import answer_by
from meterd.http.require import Permit, Requirement
from meterd.http.steps import Ask, Steps, run, run_async, run_through
from meterd.http.view import Network, RequestView, networks

_log = logging.getLogger("meterd")


class Config:
    """What an adapter was told: the older header fields as well, and whose word on addresses."""

    __slots__ = ("legacy", "trusted")

    def __init__(self, *, legacy: bool = False, trusted_proxies: Iterable[object] = ()) -> None:
        self.legacy = legacy
        self.trusted: tuple[Network, ...] = networks(trusted_proxies)


class Exchange:
    """The permits of one request, in order."""

    __slots__ = ("_permits", "config")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._permits: list[tuple[Requirement, Permit]] = []

    def admit(self, requirement: Requirement, view: RequestView) -> Permit:
        """Carries a requirement out, waiting here."""
        permit = run(requirement.admit(view))
        self._permits.append((requirement, permit))
        return permit

    async def admit_async(self, requirement: Requirement, view: RequestView) -> Permit:
        """The same in an event loop."""
        permit = await run_async(requirement.admit(view))
        self._permits.append((requirement, permit))
        return permit

    def fields(self) -> Fields:
        """The header fields that tell of every limit charged so far."""
        readings: list[Reading] = []
        for requirement, permit in self._permits:
            if permit.decision is not None:
                now_ms = requirement.now_ms()
                readings += [
                    Reading(state, requirement.windows(state), now_ms)
                    for state in permit.decision.limits
                ]
        return ratelimit_fields(readings, legacy=self.config.legacy)

    @property
    def holds(self) -> bool:
        """Whether something is held, and not ended yet."""
        return any(_open(permit) for _, permit in self._permits)

    @property
    def asynchronous(self) -> bool:
        """Whether ending what is held has to be awaited."""
        return any(one.asynchronous for one, permit in self._permits if _open(permit))

    def end(self, *, failed: bool) -> None:
        """Ends what is held, waiting here. May be repeated. Raises nothing of the meter's."""
        run(self._end(failed))

    async def end_async(self, *, failed: bool) -> None:
        """The same in an event loop, and although the task is cancelled."""
        if self.holds:
            await run_through(lambda: self._end(failed))

    def _end(self, failed: bool) -> Steps[None]:
        for requirement, permit in self._permits:
            hold: Any = permit.hold
            way = None if hold is None else hold._leaving(failed=failed)
            if way is None:
                continue
            try:
                yield Ask(hold.commit if way == "commit" else hold.release, _blocks(requirement))
            except Exception as error:  # noqa: BLE001  # the response is gone; nobody can be told
                _log.error(
                    "%s of hold %r of %r failed after the response: %s: %s; counted: %r",
                    way, hold.id, hold.subject, type(error).__name__, error, hold.spent,
                )  # fmt: skip


def failed(*, complete: bool, status: int) -> bool:
    """Whether a response counts as a failure, see above."""
    return not complete or status >= 400


def _open(permit: Permit) -> bool:
    hold: Any = permit.hold
    return hold is not None and hold._leaving(failed=False) is not None


def _blocks(requirement: Requirement) -> bool:
    return not requirement.asynchronous


__all__ = ["Config", "Exchange", "answer_by", "failed"]
