"""The API key example, as its README promises."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from meterd import Meter
from meterd.testing import ManualClock
from tests.support import servers

ADMIN = {"X-Admin-Token": "secret"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def meter(server: servers.Server, clock: ManualClock) -> Iterator[Meter]:
    from examples.api_keys.app import PLANS

    prefix = f"keys-{uuid.uuid4().hex[:12]}"
    with Meter(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=5) as made:
        yield made


@pytest.fixture
def client(meter: Meter) -> FlaskClient:
    from examples.api_keys.app import create_app

    return create_app(meter, "secret").test_client()


class Customer:
    """A customer with one key."""

    def __init__(self, client: FlaskClient, plan: str = "starter", name: str = "acme") -> None:
        self.client = client
        self.name = name
        made = self.admin("post", f"customers/{name}/keys", {"plan": plan}, 201)
        self.key_id, self.secret = made["id"], made["secret"]

    def admin(self, method: str, path: str, body: Any, status: int) -> Any:
        verb = getattr(self.client, method)
        with verb(f"/admin/{path}", json=body, headers=ADMIN) as reply:
            assert reply.status_code == status, reply.text
            return reply.get_json(silent=True)

    def upgrade(self, plan: str, change: str, payment: str = "pay_1") -> None:
        body = {"plan": plan, "change": change, "payment": payment}
        self.admin("put", f"customers/{self.name}/plan", body, 204)

    def post(self, path: str, body: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}"}
        with self.client.post(f"/v1/{path}", json=body, headers=headers) as reply:
            reply.get_data()
            return reply

    def usage(self) -> Any:
        with self.client.get("/v1/usage", headers={"X-API-Key": self.secret}) as reply:
            assert reply.status_code == 200, reply.text
            return reply.get_json()

    def credits(self) -> tuple[int, int]:
        found = self.usage()["resources"]["credits"]
        return found["used"], found["remaining"]


@pytest.mark.parametrize(
    ("plan", "credits"), [("starter", 1_000), ("growth", 10_000), ("scale", 100_000)]
)
def test_what_a_plan_includes(client: FlaskClient, plan: str, credits: int) -> None:
    found = Customer(client, plan).usage()
    assert found["plan"] == plan
    resources = found["resources"]
    limits = {name: one["limit"] for name, one in resources.items()}
    assert limits == {
        "credits": credits, "ai-tokens": 100_000, "storage-mb": 5_000, "exports": 100,
    }  # fmt: skip
    assert all(one["used"] == 0 and one["remaining"] == one["limit"] for one in resources.values())
    assert all(one["resets_at"] for one in resources.values())


def test_a_call_charges_every_resource_or_none(client: FlaskClient) -> None:
    acme = Customer(client)
    reply = acme.post("complete", {"tokens": 99_999})
    assert reply.status_code == 200
    assert reply.headers["X-Usage-Remaining"] == "1"
    assert reply.headers["RateLimit-Policy"] == '"credits";q=1000, "ai-tokens";q=100000;w=2592000'
    refused = acme.post("complete", {"tokens": 2})
    assert refused.status_code == 402
    assert refused.json["violated-policies"] == ["ai-tokens"]
    assert acme.credits() == (1, 999)
    assert acme.post("files", {"mb": 5_000}).status_code == 200
    assert acme.post("files", {"mb": 1}).status_code == 402
    assert acme.post("files", {"mb": -1}).status_code == 400
    assert acme.post("files", {"mb": 0.5}).status_code == 400
    assert acme.credits() == (2, 998)


def test_credits_end_with_402_and_come_back(
    client: FlaskClient, meter: Meter, clock: ManualClock
) -> None:
    acme = Customer(client)
    meter.consume("acme", "credits", 998)
    assert acme.post("complete", {"tokens": 1}).headers["X-Usage-Remaining"] == "1"
    assert acme.post("exports", {"rows": 1}).status_code == 402  # ten do not fit
    assert acme.post("complete", {"tokens": 1}).status_code == 200
    refused = acme.post("complete", {"tokens": 1})
    assert refused.status_code == 402
    assert refused.headers["X-Usage-Remaining"] == "0"
    assert refused.json["code"] == "USAGE_EXCEEDED"
    assert acme.usage()["resources"]["credits"]["remaining"] == 0
    clock.advance(days=31)
    assert acme.post("complete", {"tokens": 1}).status_code == 200
    assert acme.credits() == (1, 999)


def test_an_export_that_fails_costs_nothing(client: FlaskClient) -> None:
    acme = Customer(client)
    assert acme.post("exports", {"rows": 2_000_000}).status_code == 413
    assert acme.credits() == (0, 1_000)
    assert acme.post("exports", {"rows": 5}).status_code == 200
    assert acme.credits() == (10, 990)
    assert acme.usage()["resources"]["exports"]["used"] == 1


def test_an_upgrade_adds_the_difference_or_begins_anew(client: FlaskClient, meter: Meter) -> None:
    acme, beta = Customer(client), Customer(client, name="beta")
    meter.consume("acme", "credits", 1_000)
    meter.consume("beta", "credits", 1_000)
    acme.upgrade("growth", "keep")
    assert acme.credits() == (1_000, 9_000)
    beta.upgrade("growth", "reset")
    assert beta.credits() == (0, 10_000)
    assert beta.usage()["plan"] == "growth"
    meter.consume("beta", "credits", 10)
    beta.upgrade("growth", "reset")  # the same payment again
    assert beta.credits() == (10, 9_990)


def test_upgrades_lose_no_use_that_happens_meanwhile(client: FlaskClient, meter: Meter) -> None:
    acme = Customer(client)
    start = threading.Barrier(5)

    def use() -> int:
        start.wait(20)
        return sum(bool(meter.keys.verify(acme.secret)) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        using = [pool.submit(use) for _ in range(4)]
        start.wait(20)
        acme.upgrade("growth", "keep")
        assert sum(one.result() for one in using) == 200
    assert acme.credits() == (200, 9_800)


def test_overage_is_sold_up_to_its_bound(client: FlaskClient, meter: Meter) -> None:
    growth, scale = Customer(client, "growth"), Customer(client, "scale", "big")
    meter.consume("acme", "credits", 10_000)
    assert growth.post("complete", {"tokens": 1}).status_code == 200
    found = growth.usage()["resources"]["credits"]
    assert (found["overage"], found["used"]) == (1, 10_001)
    meter.consume("acme", "credits", 1_999)
    assert growth.post("complete", {"tokens": 1}).status_code == 402
    meter.consume("big", "credits", 300_000)
    assert scale.post("complete", {"tokens": 1}).status_code == 200
    assert scale.usage()["resources"]["credits"]["overage"] == 200_001


def test_a_top_up_is_granted_once(client: FlaskClient, meter: Meter, clock: ManualClock) -> None:
    acme = Customer(client)
    meter.consume("acme", "credits", 1_000)
    assert acme.post("complete", {"tokens": 1}).status_code == 402
    body = {"amount": 500, "payment": "pay_7", "expires": "90d"}
    first = acme.admin("post", "customers/acme/grants", body, 201)
    assert acme.admin("post", "customers/acme/grants", body, 201) == first
    assert acme.credits()[1] == 500
    assert acme.post("complete", {"tokens": 1}).status_code == 200
    acme.upgrade("growth", "keep")
    assert acme.credits()[1] == 9_000 + 499
    clock.advance(days=31)
    assert acme.credits()[1] == 10_000 + 499
    clock.advance(days=60)
    assert acme.credits()[1] == 10_000


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "plan", {}),
        ("PUT", "plan", {"plan": "growth"}),
        ("PUT", "plan", {"plan": "growth", "payment": 7}),
        ("PUT", "plan", {"plan": "none", "payment": "p"}),
        ("PUT", "plan", {"plan": "growth", "payment": "p", "change": "maybe"}),
        ("POST", "grants", {}),
        ("POST", "grants", []),
        ("POST", "grants", {"amount": 5}),
        ("POST", "grants", {"amount": -5, "payment": "p"}),
        ("POST", "keys", "x"),
    ],
)
def test_mistakes_of_your_side(client: FlaskClient, method: str, path: str, body: Any) -> None:
    Customer(client).admin(method.lower(), f"customers/acme/{path}", body, 400)


def test_a_payment_is_of_one_thing(client: FlaskClient) -> None:
    customer = Customer(client)
    customer.admin("post", "customers/acme/grants", {"amount": 5, "payment": "p1"}, 201)
    customer.admin("post", "customers/acme/grants", {"amount": 6, "payment": "p1"}, 409)
    customer.upgrade("growth", "keep", "p2")
    customer.admin(
        "put", "customers/acme/plan", {"plan": "scale", "payment": "p2", "change": "keep"}, 409
    )


def test_keys(client: FlaskClient) -> None:
    acme = Customer(client)
    other = Customer(client, name="beta")
    assert client.get("/v1/usage").status_code == 401
    assert client.get("/v1/usage", headers={"X-API-Key": "mk_guessed"}).status_code == 401
    assert acme.post("complete", {"tokens": 1}).status_code == 200
    acme.admin("delete", f"keys/{acme.key_id}", {}, 204)
    refused = acme.post("complete", {"tokens": 1})
    assert refused.status_code == 401
    assert acme.secret not in refused.text
    assert other.post("complete", {"tokens": 1}).status_code == 200


def test_what_is_not_for_customers(client: FlaskClient) -> None:
    acme = Customer(client)
    path = "/admin/customers/acme/grants"
    for headers in ({}, {"X-Admin-Token": "no"}, {"X-Admin-Token": acme.secret}):
        assert client.post(path, json={}, headers=headers).status_code == 403
    body = {"amount": -5, "payment": "pay_1"}
    assert client.post(path, json=body, headers=ADMIN).status_code == 400


def test_webhooks_tell_of_exhaustion_once(client: FlaskClient, meter: Meter) -> None:
    from examples.api_keys.notify import notify

    acme = Customer(client)
    meter.consume("acme", "credits", 995)
    for _ in range(3):
        assert acme.post("exports", {"rows": 1}).status_code == 402  # five are left, ten are asked
    told: list[Any] = []

    def fails(url: str, headers: dict[str, str], body: bytes) -> None:
        raise ConnectionError("the receiver is out")

    def receive(url: str, headers: dict[str, str], body: bytes) -> None:
        told.append((headers["Webhook-Id"], json.loads(body)))

    with pytest.raises(ConnectionError):
        notify(meter, "https://customer.example", send=fails, follow=False)
    notify(meter, "https://customer.example", send=receive, follow=False)
    credits = [(kind["type"], kind["subject"]) for _, kind in told if kind["name"] == "credits"]
    assert credits == [("warn", "acme"), ("exhausted", "acme")]
    assert len({event_id for event_id, _ in told}) == len(told)
    notify(meter, "https://customer.example", send=receive, follow=False)
    assert len(told) == 2
