"""Every error that meterd raises, split by whose fault it is.

`PolicyError` is the caller's, `Refused` is an answer somebody asked to have raised, `Unavailable`
and `OutcomeUnknown` are the network's or the server's, `ScriptError` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterd.result import Decision


class MeterdError(Exception):
    """Base of everything raised by meterd."""


class PolicyError(MeterdError, ValueError):
    """The caller's mistake: says what was given, what is allowed and what to do."""


class Refused(MeterdError):
    """A refusal, raised by `Decision.raise_if_refused()`; carries the decision."""

    def __init__(self, message: str, decision: Decision) -> None:
        super().__init__(message)
        self.decision = decision

    def __reduce__(self) -> tuple[type[Refused], tuple[str, Decision]]:
        return type(self), (str(self), self.decision)


class UsageExceeded(Refused):
    """A credit pool has not enough left."""


class RateLimited(Refused):
    """A rate-limit bucket refused; `decision.retry_after` says when to come back."""


class NotIncluded(Refused):
    """A cost name reaches no limit of the subject's plans."""


class NoPlan(Refused):
    """No level of the path has a plan."""


class OpConflict(MeterdError):
    """The operation id was already used for a different request; nothing was applied."""


class OpNotFound(MeterdError):
    """No operation is stored under that id, or no hold is open under it (any more)."""


class CatalogMismatch(MeterdError):
    """The plans given to `Meter` are neither the stored catalog nor an earlier revision of it.

    `diff` says how they differ.
    """

    def __init__(self, message: str, diff: object = None) -> None:
        super().__init__(message)
        self.diff = diff


class Unavailable(MeterdError):
    """The server could not be asked in time. Nothing was applied."""


class OutcomeUnknown(MeterdError):
    """The request was sent and its answer was lost: it was applied once or not at all.

    `op` is the operation id of the call, or None. Calls that carry an `op` can simply be repeated,
    or looked up: `Meter.operation`.
    """

    def __init__(self, message: str, op: str | None = None) -> None:
        super().__init__(message)
        self.op = op

    def __reduce__(self) -> tuple[type[OutcomeUnknown], tuple[str, str | None]]:
        return type(self), (str(self), self.op)


class BatchError(MeterdError):
    """Some calls of a batch failed; the others did not.

    `results` has what became of each, in order: a `Decision`, or the error that it would have
    raised by itself. `errors` are the latter, by their place.
    """

    def __init__(self, message: str, results: Sequence[Decision | MeterdError] = ()) -> None:
        super().__init__(message)
        self.results = list(results)

    @property
    def errors(self) -> dict[int, MeterdError]:
        return {at: one for at, one in enumerate(self.results) if isinstance(one, MeterdError)}

    def __reduce__(self) -> tuple[type[BatchError], tuple[str, list[Decision | MeterdError]]]:
        return type(self), (str(self), self.results)


class UnsafeServer(MeterdError):
    """The server may evict keys, so credits could be lost."""


class ScriptError(MeterdError):
    """Ours: a script failed or answered something unexpected; names the Lua file and line."""
