"""Removes what a test stored."""

from __future__ import annotations


def remove_prefix(url: str, prefix: str) -> int:
    """Deletes every key of a prefix (SCAN and DEL). Returns how many there were."""
    from meterd.transport import Request, open_transport, pack

    transport = open_transport(url, timeout=5, max_connections=1)
    removed = 0
    try:
        for node in transport.nodes():
            cursor = 0
            while True:
                scan = Request(pack("SCAN", cursor, "MATCH", f"{prefix}:*", "COUNT", 500), None)
                reply = transport.send_to(node, scan, 5)
                for key in reply[1]:
                    removed += int(transport.send(Request(pack("DEL", key), key), 5))
                cursor = int(reply[0])
                if cursor == 0:
                    break
    finally:
        transport.close()
    return removed


__all__ = ["remove_prefix"]
