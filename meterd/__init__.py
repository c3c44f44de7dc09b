"""meterd: credits and rate limits in one atomic call, on Redis or Valkey."""

from typing import TYPE_CHECKING, Any

from meterd.catalog import Diff, load_plans, load_toml
from meterd.client import Meter
from meterd.errors import (
    CatalogMismatch,
    MeterdError,
    NoPlan,
    NotIncluded,
    OpConflict,
    OpNotFound,
    OutcomeUnknown,
    PolicyError,
    RateLimited,
    Refused,
    ScriptError,
    Unavailable,
    UnsafeServer,
    UsageExceeded,
)
from meterd.policy import Bucket, Flag, Plan, Pool, Price
from meterd.result import Code, Decision, LimitState, Usage

if TYPE_CHECKING:
    from meterd.aio import AsyncMeter

__version__ = "0.1.0"

__all__ = [
    "AsyncMeter",
    "Bucket",
    "CatalogMismatch",
    "Code",
    "Decision",
    "Diff",
    "Flag",
    "LimitState",
    "Meter",
    "MeterdError",
    "NoPlan",
    "NotIncluded",
    "OpConflict",
    "OpNotFound",
    "OutcomeUnknown",
    "Plan",
    "PolicyError",
    "Pool",
    "Price",
    "RateLimited",
    "Refused",
    "ScriptError",
    "Unavailable",
    "UnsafeServer",
    "Usage",
    "UsageExceeded",
    "load_plans",
    "load_toml",
]


def __getattr__(name: str) -> Any:
    # asyncio is not imported by programs that never use it.
    if name == "AsyncMeter":
        from meterd.aio import AsyncMeter

        return AsyncMeter
    raise AttributeError(f"module 'meterd' has no attribute {name!r}")
