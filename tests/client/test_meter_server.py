"""Where a meter's server comes from, and whose clock its store runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from meterd import AsyncMeter, Meter, PolicyError
from meterd.client import default_url
from meterd.testing import ManualClock
from tests.client.meter_tools import PLANS, AnyMeter, Make, build, fresh_prefix
from tests.support.servers import Server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("METERD_URL", "METERD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return tmp_path


def test_default_url(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyError, match="no server given: pass a URL"):
        default_url()
    with pytest.raises(PolicyError, match="no server given"):
        Meter()
    (home / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(PolicyError, match="no server given"):
        default_url()
    (home / "pyproject.toml").write_text('[tool.meterd]\nurl = "redis://far-above"\n')
    assert default_url() == "redis://far-above"
    (home / "a" / "meterd.toml").write_text('url = "redis://above"\n')
    assert default_url() == "redis://above"
    (home / "a" / "b" / "meterd.toml").write_text('prefix = "no url here"\n')
    with pytest.raises(PolicyError, match="no server given"):
        default_url()
    named = home / "named.toml"
    named.write_text('url = "redis://named"\n')
    monkeypatch.setenv("METERD_CONFIG", str(named))
    assert default_url() == "redis://named"
    monkeypatch.setenv("METERD_URL", "redis://environment:1")
    assert default_url() == "redis://environment:1"
    assert Meter().url == "redis://environment:1/0"
    assert AsyncMeter().url == "redis://environment:1/0"
    assert Meter("redis://given:2").url == "redis://given:2/0"
    named.unlink()
    monkeypatch.delenv("METERD_URL")
    with pytest.raises(PolicyError, match=r"named\.toml"):
        default_url()


# --- Somebody else's client


def test_a_client_of_ones_own(make: Make, server: Server) -> None:
    runner = make().runner
    client: Any = redis.Redis if runner is None else redis.asyncio.Redis
    options: dict[str, Any] = {"unix_socket_path": server.socket, "retry": Retry(NoBackoff(), 0)}
    meter = make(client=client(**options))
    assert meter.consume("ana", "tokens", 7).balance == 93
    assert make().usage("ana")["credits"].used == 7
    with pytest.raises(PolicyError, match="retries on its own"):
        make(client=client(unix_socket_path=server.socket))
    other: Any = redis.asyncio.Redis if runner is None else redis.Redis
    with pytest.raises(PolicyError, match="client= must be a"):
        make(client=other(**options))


def test_two_clocks_never_meet_in_one_store(make: Make, server: Server) -> None:
    meter = make()
    meter.open()
    with pytest.raises(PolicyError, match="runs on the manual clock, this meter on the server one"):
        make(clock=None).open()
    prefix = fresh_prefix()
    runner = meter.runner
    with build(runner, server.url, plans=PLANS, prefix=prefix, timeout=5) as real:
        assert real.consume("ana", "tokens")
        with pytest.raises(PolicyError, match="runs on the server clock, this meter on the manual"):
            make(prefix=prefix).consume("ana", "tokens")
        with pytest.raises(PolicyError, match="runs on the server clock"):
            make(prefix=prefix).apply()
        assert real.revision == 1
        real.forget("ana")


def test_any_object_with_now_ms_is_a_clock(make: Make) -> None:
    class Clock:
        def now_ms(self) -> int:
            return 1_000_000

    state = make(clock=Clock()).consume("ana", "api")["api"]
    assert state.resets_at_ms == 1_060_000
    assert isinstance(make(clock=ManualClock(1_000_000)), AnyMeter)
