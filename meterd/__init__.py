"""meterd: credits and rate limits in one atomic call, on Redis or Valkey.

Names are imported when they are first used: the pytest plugin, which every test run loads, and the
command line's help need next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterd.aio import AsyncMeter
    from meterd.aiohold import AsyncHold
    from meterd.aiolease import AsyncLease
    from meterd.catalog import Diff
    from meterd.catalog_toml import load_plans, load_toml
    from meterd.client import Meter
    from meterd.errors import (
        BatchError,
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
    from meterd.event import Event
    from meterd.grant import Grant
    from meterd.hold import Hold
    from meterd.keyverbs import AsyncKeys, Keys
    from meterd.lease import Lease
    from meterd.past import Operation
    from meterd.policy import Bucket, Flag, Plan, Pool, Price, Slots
    from meterd.result import Code, Decision, HoldState, LimitState, PlanChange, Usage
    from meterd.topup import AsyncAutoTopUp, AutoTopUp, TopUp
    from meterd.verification import ApiKey, KeyCode, Verification

__version__ = "0.1.0"

__all__ = [
    "ApiKey",
    "AsyncAutoTopUp",
    "AsyncHold",
    "AsyncKeys",
    "AsyncLease",
    "AsyncMeter",
    "AutoTopUp",
    "BatchError",
    "Bucket",
    "CatalogMismatch",
    "Code",
    "Decision",
    "Diff",
    "Event",
    "Flag",
    "Grant",
    "Hold",
    "HoldState",
    "KeyCode",
    "Keys",
    "Lease",
    "LimitState",
    "Meter",
    "MeterdError",
    "NoPlan",
    "NotIncluded",
    "OpConflict",
    "OpNotFound",
    "Operation",
    "OutcomeUnknown",
    "Plan",
    "PlanChange",
    "PolicyError",
    "Pool",
    "Price",
    "RateLimited",
    "Refused",
    "ScriptError",
    "Slots",
    "TopUp",
    "Unavailable",
    "UnsafeServer",
    "Usage",
    "UsageExceeded",
    "Verification",
    "load_plans",
    "load_toml",
]

_HOMES = {
    "aio": ("AsyncMeter",),
    "aiohold": ("AsyncHold",),
    "aiolease": ("AsyncLease",),
    "catalog": ("Diff",),
    "catalog_toml": ("load_plans", "load_toml"),
    "client": ("Meter",),
    "event": ("Event",),
    "grant": ("Grant",),
    "hold": ("Hold",),
    "keyverbs": ("AsyncKeys", "Keys"),
    "lease": ("Lease",),
    "past": ("Operation",),
    "policy": ("Bucket", "Flag", "Plan", "Pool", "Price", "Slots"),
    "result": ("Code", "Decision", "HoldState", "LimitState", "PlanChange", "Usage"),
    "topup": ("AsyncAutoTopUp", "AutoTopUp", "TopUp"),
    "verification": ("ApiKey", "KeyCode", "Verification"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker is to see what is not there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'meterd' has no attribute {name!r}")
        home = import_module(f"meterd.{_HOME_OF.get(name, 'errors')}")
        found = globals()[name] = getattr(home, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
