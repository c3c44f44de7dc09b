"""Every adapter keeps the same promises; `kind` is the framework, and the meter it is given."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from meterd import Meter, PolicyError
from meterd.testing import ManualClock
from tests.http.conftest import Make

ANA = {"X-User": "ana"}


def used(meter: Meter, name: str, subject: Any = "ana") -> int:
    meter.usage(subject)
    return meter.usage(subject)[name].used


def open_holds(meter: Meter, subject: Any = "ana") -> int:
    return sum(level.open_holds for level in meter.usage(subject).levels)


def problem(reply: Any) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(reply.text)
    assert found["status"] == reply.status
    return found


def test_allowed_then_exceeded(site: Any, meter: Meter) -> None:
    for left in (2, 1, 0):
        reply = site.get("/chat", ANA)
        assert reply.status == 200
        assert reply.headers["ratelimit-policy"] == '"messages";q=3'
        assert reply.headers["ratelimit"].startswith(f'"messages";r={left};t=')
        assert "retry-after" not in reply.headers
        assert not reply.repeated
    refused = site.get("/chat", ANA)
    assert refused.status == 402
    found = problem(refused)
    assert found["code"] == "USAGE_EXCEEDED"
    assert found["violated-policies"] == ["messages"]
    assert found["violated"][0]["used"] == 3
    assert refused.headers["ratelimit"].startswith('"messages";r=0;t=')
    assert refused.headers["retry-after"] == refused.headers["ratelimit"].rpartition("=")[2]
    assert not refused.repeated
    assert used(meter, "messages") == 3
    assert site.get("/chat", {"X-User": "ben"}).status == 200


def test_statuses_are_yours(site: Any) -> None:
    assert [site.get("/hidden", ANA).status for _ in range(4)] == [200, 200, 200, 403]


def test_a_bucket_refuses_with_429(site: Any, clock: ManualClock) -> None:
    site.get("/limited", ANA)
    clock.advance(milliseconds=500)
    reply = site.get("/limited", ANA)
    assert reply.headers["ratelimit-policy"] == '"messages";q=3, "requests";q=2;w=60'
    assert reply.headers["ratelimit"].endswith('"requests";r=0;t=60')
    refused = site.get("/limited", ANA)
    assert refused.status == 429
    assert refused.headers["retry-after"] == "60"  # 59.5 s
    assert problem(refused)["retry_after"] == 59.5
    clock.advance(milliseconds=59_499)
    assert site.get("/limited", ANA).status == 429
    clock.advance(milliseconds=1)
    assert site.get("/limited", ANA).status == 200


def test_not_included(site: Any) -> None:
    reply = site.get("/nowhere", ANA)
    assert reply.status == 403
    assert problem(reply)["code"] == "NOT_INCLUDED"
    assert "ratelimit" not in reply.headers


def test_functions_of_the_request(site: Any, meter: Meter) -> None:
    assert site.get("/costs", ANA).status == 200
    assert used(meter, "messages") == 2
    free = site.get("/nothing", ANA)
    assert free.status == 200
    assert "ratelimit" not in free.headers
    assert used(meter, "messages") == 2


def test_an_amount_that_is_none_is_the_applications_fault(site: Any, meter: Meter) -> None:
    with contextlib.suppress(PolicyError):  # plain WSGI has nobody who answers for it
        assert site.get("/float", ANA).status == 500
    assert used(meter, "messages") == 0


@pytest.mark.parametrize(("path", "status"), [("/boom", 500), ("/teapot", 418)])
def test_the_applications_own_errors_tell_of_limits(
    site: Any, meter: Meter, path: str, status: int
) -> None:
    reply = site.get(path, ANA)
    assert reply.status == status
    assert reply.headers["ratelimit-policy"] == '"messages";q=3'
    assert reply.headers["ratelimit"].startswith('"messages";r=2;t=')
    assert not reply.repeated
    assert used(meter, "messages") == 1


def test_never_open(site: Any) -> None:
    reply = site.get("/down", ANA)
    assert reply.status == 503
    assert problem(reply)["code"] == "UNAVAILABLE"
    assert reply.headers["retry-after"] == "1"
    assert "127.0.0.1" not in reply.text


def test_the_older_fields(make_site: Make) -> None:
    site = make_site(legacy=True)
    reply = site.get("/limited", ANA)
    assert reply.headers["x-ratelimit-limit"] == "2"
    assert reply.headers["x-ratelimit-remaining"] == "1"
    assert int(reply.headers["x-ratelimit-reset"]) > 1_000_000_000
    assert reply.headers["x-usage-remaining"] == "2"


def test_who_is_nobody_is_an_address(make_site: Make, kind: str) -> None:
    asgi = kind.split(maxsplit=1)[0] in ("asgi", "starlette", "fastapi")
    peer = "ip:testclient" if asgi else "ip:127.0.0.1"
    forged = {"X-Forwarded-For": "198.51.100.1", "Forwarded": "for=198.51.100.1"}
    if kind in {"wsgi", "flask"}:
        peer = "ip:unknown"  # werkzeug's client has no address
    site = make_site(trusted_proxies=["10.0.0.0/8"])
    assert [site.get("/who", forged).text.strip('"') for _ in range(2)] == [peer, peer]
    assert site.get("/who").status == 429  # the same bucket, whatever was forged


# Reservations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "charged"),
    [
        ("/hold", 200, 10),  # nothing was counted: what was reserved
        ("/hold-spend", 200, 4),  # what was counted
        ("/hold-boom", 500, 0),  # an exception gives all back
        ("/hold-spend-boom", 500, 3),  # but for what was counted
        ("/hold-teapot", 418, 0),
        ("/hold-denied", 402, 0),
        ("/stream", 200, 6),
        ("/stream-breaks", 200, 4),
    ],
)
def test_reserve_then_commit(site: Any, meter: Meter, path: str, status: int, charged: int) -> None:
    try:
        reply = site.get(path, ANA)
    except RuntimeError:
        assert path == "/stream-breaks"
    else:
        assert reply.status == status
        assert reply.headers["ratelimit-policy"] == '"tokens";q=100;w=86400'
        left = 100 if path == "/hold-denied" else 90  # as reserved
        assert reply.headers["ratelimit"].startswith(f'"tokens";r={left};')
    assert used(meter, "tokens") == charged
    assert open_holds(meter) == 0


def test_slots_are_given_back(site: Any, meter: Meter) -> None:
    for _ in range(3):
        reply = site.get("/hold-job", ANA)
        assert reply.status == 200
        assert '"jobs";q=1;qu="concurrent-requests"' in reply.headers["ratelimit-policy"]
    assert used(meter, "jobs") == 0
    with meter.reserve("ana", "jobs"):
        assert site.get("/hold-job", ANA).status == 429


# API keys ----------------------------------------------------------------------------------------


def test_a_key_is_charged(site: Any, meter: Meter) -> None:
    for headers in ({"Authorization": "Bearer mk_acme"}, {"X-API-Key": "mk_acme"}):
        reply = site.get("/key", headers)
        assert reply.text.strip('"').startswith("acme/")
        assert reply.headers["ratelimit-policy"] == '"credits";q=5;w=2592000'
    assert used(meter, "credits", "acme") == 2
    assert site.get("/key-free", {"X-API-Key": "mk_acme"}).status == 200
    assert used(meter, "credits", "acme") == 2
    for status in (200, 200, 200, 402):
        assert site.get("/key", {"X-API-Key": "mk_acme"}).status == status
    assert site.get("/key-free", {"X-API-Key": "mk_acme"}).status == 200


@pytest.mark.parametrize(
    ("secret", "code"),
    [(None, "NO_KEY"), ("mk_no", "NOT_FOUND"), ("mk_off", "DISABLED"), ("mk_old", "EXPIRED")],
)
def test_keys_that_are_no_use(site: Any, clock: ManualClock, secret: str | None, code: str) -> None:
    clock.advance(seconds=2)  # one of them expires
    reply = site.get("/key", {"Authorization": f"Bearer {secret}"} if secret else {})
    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Bearer ")
    assert problem(reply)["code"] == code
    assert secret is None or secret not in reply.text


def test_a_key_in_a_header_of_its_own(site: Any, meter: Meter) -> None:
    assert site.get("/key-tokens", {"X-Token": "mk_acme"}).status == 200
    assert used(meter, "tokens", "acme") == 40
    assert used(meter, "credits", "acme") == 1
    assert site.get("/key-tokens", {"X-API-Key": "mk_acme"}).status == 401


def test_a_key_and_a_hold(site: Any, meter: Meter) -> None:
    reply = site.get("/key-hold", {"X-User": "mk_acme"})
    assert reply.status == 200
    assert used(meter, "tokens", "acme") == 4
    assert used(meter, "credits", "acme") == 0
    assert site.get("/key-hold", {"X-User": "mk_off"}).status == 401
