"""One open connection of a synchronous transport: write a request, read its replies, by a deadline.

redis-py opens the connection. For the exchange itself the socket is taken over: deadlines are then
exact however slowly bytes trickle in, and a failed write is known to have written nothing or
something. Connections without a socket (in-process fakes) go through redis-py's own methods.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, NoReturn

import hiredis
from redis.connection import DefaultParser
from redis.exceptions import InvalidResponse, RedisError

from meterd.transport.base import MaybeSent, NotSent
from meterd.transport.replies import GARBAGE, is_reply

_MORE = object()
_READ_SIZE = 32768
_PUSH = hiredis.PushNotification
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0)
# How long a read may block without a look at the deadline: a jiffy, as the kernel counts in those.
_BLOCK_S = 0.004
_MARGIN_S = 0.02  # what is nearer than that is waited for with `poll`, to the millisecond
_TIMEVAL = struct.pack("@ll", 0, int(_BLOCK_S * 1e6))


class Unwritten(NotSent):
    """The connection turned out dead before the first byte was written: take another one."""


class Link:
    """Owned by one call at a time. After any exception out of `exchange` it must be closed."""

    __slots__ = ("_connection", "home", "stale", "unsettled", "where")

    def __init__(self, connection: Any, where: str) -> None:
        self._connection = connection
        self.where = where
        self.home: Any = None  # the pool's generation it belongs to
        # stale(0): true when the server closed it, or when something unread waits in it.
        self.stale: Callable[[float], object] = self._unread
        # True when something was read beyond the replies asked for.
        self.unsettled: Callable[[], bool] = lambda: False

    def _unread(self, timeout: float) -> object:
        try:
            return self._connection.can_read(timeout)
        except (RedisError, OSError):
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

    def exchange_each(self, packed: bytes, replies: int, deadline: float) -> list[Any]:
        """As `exchange`, but what has come is kept: a `MaybeSent` stands for each lost reply."""
        answers: list[Any] = []
        connection = self._connection
        try:
            connection.send_packed_command([packed])
            while len(answers) < replies:
                answers.append(self._read())
        except (RedisError, OSError) as error:
            return self._with_lost(
                answers, replies, f"lost the connection to {self.where} ({error})"
            )
        return answers

    def _with_lost(self, answers: list[Any], replies: int, reason: str) -> list[Any]:
        return answers + [MaybeSent(reason) for _ in range(replies - len(answers))]

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
    """A TCP or unix socket, which never makes anybody wait beyond a deadline.

    It is written to without waiting. Where the kernel can end a read after a while, a read waits
    for the reply by itself: one system call, with no `poll` before it. Otherwise, and for what
    takes longer than that, `poll` waits. What every call asks for is kept as bound methods.
    """

    __slots__ = ("_buffer", "_feed", "_gets", "_patient", "_poll", "_reader", "_recv", "_socket")

    def __init__(self, connection: Any, where: str, taken: socket.socket) -> None:
        super().__init__(connection, where)
        self._socket = taken
        self._buffer = bytearray(_READ_SIZE)
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_MORE,
        )
        self._feed: Any = self._reader.feed
        self._gets = self._reader.gets
        self._recv = taken.recv_into
        self.unsettled = self._reader.has_data
        self._ready()

    def _ready(self) -> None:
        self._patient = _ends_reads(self._socket)
        self._socket.setblocking(self._patient)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        self._poll = self.stale = poller.poll

    def exchange(self, packed: bytes, replies: int, deadline: float) -> Any:
        self._write(packed, deadline)
        try:
            if self._patient and deadline - monotonic() > _MARGIN_S:
                try:
                    self._feed(self._buffer, 0, self._recv(self._buffer) or self._closed())
                except BlockingIOError:
                    self._fill(deadline)
            else:
                self._fill(deadline)
            reply = self._gets()
            if replies == 1 and reply.__class__ is bytes:
                return reply
            return self._gathered(reply, replies, deadline)
        except OSError as error:
            raise MaybeSent(f"lost the connection to {self.where} ({error})") from error
        except GARBAGE as error:
            raise MaybeSent(f"{self.where} sent what no Redis sends ({error})") from error

    def exchange_each(self, packed: bytes, replies: int, deadline: float) -> list[Any]:
        self._write(packed, deadline)
        answers: list[Any] = []
        gets = self._gets
        try:
            while len(answers) < replies:
                reply = gets()
                if reply is _MORE:
                    self._fill(deadline)
                elif reply.__class__ is not _PUSH:
                    answers.append(reply)
        except MaybeSent as error:
            return self._with_lost(answers, replies, str(error))
        except OSError as error:
            reason = f"lost the connection to {self.where} ({error})"
            return self._with_lost(answers, replies, reason)
        except GARBAGE as error:
            reason = f"{self.where} sent what no Redis sends ({error})"
            return self._with_lost(answers, replies, reason)
        return answers

    def _gathered(self, reply: Any, replies: int, deadline: float) -> Any:
        """All replies, of which `reply` is the first to be had."""
        answers: list[Any] = []
        while True:
            if reply is _MORE:
                self._fill(deadline)
            elif reply.__class__ is not _PUSH:
                if replies == 1:
                    return reply
                answers.append(reply)
                if len(answers) == replies:
                    return answers
            reply = self._gets()

    def _write(self, packed: bytes, deadline: float) -> None:
        try:
            sent = self._socket.send(packed, _AT_ONCE)
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
                    sent = self._socket.send(rest, _AT_ONCE)
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
            size = self._recv(self._buffer, 0, _AT_ONCE)
        except BlockingIOError:
            return  # woken for nothing: wait again
        self._feed(self._buffer, 0, size or self._closed())

    def _closed(self) -> NoReturn:
        raise MaybeSent(f"{self.where} closed the connection before replying")


def _ends_reads(taken: socket.socket) -> bool:
    """Has the kernel end a read that takes too long; False where it may not do so.

    A signal starts the time of a read anew. So it has to be short.
    """
    if not (_AT_ONCE and sys.platform == "linux"):
        return False
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
    except OSError:
        return False
    return True


class TimedLink(SocketLink):
    """A socket with a timeout of its own: TLS, and systems without `poll`."""

    __slots__ = ()

    def _ready(self) -> None:
        self._patient = False  # every call sets its timeout
        self.stale = self._stale

    def _stale(self, timeout: float) -> object:
        pending = getattr(self._socket, "pending", None)
        if pending is not None and pending():
            return True
        if hasattr(select, "poll"):
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            return poller.poll(timeout)
        return select.select([self._socket], (), (), timeout)[0]

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
            size = self._recv(self._buffer)
        except TimeoutError:
            raise MaybeSent(f"no reply from {self.where} in time") from None
        self._feed(self._buffer, 0, size or self._closed())


def open_link(connection: Any, where: str) -> Link:
    """Wrap a redis-py connection that has just been opened and is at rest."""
    taken = getattr(connection, "_sock", None)
    if not isinstance(taken, socket.socket):
        return Link(connection, where)
    if isinstance(taken, ssl.SSLSocket) or not hasattr(select, "poll"):
        return TimedLink(connection, where, taken)
    return SocketLink(connection, where, taken)
