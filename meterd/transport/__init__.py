"""Transports carry packed commands to Redis or Valkey, and say what became of them."""

from meterd.transport.aio import open_async_transport
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
