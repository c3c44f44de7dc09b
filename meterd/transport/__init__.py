"""Transports carry packed commands to Redis or Valkey, and say what became of them."""

from typing import Any

from meterd.transport.base import (
    AsyncTransport,
    MaybeSent,
    Node,
    NotSent,
    Rejected,
    Request,
    SyncTransport,
    pack,
)
from meterd.transport.sync import open_transport
from meterd.transport.url import Endpoint, parse_url, redact


def open_async_transport(
    url: str | None, *, timeout: float, max_connections: int, client: Any = None
) -> AsyncTransport:
    """See `meterd.transport.aio`, which is loaded when it is first needed."""
    from meterd.transport import aio

    return aio.open_async_transport(
        url, timeout=timeout, max_connections=max_connections, client=client
    )


__all__ = [
    "AsyncTransport",
    "Endpoint",
    "MaybeSent",
    "Node",
    "NotSent",
    "Rejected",
    "Request",
    "SyncTransport",
    "open_async_transport",
    "open_transport",
    "pack",
    "parse_url",
    "redact",
]
