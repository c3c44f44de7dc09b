"""What a process runs that is killed while it sells."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

from meterd import Meter
from tests.leases.lease_tools import PLANS

TTL = 1.5


def sell(url: str, prefix: str, pipe: Connection) -> None:
    """Sells when told to, as long as there is something; every sale is told before the next."""
    with Meter(url, plans=PLANS, prefix=prefix, timeout=20) as meter:
        lease = meter.lease("acme", "few", 48, ttl=TTL)
        while pipe.recv_bytes() and lease.consume():
            pipe.send_bytes(b"sold")
        time.sleep(60)
