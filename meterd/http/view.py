"""The request as the core sees it: where it came from, who it says it is. No framework.

An address that a client writes into a header is believed only where a trusted proxy vouches for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

from meterd.errors import PolicyError
from meterd.timespec import shown

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class RequestView:
    """What functions of the request get under plain ASGI and WSGI.

    `peer`: the address at the other end of the connection, None if it has none. `header(name)`: a
    header's value, several of one name joined by commas, or None. `native`: the framework's own
    request; under plain ASGI the scope, under WSGI the environ (`plain`). `trusted`: networks of
    proxies.
    """

    method: str
    path: str
    peer: str | None
    header: Callable[[str], str | None]
    native: Any = None
    trusted: Sequence[Network] = field(default=(), repr=False)
    plain: bool = False

    @property
    def given(self) -> Any:
        """What functions of the request get: the framework's own, or this where there is none."""
        return self if self.plain else self.native

    @property
    def client(self) -> str | None:
        """The client's address: the peer's, or what trusted proxies say of it."""
        return client_address(
            self.peer,
            forwarded_for=self.header("x-forwarded-for"),
            forwarded=self.header("forwarded"),
            trusted=self.trusted,
        )


@lru_cache(maxsize=64)
def _networks(trusted_proxies: tuple[object, ...]) -> tuple[Network, ...]:
    found: list[Network] = []
    for one in trusted_proxies:
        try:
            if isinstance(one, bool | int):
                raise ValueError
            found.append(ip_network(one))  # type: ignore[arg-type]
        except ValueError as error:
            raise PolicyError(
                f"trusted_proxies: {shown(one)} is no network; "
                'allowed: addresses and networks such as "10.0.0.0/8"'
            ) from error
    return tuple(found)


def networks(trusted_proxies: Iterable[object]) -> tuple[Network, ...]:
    """Addresses and networks, checked; raises `PolicyError`."""
    if isinstance(trusted_proxies, str | bytes):
        raise PolicyError(
            f"trusted_proxies: {shown(trusted_proxies)} is one text; give a list of networks"
        )
    return _networks(tuple(trusted_proxies))


def client_address(
    peer: str | None,
    *,
    forwarded_for: str | None = None,
    forwarded: str | None = None,
    trusted: Sequence[Network] = (),
) -> str | None:
    """The address of the client, as far as it can be believed.

    From the right, X-Forwarded-For (`forwarded_for`) and Forwarded are read as long as whoever
    wrote an entry is a trusted proxy; the first address that is none is the client's. An entry
    that is no address ends the walk at the proxy that sent it. Where both fields are there and
    disagree, one of them is the client's invention: then the peer counts.
    """
    start = _address(peer)
    if start is None:
        return peer
    if not _within(start, trusted):
        return str(start)
    found: set[Address] = set()
    if forwarded_for is not None:
        found.add(_walk(start, [_node(one) for one in forwarded_for.split(",")], trusted))
    if forwarded is not None:
        found.add(_walk(start, _forwarded_nodes(forwarded), trusted))
    return str(found.pop() if len(found) == 1 else start)


def client_subject(address: str | None) -> str:
    """Who is charged for a request without a subject: "ip:203.0.113.7".

    IPv6 addresses count by their /64, which is what one customer of a network provider has.
    """
    parsed = _address(address)
    if isinstance(parsed, IPv6Address):
        return f"ip:{IPv6Address(int(parsed) >> 64 << 64)}"
    if parsed is not None:
        return f"ip:{parsed}"
    known = "".join(c for c in address or "" if c.isalnum() or c in "._-")[:64]
    return f"ip:{known or 'unknown'}"


def api_key(header: Callable[[str], str | None]) -> str | None:
    """The API key that a request carries: `Authorization: Bearer ...`, else `X-API-Key`."""
    scheme, _, token = (header("authorization") or "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return (header("x-api-key") or "").strip() or None


def _address(text: str | None) -> Address | None:
    if text is None:
        return None
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _within(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in trusted)


def _walk(start: Address, nodes: Sequence[str | None], trusted: Sequence[Network]) -> Address:
    at = start
    for node in reversed(nodes):
        found = _address(node)
        if found is None:
            break
        at = found
        if not _within(at, trusted):
            break
    return at


def _node(text: str) -> str | None:
    """The address in "192.0.2.1", "192.0.2.1:80", "[2001:db8::1]:80" or "2001:db8::1"."""
    text = text.strip()
    if text.startswith("["):
        inside, closed, _ = text[1:].partition("]")
        return inside if closed else None
    if text.count(":") == 1:
        text = text.partition(":")[0]
    return text


def _forwarded_nodes(value: str) -> list[str | None]:
    """`for=` of every element of a Forwarded header; None for an element without one."""
    nodes: list[str | None] = []
    for element in _split(value, ","):
        node = None
        for pair in _split(element, ";"):
            name, equals, given = pair.strip().partition("=")
            if equals and name.strip().lower() == "for":
                node = _node(_unquoted(given.strip()))
        nodes.append(node)
    return nodes


def _split(text: str, at: str) -> list[str]:
    """Parts between separators that do not stand in quotes."""
    parts, current, quoted, escaped = [], "", False, False
    for character in text:
        if character == at and not quoted:
            parts.append(current)
            current = ""
            continue
        if character == '"' and not escaped:
            quoted = not quoted
        escaped = character == "\\" and quoted and not escaped
        current += character
    return [*parts, current]


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text
