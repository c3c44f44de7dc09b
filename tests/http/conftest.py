"""A site per framework and kind of meter; all of a test in one store, on a test clock."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meterd import AsyncMeter, Meter
from meterd.testing import ManualClock
from tests.http import sites
from tests.http.keyring import give_keys
from tests.http.routes import PLANS
from tests.support import servers

KINDS = [
    "asgi", "asgi async", "starlette", "starlette async", "fastapi", "fastapi async",
    "wsgi", "flask", "django", "django async", "django async async", "drf",
]  # fmt: skip


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def prefix() -> str:
    return f"http-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def meter(server: servers.Server, prefix: str, clock: ManualClock) -> Iterator[Meter]:
    with Meter(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=5) as made:
        yield made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


Make = Callable[..., Any]


@pytest.fixture
def make_site(
    kind: str, server: servers.Server, prefix: str, clock: ManualClock, meter: Meter
) -> Iterator[Make]:
    """`make_site(**options)` -> a site; `site.get(path, headers)` -> `Reply`."""
    store = meter
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Any:
            meter_kind: Any = AsyncMeter if kind.endswith("async") else Meter
            if kind == "django async":  # the views are, the meter is not
                meter_kind = Meter
            meter = meter_kind(server.url, plans=PLANS, prefix=prefix, clock=clock, timeout=5)
            down = meter_kind("redis://127.0.0.1:1", clock=clock, timeout=0.2)
            for one in (meter, down):
                stack.callback(getattr(one, "abandon", one.close))
            give_keys(store)
            meters = sites.Meters(meter, down)
            framework = kind.split(maxsplit=1)[0]
            if framework in ("asgi", "starlette", "fastapi"):
                app = getattr(sites, f"{framework}_app")(meters, options)
                site = sites.AsgiSite(app)
                stack.enter_context(site.client)
                return site
            if framework in ("wsgi", "flask"):
                return sites.WsgiSite(getattr(sites, f"{framework}_app")(meters, options))
            urls = {
                "django": sites.django_urls,
                "django async": sites.django_async_urls,
                "django async async": sites.django_async_urls,
                "drf": sites.drf_urls,
            }[kind](meters)
            stack.enter_context(sites.django_settings(urls, options))
            if framework == "drf" or kind == "django":
                return sites.DjangoSite()
            return sites.DjangoAsyncSite(stack.enter_context(asyncio.Runner()))

        yield make


@pytest.fixture
def site(make_site: Make) -> Any:
    return make_site()
