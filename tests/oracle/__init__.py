"""A pure-Python model of the engine: slow, exact and obvious. Property tests compare against it.

Nothing here imports engine code. Plans made of `meterd.policy` objects go in, plain dataclasses
with integer milliseconds come out.
"""

from tests.oracle.decide import ODecision
from tests.oracle.errors import (
    NoPlan,
    NotIncluded,
    OpConflict,
    OpNotFound,
    OracleError,
    PolicyError,
)
from tests.oracle.holding import OHold
from tests.oracle.limits import OLimit
from tests.oracle.model import Oracle, OUsage

__all__ = [
    "NoPlan",
    "NotIncluded",
    "ODecision",
    "OHold",
    "OLimit",
    "OUsage",
    "OpConflict",
    "OpNotFound",
    "Oracle",
    "OracleError",
    "PolicyError",
]
