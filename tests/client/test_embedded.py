"""The embedded server comes up anywhere and leaves nothing behind, however its process ends."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from meterd.embedded import EmbeddedServer, ServerProcess, find_binary
from meterd.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0

PREAMBLE = """
import json, os, signal, sys, threading, time
from meterd.embedded import EmbeddedServer, _answers
server = EmbeddedServer.start()
facts = {"pid": server.pid, "watchdog": server._process._watchdog.pid,
         "directory": server._process.directory, "path": server.path}
print(json.dumps(facts), flush=True)
"""


def alive(pid: int) -> bool:
    """Whether the process still runs; an orphan that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def wait_gone(facts: dict[str, Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    left: list[str] = []
    while time.monotonic() < deadline:
        left = [name for name in ("pid", "watchdog") if alive(facts[name])]
        if os.path.exists(facts["directory"]):
            left.append("directory")
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(f"still there: {left}")


def facts_of(server: EmbeddedServer) -> dict[str, Any]:
    process = server._process
    return {
        "pid": process.pid,
        "watchdog": process._watchdog.pid,
        "directory": process.directory,
        "path": process.socket_path,
    }


def assert_gone(facts: dict[str, Any]) -> None:
    assert not alive(facts["pid"])
    assert not alive(facts["watchdog"])
    assert not os.path.exists(facts["directory"])


@contextlib.contextmanager
def program(body: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that has started a server, said so, and goes on with `body`."""
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + body],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # some end with a traceback on purpose
        text=True,
        start_new_session=True,
    ) as running:
        try:
            assert running.stdout is not None
            yield running, json.loads(running.stdout.readline())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def said(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def test_private_and_without_persistence() -> None:
    with EmbeddedServer.start() as server:
        directory = os.path.dirname(server.path)
        assert server.url == f"unix://{server.path}"
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert len(os.fsencode(server.path)) <= 100
        assert alive(server.pid)
        with redis.Redis.from_url(server.url) as client:
            assert client.info("server")["process_id"] == server.pid
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("appendonly") == {"appendonly": "no"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_close_leaves_nothing_and_can_be_repeated() -> None:
    server = EmbeddedServer.start()
    facts = facts_of(server)
    server.close()
    assert_gone(facts)
    assert server._process._watchdog.returncode == 0
    server.close()


def test_collected_server_is_closed() -> None:
    server = EmbeddedServer.start()
    facts = facts_of(server)
    del server
    gc.collect()
    assert_gone(facts)


def test_extra_args_win() -> None:
    with (
        EmbeddedServer.start(
            extra_args=("--maxmemory", "64mb", "--requirepass", "secret")
        ) as server,
        redis.Redis(unix_socket_path=server.path, password="secret") as client,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 2**20)}


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("", id="end of script"),
        pytest.param("sys.exit(3)", id="sys.exit"),
        pytest.param("raise RuntimeError", id="exception"),
        pytest.param("os._exit(0)", id="os._exit"),
        pytest.param("os.kill(os.getpid(), signal.SIGTERM)", id="SIGTERM"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", id="SIGKILL"),
        pytest.param("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", id="children ignored"),
    ],
)
def test_gone_when_the_process_ends(ending: str) -> None:
    with program(ending) as (running, facts):
        running.wait(WAIT_S)
        wait_gone(facts)


FORK = """
child = os.fork()
if child == 0:
    CHILD
os.waitpid(child, 0) if WAIT else None
print(child, _answers(server.path), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "end", ["server.close(); os._exit(0)", "sys.exit()", "del server; sys.exit()"]
)
def test_a_forked_child_cannot_close_it(end: str) -> None:
    with program(FORK.replace("CHILD", end).replace("WAIT", "True")) as (running, facts):
        assert said(running).endswith("True")
        running.kill()
        wait_gone(facts)


def test_a_forked_child_can_use_it_but_does_not_keep_it() -> None:
    use = "ok = _answers(server.path); print('child', ok, flush=True); time.sleep(60)"
    with program(FORK.replace("CHILD", use).replace("WAIT", "False")) as (running, facts):
        lines = {said(running), said(running)}
        assert "child True" in lines
        child = next(int(line.split()[0]) for line in lines if not line.startswith("child"))
        running.kill()
        wait_gone(facts)
        assert alive(child)


def test_forks_during_starts_do_not_keep_it() -> None:
    body = """
children = []
def fork_often():
    for _ in range(30):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
        time.sleep(0.005)
thread = threading.Thread(target=fork_often)
thread.start()
more = [EmbeddedServer.start() for _ in range(3)]
thread.join()
print(json.dumps([s._process.directory for s in more]), flush=True)
time.sleep(60)
"""
    with program(body) as (running, facts):
        directories = json.loads(said(running))
        running.kill()
        wait_gone(facts)
        deadline = time.monotonic() + WAIT_S
        while any(map(os.path.exists, directories)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_ctrl_c_is_left_to_the_process() -> None:
    body = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignored"
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.2)
    print(_answers(server.path), flush=True)
"""
    with program(body) as (running, facts):
        assert said(running) == "ready"
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the whole group
        assert said(running) == "True"
        running.wait(WAIT_S)
        wait_gone(facts)


def test_outlives_the_thread_that_started_it() -> None:
    started: list[EmbeddedServer] = []
    thread = threading.Thread(target=lambda: started.append(EmbeddedServer.start()))
    thread.start()
    thread.join()
    with started[0] as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_started_by_many_threads_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = list(pool.map(lambda _: EmbeddedServer.start(), range(4)))
    facts = [facts_of(server) for server in servers]
    assert len({server.url for server in servers}) == 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(EmbeddedServer.close, servers))
    for each in facts:
        assert_gone(each)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_close_without_the_watchdog(how: signal.Signals) -> None:
    server = EmbeddedServer.start()
    facts = facts_of(server)
    os.kill(facts["watchdog"], how)
    server._process._watchdog.wait(WAIT_S)
    server.close()
    wait_gone(facts)


def test_close_after_the_server_died() -> None:
    server = EmbeddedServer.start()
    facts = facts_of(server)
    os.kill(server.pid, signal.SIGKILL)
    server.close()
    assert_gone(facts)


def test_close_while_the_server_is_stopped() -> None:
    server = EmbeddedServer.start()
    facts = facts_of(server)
    os.kill(server.pid, signal.SIGSTOP)
    server.close()
    assert_gone(facts)


def test_launch_after_kill_keeps_socket_and_files() -> None:
    process = ServerProcess(find_binary())
    try:
        process.launch()
        first = process.pid
        Path(process.directory, "mine").touch()
        process.kill()
        assert not alive(first)
        process.launch()
        assert process.pid not in (0, first)
        assert Path(process.directory, "mine").exists()
    finally:
        process.close()
    with pytest.raises(Unavailable, match="closed"):
        process.launch()


def test_long_temporary_directory_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedServer.start() as server:
        assert not server.path.startswith(str(long))


def test_odd_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Path("/tmp") / f'm "%41\\é {os.getpid()}'
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    try:
        with EmbeddedServer.start() as server, redis.Redis.from_url(server.url) as client:
            assert server.path.startswith(str(odd))
            assert client.ping()
    finally:
        odd.rmdir()
