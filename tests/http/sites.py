"""The routes, served by every framework; a site is called the same way whatever serves it."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import django
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path as django_path
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from flask import Flask, g
from starlette.applications import Starlette
from starlette.routing import Route as StarletteRoute
from starlette.testclient import TestClient
from werkzeug.test import Client as WsgiClient

from meterd.http import asgi, wsgi
from meterd.http import django as django_http
from meterd.http import fastapi as fastapi_http
from meterd.http import flask as flask_http
from tests.http.routes import ROUTES, Route, body_of, stream_of

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["rest_framework"],
        REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": [], "UNAUTHENTICATED_USER": None},
        MIDDLEWARE=["meterd.http.django.MeterMiddleware"],
        SECRET_KEY="-",
    )
    django.setup()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: str
    repeated: list[str] = field(default_factory=list)


def reply(status: int, headers: Any, text: str) -> Reply:
    """Names in lower case; `repeated`: those that came more than once."""
    pairs = [(name.lower(), value) for name, value in headers]
    names = [name for name, _ in pairs]
    return Reply(status, dict(pairs), text, [one for one in names if names.count(one) > 1])


class Meters:
    """The meter of a site, and one whose server is down."""

    def __init__(self, meter: Any, down: Any) -> None:
        self.meter = meter
        self.down = down

    def of(self, route: Route) -> Any:
        return self.down if route.down else self.meter


Options = Mapping[str, Any]


# ASGI: plain, Starlette, FastAPI -----------------------------------------------------------------


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _astream(does: str, permit: Any) -> Any:
    for part in stream_of(does, permit):
        await asyncio.sleep(0)
        yield part


def asgi_app(meters: Meters, options: Options) -> Any:
    """No framework: a middleware around a handler, for each route."""

    def handler(route: Route) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            permit = scope["state"]["meterd"]
            start = {"type": "http.response.start", "status": 200, "headers": []}
            if route.does.startswith("stream"):
                await send(start)
                gone = asyncio.create_task(_until_gone(receive))
                async for part in _astream(route.does, permit):
                    message = {"type": "http.response.body", "body": part.encode()}
                    await send({**message, "more_body": True})
                    if gone.done():
                        break
                gone.cancel()
                await send({"type": "http.response.body"})
                return
            try:
                status, text = body_of(route.does, permit)
            except RuntimeError:
                await send({**start, "status": 500})
                await send({"type": "http.response.body", "body": b"boom"})
                raise
            await send({**start, "status": status})
            await send({"type": "http.response.body", "body": text.encode()})

        return asgi.MeterMiddleware(handler_app(app), meters.of(route), **route.requires, **options)

    def handler_app(app: Any) -> Any:
        # A second one inside leaves telling and ending to the first.
        return asgi.MeterMiddleware(app, **options)

    apps = {path: handler(route) for path, route in ROUTES.items()}

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await apps[scope["path"]](scope, receive, send)
            return
        for phase in ("startup", "shutdown"):  # of the lifespan
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    return dispatch


def starlette_app(meters: Meters, options: Options) -> Any:
    def endpoint(route: Route) -> Any:
        permitted = fastapi_http.require(meters.of(route), **route.requires)

        async def handle(request: Any) -> Any:
            permit = await permitted(request)
            assert request.state.meterd is permit
            if route.does.startswith("stream"):
                return StreamingResponse(_astream(route.does, permit))
            status, text = body_of(route.does, permit)
            return PlainTextResponse(text, status)

        return handle

    app = Starlette(routes=[StarletteRoute(path, endpoint(one)) for path, one in ROUTES.items()])
    fastapi_http.install(app, **options)
    return app


def fastapi_app(meters: Meters, options: Options) -> Any:
    app = FastAPI()
    fastapi_http.install(app, **options)

    def add(path: str, route: Route) -> None:
        permitted = fastapi_http.require(meters.of(route), **route.requires)

        def handle(permit: Any = Depends(permitted)) -> Any:  # noqa: B008
            if route.does.startswith("stream"):
                return StreamingResponse(stream_of(route.does, permit))
            status, text = body_of(route.does, permit)
            return PlainTextResponse(text, status)

        app.get(path)(handle)

    for path, route in ROUTES.items():
        add(path, route)
    return app


class AsgiSite:
    def __init__(self, app: Any) -> None:
        self.app = app
        self.client = TestClient(app, raise_server_exceptions=False)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        got = self.client.get(path, headers=dict(headers or {}))
        return reply(got.status_code, got.headers.multi_items(), got.text)


# WSGI: plain, Flask ------------------------------------------------------------------------------


def wsgi_app(meters: Meters, options: Options) -> Any:
    def handler(route: Route) -> Any:
        def app(environ: Any, start_response: Any) -> Any:
            permit = environ["meterd"]
            if route.does.startswith("stream"):
                start_response("200 OK", [])
                return (part.encode() for part in stream_of(route.does, permit))
            try:
                status, text = body_of(route.does, permit)
            except RuntimeError:
                status, text = 500, "boom"
            start_response(f"{status} -", [])
            return [text.encode()]

        return wsgi.MeterMiddleware(app, meters.of(route), **route.requires, **options)

    apps = {path: handler(route) for path, route in ROUTES.items()}
    return lambda environ, start_response: apps[environ["PATH_INFO"]](environ, start_response)


def flask_app(meters: Meters, options: Options) -> Any:
    app = Flask("site")
    app.config["METERD_LEGACY"] = options.get("legacy", False)
    app.config["METERD_TRUSTED_PROXIES"] = options.get("trusted_proxies", ())

    def add(path: str, route: Route) -> None:
        @app.get(path, endpoint=path)
        @flask_http.require(meters.of(route), **route.requires)
        def handle() -> Any:
            permit = g.meterd
            if route.does.startswith("stream"):
                return stream_of(route.does, permit)
            status, text = body_of(route.does, permit)
            return text, status

    for path, route in ROUTES.items():
        add(path, route)
    return app


class WsgiSite:
    def __init__(self, app: Any) -> None:
        self.client = WsgiClient(app)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        with contextlib.closing(self.client.get(path, headers=dict(headers or {}))) as got:
            with contextlib.suppress(RuntimeError):  # breaks off
                got.get_data()
            text = b"".join(got.response).decode() if got.is_sequence else ""
            return reply(got.status_code, list(got.headers), text)


# Django ------------------------------------------------------------------------------------------


def django_urls(meters: Meters) -> Any:
    def view(route: Route) -> Any:
        @django_http.require(meters.of(route), **route.requires)
        def handle(request: Any) -> Any:
            if route.does.startswith("stream"):
                return StreamingHttpResponse(stream_of(route.does, request.meterd))
            status, text = body_of(route.does, request.meterd)
            return HttpResponse(text, status=status)

        return handle

    return [django_path(path[1:], view(route)) for path, route in ROUTES.items()]


def django_async_urls(meters: Meters) -> Any:
    def view(route: Route) -> Any:
        @django_http.require(meters.of(route), **route.requires)
        async def handle(request: Any) -> Any:
            if route.does.startswith("stream"):
                return StreamingHttpResponse(_astream(route.does, request.meterd))
            status, text = body_of(route.does, request.meterd)
            return HttpResponse(text, status=status)

        return handle

    return [django_path(path[1:], view(route)) for path, route in ROUTES.items()]


def drf_urls(meters: Meters) -> Any:
    from rest_framework.response import Response
    from rest_framework.views import APIView

    from meterd.http.drf import throttle

    def view(route: Route) -> Any:
        class View(APIView):
            throttle_classes = (throttle(meters.of(route), **route.requires),)

            def get(self, request: Any) -> Any:
                if route.does.startswith("stream"):
                    return StreamingHttpResponse(stream_of(route.does, request.meterd))
                status, text = body_of(route.does, request.meterd)
                return Response(text, status=status)

        return View.as_view()

    return [django_path(path[1:], view(route)) for path, route in ROUTES.items()]


@contextlib.contextmanager
def django_settings(urls: Any, options: Options) -> Iterator[None]:
    module = types.ModuleType("urls_of_site")
    module.urlpatterns = urls  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=module, METERD=dict(options)):
        yield


class DjangoSite:
    def __init__(self) -> None:
        self.client = Client(raise_request_exception=False)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        got: Any = self.client.get(path, headers=dict(headers or {}))
        text = ""
        with contextlib.suppress(RuntimeError):  # breaks off
            text = (b"".join(got) if got.streaming else got.content).decode()
        return reply(got.status_code, got.items(), text)


class DjangoAsyncSite:
    def __init__(self, runner: asyncio.Runner) -> None:
        self.client = AsyncClient(raise_request_exception=False)
        self.runner = runner

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.runner.run(self._get(path, dict(headers or {})))

    async def _get(self, path: str, headers: dict[str, str]) -> Reply:
        got: Any = await self.client.get(path, headers=headers)
        text = ""
        if got.streaming:
            with contextlib.suppress(RuntimeError):  # breaks off
                text = b"".join([part async for part in got]).decode()
            await asyncio.gather(*django_http._running)
        else:
            text = got.content.decode()
        return reply(got.status_code, got.items(), text)
