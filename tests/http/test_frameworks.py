"""What is particular to one framework."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import path as django_path
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse
from flask import Flask, abort, g
from pydantic import BaseModel
from starlette.testclient import TestClient

from meterd import Bucket, Meter, Plan, PolicyError, Pool
from meterd.http import django as django_http
from meterd.http import fastapi as fastapi_http
from meterd.http import flask as flask_http
from meterd.http.asgi import MeterMiddleware
from meterd.http.fastapi import Denied, Permit, install, require
from meterd.testing import fake
from tests.http.sites import django_settings

PLAN = Plan(
    "free",
    default=True,
    includes=[Pool("tokens", 100), Pool("calls", 2), Bucket("requests", 50, "1m")],
)


class Body(BaseModel):
    text: str


@pytest.fixture
def meter() -> Iterator[Meter]:
    with fake([PLAN]) as made:
        yield made


def used(meter: Meter, name: str) -> int:
    return meter.usage("acme")[name].used


def fastapi_site(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


# FastAPI and Starlette ---------------------------------------------------------------------------


def test_a_forgotten_install_is_told(meter: Meter) -> None:
    app = FastAPI()
    app.get("/", dependencies=[Depends(require(meter, "calls", subject="acme"))])(lambda: "")
    with pytest.raises(PolicyError, match=r"install\(app\)"):
        TestClient(app).get("/")
    assert used(meter, "calls") == 0


def test_install_comes_before_the_first_request() -> None:
    app = FastAPI()
    fastapi_site(app).get("/")
    with pytest.raises(PolicyError, match="already started"):
        install(app)
    with pytest.raises(PolicyError, match="trusted_proxies"):
        install(FastAPI(), trusted_proxies=["proxy"])


def test_a_mounted_application(meter: Meter) -> None:
    app, inner = FastAPI(), FastAPI()
    install(app)
    app.mount("/inner", inner)
    inner.get("/", dependencies=[Depends(require(meter, "calls", 2, subject="acme"))])(lambda: "")
    client = fastapi_site(app)
    assert client.get("/inner/").headers["ratelimit"] == '"calls";r=0'
    refused = client.get("/inner/")
    assert refused.status_code == 402
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["ratelimit"] == '"calls";r=0'


def test_refusals_may_be_told_in_other_words(meter: Meter) -> None:
    app = FastAPI()
    install(app)
    app.get("/", dependencies=[Depends(require(meter, "calls", 3, subject="acme"))])(lambda: "")

    @app.exception_handler(Denied)
    async def mine(request: Any, denied: Denied) -> JSONResponse:
        return JSONResponse({"sorry": denied.answer.problem()["code"]}, denied.answer.status)

    reply = fastapi_site(app).get("/")
    assert (reply.status_code, reply.json()) == (402, {"sorry": "USAGE_EXCEEDED"})
    assert reply.headers["ratelimit"] == '"calls";r=2'


def test_requirements_add_up(meter: Meter) -> None:
    """The middleware's, the router's and the handler's, on one response."""
    app = FastAPI()
    install(app)
    app.add_middleware(MeterMiddleware, meter=meter, costs="requests", subject="acme")
    tokens = require(meter, "tokens", 10, subject="acme", hold=True)

    @app.get("/", dependencies=[Depends(require(meter, "calls", subject="acme"))])
    def handle(permit: Permit = Depends(tokens)) -> Any:  # noqa: B008
        permit.spend("tokens", 3)
        return PlainTextResponse("")

    client = fastapi_site(app)
    for left in (1, 0):
        reply = client.get("/")
        assert reply.status_code == 200
        names = [one.partition(";")[0] for one in reply.headers["ratelimit"].split(", ")]
        assert names == ['"requests"', '"calls"', '"tokens"']
        assert f'"calls";r={left},' in reply.headers["ratelimit"]
    assert client.get("/").status_code == 402
    assert client.get("/nowhere").headers["ratelimit"].startswith('"requests";r=46;')
    assert (used(meter, "tokens"), used(meter, "requests")) == (6, 4)


