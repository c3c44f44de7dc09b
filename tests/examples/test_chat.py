"""The chat example, as its README promises."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from examples.chat.app import PLANS, create_app
from meterd import AsyncMeter, Meter
from meterd.testing import ManualClock
from tests.support import servers

ANA = {"Authorization": "Bearer ana"}
HELLO = {"prompt": "so it goes"}


async def fails(prompt: str) -> AsyncIterator[str]:
    for word in prompt.split():
        if word == "stop":
            raise RuntimeError("the model is out")
        yield word


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def settings(server: servers.Server, clock: ManualClock) -> dict[str, Any]:
    prefix = f"chat-{uuid.uuid4().hex[:12]}"
    return {"url": server.url, "plans": PLANS, "prefix": prefix, "clock": clock, "timeout": 5}


@pytest.fixture
def meter(settings: dict[str, Any]) -> Iterator[Meter]:
    with Meter(**settings) as made:
        yield made


@pytest.fixture
def app(settings: dict[str, Any]) -> FastAPI:
    return create_app(AsyncMeter(**settings))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def test_an_answer_streams_and_costs_what_it_took(client: TestClient, meter: Meter) -> None:
    reply = client.post("/chat", json=HELLO, headers=ANA)
    assert (reply.status_code, reply.text) == (200, "so it goes ")
    assert reply.headers["ratelimit-policy"] == '"messages";q=100, "tokens";q=200000'
    assert reply.headers["ratelimit"].startswith('"messages";r=99;t=')
    usage = meter.usage("user:ana")
    assert (usage["messages"].used, usage["tokens"].used) == (1, 3)


def test_free_is_a_hundred_messages_and_pro_two_thousand(
    client: TestClient, meter: Meter, clock: ManualClock
) -> None:
    meter.consume("user:ana", "messages", 99)
    assert client.post("/chat", json=HELLO, headers=ANA).status_code == 200
    refused = client.post("/chat", json=HELLO, headers=ANA)
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "USAGE_EXCEEDED"
    assert refused.json()["violated-policies"] == ["messages"]
    assert int(refused.headers["retry-after"]) > 27 * 86_400

    assert client.post("/plan/pro", headers=ANA).status_code == 204
    left = client.get("/usage", headers=ANA).json()
    assert left["plan"] == "pro"
    assert left["limits"]["messages"]["remaining"] == 1_900  # the difference was added
    assert client.post("/chat", json=HELLO, headers=ANA).status_code == 200

    clock.advance(days=31)
    assert client.get("/usage", headers=ANA).json()["limits"]["messages"]["remaining"] == 2_000


def test_a_model_that_fails(settings: dict[str, Any], meter: Meter) -> None:
    with TestClient(create_app(AsyncMeter(**settings), fails), raise_server_exceptions=False) as it:
        for prompt, messages, tokens in (("stop", 0, 0), ("one two stop", 1, 2)):
            it.post("/chat", json={"prompt": prompt}, headers=ANA)
            usage = meter.usage("user:ana")
            assert (usage["messages"].used, usage["tokens"].used) == (messages, tokens)


def test_mistakes(client: TestClient, meter: Meter) -> None:
    assert client.post("/chat", json=HELLO).status_code == 401
    assert client.post("/chat", json={"prompt": ""}, headers=ANA).status_code == 422
    assert client.post("/plan/gold", headers=ANA).status_code == 404
    assert meter.usage("user:ana")["messages"].used == 0


def test_of_many_at_once_as_many_as_are_left_are_answered(app: FastAPI, meter: Meter) -> None:
    meter.consume("user:ana", "messages", 90)

    async def main() -> list[int]:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://chat") as client,
        ):
            asked = [client.post("/chat", json=HELLO, headers=ANA) for _ in range(32)]
            return [reply.status_code for reply in await asyncio.gather(*asked)]

    answered = asyncio.run(main())
    assert sorted(answered) == [200] * 10 + [403] * 22
    assert meter.usage("user:ana")["messages"].used == 100
