"""Stripe billing meter events (v1), through the official `stripe` package.

What Stripe promises and asks for, and what follows from it:

- It knows an identifier again for 24 hours, and refuses it with status 400 then: that means
  "delivered". Entries of which an attempt may have arrived longer ago are not sent by themselves.
- A timestamp lies in the last 35 days and at most 5 minutes ahead. Ours lies in the entry's period
  and not after now by the store's clock. Where Stripe refuses it, its clock is read off the answer
  (`Date`) and the next one goes by that; only Stripe decides what is too old.
- One call at a time for each customer and meter: that is what a lane is here.
- Values are whole numbers. Negative ones are taken; should they be refused, the entry is kept as
  dead with Stripe's words.
- Its idempotency layer would repeat a stored 500 for a day, so every attempt has a key of its own
  (the package makes one); the identifier alone says that two attempts are the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Mapping
from typing import Any

from meterd.errors import PolicyError
from meterd.export.entry import Entry
from meterd.export.sink import DELIVERED, Outcome, Sink, SinkError, date_of, retry_after
from meterd.timespec import DAY_MS, refuse

_DUPLICATE_CODES = {"resource_already_exists", "duplicate_meter_event"}
_KNOWN = r"(already (exists|used|been used)|duplicate)"
_DUPLICATE = re.compile(rf"{_KNOWN}.*identifier|identifier.*{_KNOWN}", re.IGNORECASE | re.DOTALL)
_EVENT = "billing.meter_event"  # what Stripe calls it
_OLDEST_S = 35 * 86400 - 300
_AHEAD_S = 240  # Stripe allows 300
_SHOWN = 500


class StripeMeter(Sink):
    """Sends use as meter events for the customer in the root's `meta["stripe_customer"]`.

    `event_names`: a meter's event name by pool (default: the pool's name). `customer_key`,
    `value_key`: the payload keys, if the meter has others than the default. `api_base`: another
    server than Stripe's. `account`: a connected account. `timeout`: seconds. `workers`: calls at
    once, each for another customer and meter (Stripe allows 1,000 calls a second).
    """

    window_ms = DAY_MS
    needs_meta = True

    def __init__(
        self,
        api_key: str,
        *,
        event_names: Mapping[str, str] | None = None,
        customer_key: str = "stripe_customer_id",
        value_key: str = "value",
        api_base: str | None = None,
        account: str | None = None,
        name: str = "stripe",
        timeout: float = 20.0,
        workers: int = 16,
    ) -> None:
        try:
            import requests
            import stripe
        except ImportError as error:
            raise PolicyError('this needs a package: pip install "meterd[stripe]"') from error
        if not isinstance(api_key, str) or not api_key.strip():
            raise PolicyError("stripe api_key: is empty")
        self.name = name
        self.workers = workers
        self.patience = 2 * timeout
        self._names = dict(event_names or {})
        for pool, event_name in self._names.items():
            if not isinstance(event_name, str) or not 1 <= len(event_name) <= 100:
                raise refuse(f"event name of {pool!r}", event_name, "1 to 100 characters")
        self._customer_key, self._value_key = customer_key, value_key
        self._key = api_key.strip()
        self._account = account
        self._stripe = stripe
        self._session = requests.Session()  # one for all threads, so that it can be closed
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=workers))
        self._client = stripe.StripeClient(
            self._key,
            base_addresses={"api": api_base} if api_base else None,
            http_client=stripe.RequestsClient(timeout=timeout, session=self._session),
            max_network_retries=0,
        )
        self._skew_s = 0.0  # how far Stripe's clock is ahead of the store's
        self._sleep = time.sleep

    def lane(self, entry: Entry, meta: Mapping[str, Any], now_ms: int) -> Hashable | Outcome:
        customer = meta.get("stripe_customer")
        if not isinstance(customer, str) or not customer:
            return Outcome("waiting", f"customer {entry.root!r} has no meta stripe_customer")
        if entry.delta == 0:
            return DELIVERED
        when = self._timestamp(entry, now_ms)
        return when if isinstance(when, Outcome) else (customer, self._event_name(entry))

    def send(self, entry: Entry, meta: Mapping[str, Any], now_ms: int) -> Outcome:
        when = self._timestamp(entry, now_ms)
        if isinstance(when, Outcome):
            return when
        outcome, learned = self._attempt(entry, meta, now_ms, when)
        if learned:
            better = self._timestamp(entry, now_ms)
            if isinstance(better, Outcome):
                return better
            if better != when:
                return Outcome("retry", outcome.reason, 0.0, True)  # refused: it has not arrived
        return outcome

    def _attempt(
        self, entry: Entry, meta: Mapping[str, Any], now_ms: int, when: int
    ) -> tuple[Outcome, bool]:
        """How it ended, and whether Stripe refused the timestamp by a clock that was not known."""
        errors = self._stripe
        early = when - self._now(now_ms)
        if 0 < early < 1:  # the first whole second of a period that has only just begun
            self._sleep(early)
        asked = time.monotonic()
        try:
            made = self._client.v1.billing.meter_events.create(
                {
                    "event_name": self._event_name(entry),
                    "identifier": entry.id,
                    "timestamp": when,
                    "payload": {
                        self._customer_key: meta["stripe_customer"],
                        self._value_key: str(entry.delta),
                    },
                },
                {"stripe_account": self._account} if self._account else None,
            )
        except errors.APIConnectionError as error:
            return Outcome("retry", self._said(error)), False
        except errors.StripeError as error:
            headers = _headers(error)
            outcome = self._meaning(error, headers)
            refused = outcome.kind == "dead" and _is_about_time(error)
            return outcome, refused and self._learn(headers, now_ms, asked)
        if not self._is_event(made):
            return Outcome("retry", "the answer has status 200, but is no meter event"), False
        if self._skew_s:  # clocks are set right, too
            last = getattr(made, "last_response", None)
            self._learn(getattr(last, "headers", None) or {}, now_ms, asked)
        return DELIVERED, False

    def _is_event(self, made: Any) -> bool:
        """Whether that is Stripe's answer, and not somebody's in between."""
        if not isinstance(made, self._stripe.StripeObject) or "error" in made:
            return False
        return getattr(made, "object", _EVENT) == _EVENT

    def _event_name(self, entry: Entry) -> str:
        return self._names.get(entry.pool, entry.pool)

    def _now(self, now_ms: int) -> float:
        """Stripe's clock."""
        return now_ms / 1000 + self._skew_s

    def _timestamp(self, entry: Entry, now_ms: int) -> int | Outcome:
        """A second of the period that Stripe takes: that of the entry, or the nearest there is."""
        now = self._now(now_ms)
        first = -(-entry.period_start_ms // 1000)
        last = int(now)
        if entry.period_end_ms is not None:
            last = min(last, -(-entry.period_end_ms // 1000) - 1)
        oldest = int(now) - _OLDEST_S
        if first > last and first > now:  # by Stripe's clock the period has not begun
            if first - now <= _AHEAD_S:
                return first
            reason = f"the period begins {first - now:.0f} s from now by Stripe's clock"
            return Outcome("retry", reason, first - now, True)
        return min(max(entry.at_ms // 1000, min(first, last), oldest), last)

    def _meaning(self, error: Any, headers: Mapping[str, str]) -> Outcome:
        """What an error answer means for the entry."""
        status = error.http_status
        if status in (400, 409) and (
            error.code in _DUPLICATE_CODES or _DUPLICATE.search(error.user_message or "")
        ):
            return DELIVERED
        after = retry_after(headers.get("Retry-After"), time.time())
        if status in (409, 429) or error.code == "rate_limit":
            return Outcome("retry", self._said(error), after, True)
        if status is None or status < 400 or status >= 500:
            return Outcome("retry", self._said(error), after)
        if not (isinstance(error.json_body, dict) and "error" in error.json_body):
            # A proxy's page, perhaps; not Stripe's word on this entry.
            return Outcome("retry", f"status {status}: {self._said(error)}", after)
        if status in (401, 403):
            raise SinkError(f"Stripe: {self._said(error)}")
        return Outcome("dead", self._said(error))

    def _learn(self, headers: Mapping[str, str], now_ms: int, asked: float) -> bool:
        """How Stripe's clock stands; True if that is news."""
        there = date_of(headers.get("Date"))
        if there is None:
            return False
        # Its date is in whole seconds, and the answer took a while.
        off = there - (now_ms / 1000 + time.monotonic() - asked)
        known, self._skew_s = self._skew_s, off if abs(off) > 2 else 0.0
        return abs(known - self._skew_s) > 2

    def _said(self, error: Exception) -> str:
        text = " ".join((str(error) or type(error).__name__).split())
        return text.replace(self._key, "***")[:_SHOWN]

    def close(self) -> None:
        self._session.close()

    def __repr__(self) -> str:
        return "<StripeMeter>"


def _is_about_time(error: Any) -> bool:
    said = (getattr(error, "param", None), error.code, error.user_message)
    return any("timestamp" in part.lower() for part in said if isinstance(part, str))


def _headers(error: Any) -> Mapping[str, str]:
    """Where the body was unreadable, the package passes the headers in the body's place."""
    if error.headers:
        found: Mapping[str, str] = error.headers
        return found
    body = error.json_body
    return body if isinstance(body, Mapping) and not isinstance(body, dict) else {}
