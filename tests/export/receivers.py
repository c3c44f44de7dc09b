"""Receivers of what is exported: servers that answer as scripted, one that speaks Stripe's API."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

from tests.export.export_tools import AT

KEY = "sk_test_canary_51Hq8f"
DAY_S = 86400


class Got(NamedTuple):
    path: str
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Answer(NamedTuple):
    status: int = 200
    body: str = "{}"
    headers: dict[str, str] = {}  # noqa: RUF012  # never written to


# Not an answer, but what happens instead of one.
SILENCE, HANG_UP, GARBAGE = "silence", "hang up", "garbage"
Scripted = Answer | str


class Receiver:
    """A server in threads. `answer(got)` says what it answers; `plan` comes first, one by one."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.plan: list[Scripted] = []
        self.lock = threading.Lock()
        self.release = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 65536

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self._say(receiver.take(Got(self.path, self.headers, body)))

            def _say(self, answer: Scripted) -> None:
                if answer == SILENCE:
                    receiver.release.wait(10)
                    self.close_connection = True
                elif answer == HANG_UP:
                    self.close_connection = True
                elif answer == GARBAGE:
                    self.wfile.write(b"\x00\x01 what is this\r\n\r\n")
                    self.close_connection = True
                else:
                    assert isinstance(answer, Answer)
                    data = answer.body.encode()
                    self.send_response_only(answer.status)
                    self.send_header("content-length", str(len(data)))
                    for name, value in {**receiver.headers(), **answer.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, got: Got) -> Scripted:
        with self.lock:
            self.got.append(got)
            scripted = self.plan.pop(0) if self.plan else None
        return scripted if scripted is not None else self.answer(got)

    def answer(self, got: Got) -> Scripted:
        return Answer()

    def headers(self) -> dict[str, str]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Stripe(Receiver):
    """Billing meter events as documented: `billed` is what the customers would be charged for.

    `now_s`: its clock. `after`: scripted like `plan`, but once the request has been carried out: an
    answer that is lost. `overlaps`: calls for a customer and meter while another one was under way.
    """

    def __init__(self) -> None:
        self.now_s = AT / 1000 + 60
        self.after: list[Scripted] = []
        self.seen: dict[str, float] = {}
        self.billed: Counter[tuple[str, str]] = Counter()
        self.events: list[dict[str, Any]] = []
        self.overlaps = 0
        self.slow_s = 0.0
        self.tolerant = False  # takes any timestamp
        self._running: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.check: Callable[[dict[str, Any]], Answer | None] = lambda event: None
        super().__init__()

    def headers(self) -> dict[str, str]:
        return {"Date": formatdate(self.now_s, usegmt=True), "request-id": "req_1"}

    def answer(self, got: Got) -> Scripted:
        if got.path != "/v1/billing/meter_events":
            return _error(404, f"Unrecognized request URL ({got.path})")
        if got.headers["authorization"] != f"Bearer {KEY}":
            return _error(401, f"Invalid API Key provided: {got.headers['authorization'][7:]}")
        form = {name: values[0] for name, values in parse_qs(got.body.decode()).items()}
        event = {
            "event_name": form["event_name"],
            "identifier": form["identifier"],
            "timestamp": int(form["timestamp"]),
            "customer": form["payload[stripe_customer_id]"],
            "value": form["payload[value]"],
        }
        meter = event["customer"], event["event_name"]
        with self.lock:
            self._running[meter] += 1
            self.overlaps += self._running[meter] > 1
        try:
            time.sleep(self.slow_s)
            with self.lock:
                answer = self._carry_out(event, meter)
                if self.after and answer.status == 200:
                    return self.after.pop(0)
                return answer
        finally:
            with self.lock:
                self._running[meter] -= 1

    def _carry_out(self, event: dict[str, Any], meter: tuple[str, str]) -> Answer:
        refused = self.check(event)
        if refused is not None:
            return refused
        if (
            not self.tolerant
            and not self.now_s - 35 * DAY_S <= event["timestamp"] <= self.now_s + 300
        ):
            return _error(400, "The timestamp must be within the past 35 calendar days or up to 5 "
                               "minutes in the future.", param="timestamp")  # fmt: skip
        known = self.seen.get(event["identifier"])
        if known is not None and self.now_s - known < DAY_S:
            return _error(400, f"An event already exists with identifier {event['identifier']}.")
        if not event["value"].lstrip("-").isdigit():
            return _error(400, "Invalid integer", param="payload[value]")
        self.seen[event["identifier"]] = self.now_s
        self.billed[meter] += int(event["value"])
        self.events.append(event)
        return Answer(200, json.dumps({"object": "billing.meter_event", **event}))


def _error(status: int, message: str, **more: Any) -> Answer:
    error = {"type": "invalid_request_error", "message": message, **more}
    return Answer(status, json.dumps({"error": error}))


def refusal(status: int, message: str, **headers: str) -> Answer:
    """An error as Stripe words it."""
    answer = _error(status, message)
    return answer._replace(headers={k.replace("_", "-"): v for k, v in headers.items()})
