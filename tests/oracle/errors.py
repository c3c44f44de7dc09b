"""What the model raises. Named like the errors of `meterd.errors`, but independent of them."""

from __future__ import annotations


class OracleError(Exception):
    """Base of everything the model raises. Nothing was applied."""


class PolicyError(OracleError):
    """The caller's mistake."""


class OpConflict(OracleError):
    """The operation id was already used for a different request."""


class OpNotFound(OracleError):
    """No such hold is open."""


class NotIncluded(OracleError):
    """A report none of whose cost names reaches anything."""


class NoPlan(OracleError):
    """A report for a subject that has no plan at any level."""
