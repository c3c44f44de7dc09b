"""Everything the tests need to have servers; see `single` and `groups` for what each does."""

from tests.support.groups import SLOTS, Cluster, Sentinel
from tests.support.single import (
    BINARIES,
    DEFAULT,
    Server,
    available,
    binary,
    client_of,
    installed,
    start,
    wait_until,
)

__all__ = [
    "BINARIES",
    "DEFAULT",
    "SLOTS",
    "Cluster",
    "Sentinel",
    "Server",
    "available",
    "binary",
    "client_of",
    "installed",
    "start",
    "wait_until",
]
