"""Webhooks, signed as Standard Webhooks says: one POST for each entry, or for each event.

A message keeps its `webhook-id` at every attempt; the receiver knows it again by that. Any 2xx
means that it was taken, whatever the body says. 408, 425, 429 and 5xx, a redirect (never followed:
it would carry a signed message elsewhere), no answer and no HTTP at all mean: again, later. Any
other answer is final.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import meterd
from meterd.errors import PolicyError
from meterd.event import Event
from meterd.export.entry import Entry
from meterd.export.sink import DELIVERED, Outcome, Sink, retry_after
from meterd.timespec import refuse
from meterd.transport.url import redact

_AGAIN = {408, 425, 429}
_CERTAIN = {425, 429}  # refused before anything was done
_SHOWN = 300  # characters of an answer that are kept
_READ = 65536


class Webhook(Sink):
    """Posts `{"type": "usage.recorded", "timestamp": ..., "data": Entry.as_dict()}` to a URL.

    `secret`: "whsec_" and base64. `timeout`: seconds for each step of a request. Use of one
    customer goes in order, that of `workers` customers side by side.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        name: str = "webhook",
        timeout: float = 15.0,
        workers: int = 8,
    ) -> None:
        try:
            from standardwebhooks import Webhook as Signer
        except ImportError as error:
            raise PolicyError('webhooks need a package: pip install "meterd[webhooks]"') from error
        if not isinstance(url, str):
            raise refuse("webhook url", url, "https://host/path")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise PolicyError(f"webhook url: {redact(url)} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PolicyError(f"webhook url: got {redact(url)!r}; allowed: https://host/path")
        self._signer = Signer(_key_of(secret))
        self.name = name
        self.workers = workers
        self.patience = 2 * timeout
        self._timeout = timeout
        self._host, self._port, self._secure = parts.hostname, port, parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._shown = redact(url)
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()

    def send(self, entry: Entry, meta: Mapping[str, Any], now_ms: int) -> Outcome:
        data = entry.as_dict()
        return self.post(entry.id, "usage.recorded", data["at"], data)

    def send_event(self, event: Event) -> Outcome:
        """Posts an event: `{"type": "limit.exhausted", ...}`, and so on."""
        data = event.as_dict()
        return self.post(event.id, f"limit.{event.type}", data["at"], data)

    def post(self, message_id: str, kind: str, timestamp: str, data: Mapping[str, Any]) -> Outcome:
        """Posts one message."""
        body = json.dumps(
            {"type": kind, "timestamp": timestamp, "data": data},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        now = datetime.now(UTC)
        headers = {
            "content-type": "application/json; charset=utf-8",
            "user-agent": f"meterd/{meterd.__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(message_id, now, body),
        }
        try:
            status, answered, text = self._exchange(body.encode(), headers)
        except (OSError, http.client.HTTPException) as error:
            return Outcome("retry", f"{self._shown}: {_said(error)}")
        if 200 <= status < 300:
            return DELIVERED
        reason = f"{self._shown} answered {status}: {text}".rstrip(": ")
        if status in _AGAIN or status >= 500 or 300 <= status < 400:
            after = retry_after(answered.get("Retry-After"), time.time())
            return Outcome("retry", reason, after, status in _CERTAIN)
        return Outcome("dead", reason)

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, Any, str]:
        kept = getattr(self._local, "connection", None)
        if kept is not None:
            try:
                return self._on(kept, body, headers)
            except (ConnectionError, http.client.BadStatusLine):
                self._drop()  # it was closed while it was idle: once more, on a new one
            except BaseException:
                self._drop()
                raise
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        made = self._local.connection = kind(self._host, self._port, timeout=self._timeout)
        self._open.add(made)
        try:
            return self._on(made, body, headers)
        except BaseException:
            self._drop()
            raise

    def _on(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> tuple[int, Any, str]:
        connection.request("POST", self._target, body, headers)
        answer = connection.getresponse()
        text = answer.read(_READ)
        if answer.read(1) or answer.will_close:
            self._drop()
        return answer.status, answer.headers, text[:_SHOWN].decode(errors="replace")

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            self._open.discard(connection)
            connection.close()

    def close(self) -> None:
        self._local = threading.local()
        while self._open:
            self._open.pop().close()

    def __repr__(self) -> str:
        return f"<Webhook {self._shown}>"


def _key_of(secret: object) -> bytes:
    """The bytes of a secret; an error that does not quote it."""
    key = b""
    if isinstance(secret, str):
        text = secret.strip().removeprefix("whsec_")
        with contextlib.suppress(ValueError):
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if not key:
        raise PolicyError('webhook secret: allowed: "whsec_" and base64 text')
    return key


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
