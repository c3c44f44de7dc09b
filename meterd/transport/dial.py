"""How one connection is opened: by redis-py (TCP, TLS, AUTH, HELLO, SELECT), never with a retry.

A `Dialer` turns a node into an unconnected redis-py connection, sync or async, and words what went
wrong while opening it. It holds credentials, so it has no useful `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis
import redis.asyncio.connection as aio
import redis.connection as sync
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    DataError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from meterd.errors import PolicyError
from meterd.transport.base import Node, NotSent, Rejected
from meterd.transport.url import Endpoint

# What an injected client may have set that is the transport's to decide.
_OURS = (
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
    "max_connections",
    "socket_timeout",
    "socket_connect_timeout",
    "cache",
    "cache_config",
    "himport_registry",
)


class Dialer:
    """Makes connections of one class with fixed arguments; the node's address comes on top."""

    __slots__ = ("_arguments", "_connection_class", "_unix_class", "addressed")

    def __init__(
        self,
        connection_class: Any,
        unix_class: Any,
        arguments: Mapping[str, Any],
        *,
        addressed: bool = True,
    ) -> None:
        self._connection_class = connection_class
        self._unix_class = unix_class
        self._arguments = dict(arguments)
        self.addressed = addressed

    @property
    def streams(self) -> bool:
        """Whether asyncio connections are of redis-py's own kind, on streams to be taken over."""
        own = (aio.Connection, aio.SSLConnection, aio.UnixDomainSocketConnection)
        return self._connection_class in own

    def connection(self, node: Node, seconds: float | None) -> Any:
        """A connection not open yet; `seconds` bounds the connect and each step of the login."""
        arguments = self._arguments
        if self.addressed:
            if node.path:
                arguments = {"path": node.path, **arguments}
            else:
                arguments = {"host": node.host, "port": node.port, **arguments}
        return (self._unix_class if node.path else self._connection_class)(
            socket_timeout=seconds, socket_connect_timeout=seconds, **arguments
        )


def dialer(endpoint: Endpoint, *, asynchronous: bool, sentinel: bool = False) -> Dialer:
    """For the servers of `endpoint`, or with `sentinel=True` for the sentinels that watch them."""
    arguments: dict[str, Any] = {
        "username": endpoint.sentinel_username if sentinel else endpoint.username,
        "password": endpoint.sentinel_password if sentinel else endpoint.password,
        "db": 0 if sentinel else endpoint.db,
        "protocol": endpoint.protocol,
        # No CLIENT SETINFO: two round trips for every new connection.
        "driver_info": None,
        **dict(endpoint.tls or ()),
    }
    module: Any = aio if asynchronous else sync
    plain = module.Connection if endpoint.tls is None else module.SSLConnection
    return Dialer(plain, module.UnixDomainSocketConnection, arguments)


def injected(client: Any, *, asynchronous: bool) -> tuple[Node, str, Dialer]:
    """Node, URL (no password) and dialer of a redis-py client, or `PolicyError` with the reason."""
    wanted = redis.asyncio.Redis if asynchronous else redis.Redis
    name = "redis.asyncio.Redis" if asynchronous else "redis.Redis"
    if not isinstance(client, wanted):
        hint = ""
        if isinstance(client, (redis.RedisCluster, redis.asyncio.RedisCluster)):
            hint = "; for a cluster give its URL instead: redis+cluster://host:port"
        elif isinstance(client, (redis.Redis, redis.asyncio.Redis)):
            hint = "; Meter takes redis.Redis, AsyncMeter takes redis.asyncio.Redis"
        raise PolicyError(f"client= must be a {name}, not {type(client).__qualname__}{hint}")
    pool: Any = client.connection_pool
    arguments = dict(pool.connection_kwargs)
    if hasattr(pool, "sentinel_manager"):
        raise PolicyError(
            "client= uses redis-py's sentinel pool, which cannot be bounded in time; "
            "give its URL instead: redis+sentinel://host:26379/name"
        )
    retries = getattr(arguments.get("retry"), "get_retries", lambda: 0)()
    if retries or arguments.get("retry_on_error") or arguments.get("retry_on_timeout"):
        backoff = NoBackoff.__name__
        raise PolicyError(
            "client= retries on its own, so one charge could reach the server several times; make "
            f"it with {name}(..., retry=Retry({backoff}(), 0)) and without retry_on_error or "
            "retry_on_timeout, or give the URL instead"
        )
    for key in _OURS:
        arguments.pop(key, None)
    node = Node(
        str(arguments.get("host") or "localhost"),
        int(arguments.get("port") or 6379),
        str(arguments.get("path") or ""),
    )
    endpoint = Endpoint(
        "standalone",
        (node,),
        db=int(arguments.get("db") or 0),
        username=arguments.get("username"),
        tls=()
        if issubclass(pool.connection_class, (sync.SSLConnection, aio.SSLConnection))
        else None,
    )
    connection_class = pool.connection_class
    return (
        node,
        endpoint.url,
        Dialer(connection_class, connection_class, arguments, addressed=False),
    )


def connect_failure(error: BaseException, where: str) -> NotSent:
    """What an exception out of `connect()` means; nothing was sent in any case."""
    if isinstance(error, NotSent):
        return error
    if isinstance(error.__cause__, RedisError):
        # Over unix sockets redis.asyncio wraps what the login said once more.
        error = error.__cause__
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
        return Rejected(f"{where} refused the login ({error}); check user and password")
    if isinstance(error, InvalidResponse):
        return Rejected(f"{where} answers, but not as a Redis or Valkey server does ({error})")
    if isinstance(error, (ResponseError, DataError)):
        return Rejected(f"{where} refused the connection's set-up ({error})")
    if "WRONG_VERSION_NUMBER" in str(error):
        return Rejected(f"{where} does not speak TLS ({error}); without TLS write redis://")
    if isinstance(error, (RedisTimeout, TimeoutError)):
        return NotSent(f"cannot connect to {where} in time")
    return NotSent(f"cannot connect to {where}: {error or type(error).__name__}")