def raising(meter: Meter, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.add_middleware(MeterMiddleware, meter=meter, costs="calls", subject="acme")

    @app.get("/")
    def handle() -> None:
        raise RuntimeError("boom")

    return app


def test_unexpected_errors_where_it_is_one_middleware_of_many(meter: Meter) -> None:
    reply = fastapi_site(raising(meter)).get("/")
    assert (reply.status_code, reply.text) == (500, "Internal Server Error")
    assert reply.headers["ratelimit"] == '"calls";r=1'
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    with pytest.raises(RuntimeError, match="boom"):  # the server hears of it
        TestClient(raising(meter)).get("/")


@pytest.mark.parametrize("what", [Exception, 500])
def test_an_applications_own_page_for_unexpected_errors_is_left_to_it(
    meter: Meter, what: Any
) -> None:
    app = raising(meter)

    async def page(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"sorry": str(error)}, 500)

    app.add_exception_handler(what, page)
    assert fastapi_site(app).get("/").json() == {"sorry": "boom"}
    assert "RuntimeError" in fastapi_site(raising(meter, debug=True)).get("/").text


def test_bodies_errors_and_work_afterwards(meter: Meter) -> None:
    app = FastAPI()
    install(app)
    held = require(meter, "tokens", 10, subject="acme", hold=True)

    @app.post("/")
    async def handle(
        body: Body,
        later: BackgroundTasks,
        permit: Permit = Depends(held),  # noqa: B008
    ) -> str:
        if body.text == "no":
            raise HTTPException(409, "no")
        later.add_task(permit.spend, "tokens", 2)
        return body.text

    client = fastapi_site(app)
    for body, status, charged in (({}, 422, 0), ({"text": "no"}, 409, 0), ({"text": "a"}, 200, 2)):
        reply = client.post("/", json=body)
        assert reply.status_code == status
        assert reply.headers["ratelimit"] == '"tokens";r=90'
        assert used(meter, "tokens") == charged


def test_the_same_requirement_twice_in_a_request_is_charged_once(meter: Meter) -> None:
    app = FastAPI()
    install(app)
    limit = Depends(require(meter, "calls", subject="acme"))
    app.get("/", dependencies=[limit, limit])(lambda: "")
    assert fastapi_site(app).get("/").headers["ratelimit"] == '"calls";r=1'


# Flask -------------------------------------------------------------------------------------------


def test_flask(meter: Meter) -> None:
    app = Flask("site")

    @app.get("/<name>")
    @flask_http.require(meter, "calls", subject="acme")
    @flask_http.require(meter, "tokens", 10, subject="acme", hold=True)
    async def handle(name: str) -> str:
        await asyncio.sleep(0)
        if name == "no":
            g.meterd.spend("tokens", 1)
            abort(409)
        return name

    client = app.test_client()
    with client.get("/no") as reply:
        assert reply.status_code == 409
        assert reply.headers["RateLimit"] == '"calls";r=1, "tokens";r=90'
    assert used(meter, "tokens") == 1
    with client.get("/ana") as reply:
        assert reply.text == "ana"
    assert (used(meter, "tokens"), used(meter, "calls")) == (11, 2)
    with client.get("/ana") as reply:
        assert reply.status_code == 402
    assert (used(meter, "tokens"), used(meter, "calls")) == (11, 2)


# Django ------------------------------------------------------------------------------------------


def test_django_classes_and_denials(meter: Meter) -> None:
    limit = django_http.require(meter, "calls", subject="acme")

    @method_decorator(limit, name="dispatch")
    class Page(View):
        def get(self, request: Any, name: str) -> HttpResponse:
            return HttpResponse(name)

    with django_settings([django_path("<name>", Page.as_view())], {}):
        client = Client()
        replies: list[Any] = [client.get("/ana") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 402]
    assert [reply["RateLimit"] for reply in replies] == [f'"calls";r={n}' for n in (1, 0, 0)]


def test_django_without_the_middleware(meter: Meter) -> None:
    from django.test import RequestFactory

    view = django_http.require(meter, "calls", subject="acme")(lambda request: HttpResponse())
    with pytest.raises(PolicyError, match="MIDDLEWARE"):
        view(RequestFactory().get("/"))
    assert used(meter, "calls") == 0


def test_adapters_agree_on_their_arguments() -> None:
    import inspect

    from meterd.http import drf

    wanted = list(inspect.signature(fastapi_http.require).parameters.values())
    for other in (flask_http.require, django_http.require, drf.throttle):
        assert list(inspect.signature(other).parameters.values()) == wanted
