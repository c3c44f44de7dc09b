"""Tells customers that something is used up: events to webhooks.

    METERD_URL=redis://... python -m examples.api_keys.notify https://example.com/hooks

Run as many as you like: of a group, one gets each event. One that was not delivered is told again
to whoever runs next, under the same id, by which the receiver knows it.
"""

import json
import sys
import urllib.request
from collections.abc import Callable

from meterd import Meter

GROUP = "customer-webhooks"
TYPES = ("warn", "exhausted")

Post = Callable[[str, dict[str, str], bytes], None]


def post(url: str, headers: dict[str, str], body: bytes) -> None:
    """Raises unless the receiver answers 2xx."""
    sent = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(sent, timeout=10):
        pass


def notify(meter: Meter, url: str, *, send: Post = post, follow: bool = True) -> None:
    """Sends every event; one counts as told when the next is asked for."""
    for event in meter.events(GROUP, types=TYPES, follow=follow):
        body = json.dumps(event.as_dict()).encode()
        send(url, {"Content-Type": "application/json", "Webhook-Id": event.id}, body)


if __name__ == "__main__":
    with Meter() as meter:
        notify(meter, sys.argv[1])
