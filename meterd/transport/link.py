"""One open connection of a synchronous transport: write a request, read its replies, by a deadline.

redis-py opens the connection. For the exchange itself the socket is taken over: deadlines are then
exact however slowly bytes trickle in, and a failed write is known to have written nothing or
something. Connections without a socket (in-process fakes) go through redis-py's own methods.
"""

from __future__ import annotations

import select
import socket
import ssl
from time import monotonic
from typing import Any

import hiredis
from redis.connection import DefaultParser
from redis.exceptions import InvalidResponse, RedisError

from meterd.transport.base import MaybeSent, NotSent
from meterd.transport.replies import GARBAGE, is_reply

_MORE = object()
_READ_SIZE = 32768


class Unwritten(NotSent):
    """The connection turned out dead before the first byte was written: take another one."""


class Link:
    """Owned by one call at a time. After any exception out of `exchange` it must be closed."""

    __slots__ = ("_connection", "home", "where")

    def __init__(self, connection: Any, where: str) -> None:
        self._connection = connection
        self.where = where
        self.home: Any = None  # the pool's generation it belongs to

    def fresh(self) -> bool:
        """False when the server closed it, or when something unread waits in it."""
        try:
            return not self._connection.can_read(0)
        except (RedisError, OSError):
            return False

    def settled(self) -> bool:
        """True when nothing was read beyond the replies asked for."""
        return True

    def exchange(self, packed: bytes, replies: int, deadline: float) -> Any:
        """The reply (a list when `replies > 1`), errors as values; `MaybeSent` or `Unwritten`."""
        connection = self._connection
        try:
            connection.send_packed_command([packed])
            answers = [self._read() for _ in range(replies)]
        except (RedisError, OSError) as error:
            raise MaybeSent(f"lost the connection to {self.where} ({error})") from error
        return answers[0] if replies == 1 else answers

    def _read(self) -> Any:
        try:
            return self._connection.read_response(disable_decoding=True)
        except RedisError as error:
            if is_reply(error):
                return error
            raise

    def close(self) -> None:
        """Never raises. In a forked child the parent's socket is only let go, not shut down."""
        try:
            self._connection.disconnect()
        except (RedisError, OSError, ValueError):
            return  # the link is forgotten either way


class SocketLink(Link):
    """A TCP or unix socket in non-blocking mode, waited for with `poll`."""

    __slots__ = ("_buffer", "_poll", "_reader", "_socket")

    def __init__(self, connection: Any, where: str, taken: socket.socket) -> None:
        super().__init__(connection, where)
        self._socket = taken
        self._buffer = bytearray(_READ_SIZE)
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_MORE,
        )
        self._ready()

    def _ready(self) -> None:
        self._socket.setblocking(False)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        self._poll = poller.poll

    def fresh(self) -> bool:
        return not self._poll(0)

    def settled(self) -> bool:
        return not self._reader.has_data()

    def exchange(self, packed: bytes, replies: int, deadline: float) -> Any:
        self._write(packed, deadline)
        gets = self._reader.gets
        answers: list[Any] = []
        try:
            while True:
                answer = gets()
                if answer is _MORE:
                    self._fill(deadline)
                elif answer.__class__ is not hiredis.PushNotification:
                    if replies == 1:
                        return answer
                    answers.append(answer)
                    if len(answers) == replies:
                        return answers
        except OSError as error:
            raise MaybeSent(f"lost the connection to {self.where} ({error})") from error
        except GARBAGE as error:
            raise MaybeSent(f"{self.where} sent what no Redis sends ({error})") from error

    def _write(self, packed: bytes, deadline: float) -> None:
        try:
            sent = self._socket.send(packed)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Unwritten(f"{self.where} closed the connection ({error})") from error
        if sent != len(packed):
            self._write_rest(memoryview(packed)[sent:], deadline, partly=bool(sent))

    def _write_rest(self, rest: memoryview, deadline: float, *, partly: bool) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        problem: object = "it took no more data before the deadline"
        try:
            while rest:
                if not poller.poll(max(0.0, (deadline - monotonic()) * 1000)):
                    break
                try:
                    sent = self._socket.send(rest)
                except BlockingIOError:
                    continue
                partly = True
                rest = rest[sent:]
        except OSError as error:
            problem = error
        if rest:
            kind = MaybeSent if partly else NotSent
            raise kind(f"{self.where} did not take the whole request ({problem})")

    def _fill(self, deadline: float) -> None:
        """Wait for bytes and hand them to the parser."""
        left = deadline - monotonic()
        if not self._poll(left * 1000 if left > 0 else 0):
            raise MaybeSent(f"no reply from {self.where} in time")
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return  # woken for nothing: wait again
        if not size:
            raise MaybeSent(f"{self.where} closed the connection before replying")
        self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do


class TimedLink(SocketLink):
    """A socket with a timeout of its own: TLS, and systems without `poll`."""

    __slots__ = ()

    def _ready(self) -> None:
        """Nothing to prepare: every call sets its timeout."""

    def fresh(self) -> bool:
        pending = getattr(self._socket, "pending", None)
        if pending is not None and pending():
            return False
        if hasattr(select, "poll"):
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            return not poller.poll(0)
        return not select.select([self._socket], (), (), 0)[0]

    def _write(self, packed: bytes, deadline: float) -> None:
        left = deadline - monotonic()
        if left <= 0:
            raise NotSent(f"no time left to write to {self.where}")
        self._socket.settimeout(left)
        try:
            self._socket.sendall(packed)
        except OSError as error:
            # TLS does not tell how much got out.
            raise MaybeSent(f"lost the connection to {self.where} ({error})") from error

    def _fill(self, deadline: float) -> None:
        left = deadline - monotonic()
        if left <= 0:
            raise MaybeSent(f"no reply from {self.where} in time")
        self._socket.settimeout(left)
        try:
            size = self._socket.recv_into(self._buffer)
        except TimeoutError:
            raise MaybeSent(f"no reply from {self.where} in time") from None
        if not size:
            raise MaybeSent(f"{self.where} closed the connection before replying")
        self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do


def open_link(connection: Any, where: str) -> Link:
    """Wrap a redis-py connection that has just been opened and is at rest."""
    taken = getattr(connection, "_sock", None)
    if not isinstance(taken, socket.socket):
        return Link(connection, where)
    if isinstance(taken, ssl.SSLSocket) or not hasattr(select, "poll"):
        return TimedLink(connection, where, taken)
    return SocketLink(connection, where, taken)
