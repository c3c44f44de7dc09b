"""URLs to endpoints: the only place that knows how a server is spelled. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from meterd.errors import PolicyError
from meterd.transport.base import Kind, Node

_Refuse: TypeAlias = Callable[[str], NoReturn]

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("standalone", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
_SSL_OPTIONS = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_EXAMPLES = (
    "redis://host:6379/0, rediss://user:password@host:6379/0, unix:///run/valkey.sock?db=0, "
    "redis+cluster://host1:7000,host2:7000 or redis+sentinel://host1:26379,host2:26379/mymaster/0"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the servers are and how to log in. Secrets are kept out of `repr` and out of `url`.

    `nodes` are the server itself (standalone), the seeds (cluster) or the sentinels. `tls` holds
    the `ssl_*` options as redis-py takes them, or None for a plain connection.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    protocol: int = 2
    tls: tuple[tuple[str, str | bool], ...] | None = None
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The URL again, normalised, without passwords and without TLS files."""
        user = f"{self.username}@" if self.username else ""
        first = self.nodes[0]
        if first.path:
            return f"unix://{user}{first.path}" + (
                f"?{urlencode({'db': self.db})}" if self.db else ""
            )
        scheme = "redis" if self.tls is None else "rediss"
        if self.kind != "standalone":
            scheme += f"+{self.kind}"
        hosts = ",".join(map(str, self.nodes))
        service = f"/{self.service}" if self.service else ""
        db = "" if self.kind == "cluster" else f"/{self.db}"
        return f"{scheme}://{user}{hosts}{service}{db}"


def redact(url: str) -> str:
    """The URL as given, with every password replaced by `***`; works on malformed ones too."""
    head, separator, rest = url.partition("://")
    if not separator:
        head, rest = "", url
    address, question, query = rest.partition("?")
    user_info, at, hosts = address.rpartition("@")
    if at:
        user, colon, _ = user_info.partition(":")
        address = f"{user}{':***' if colon else ''}@{hosts}"
    shown = [
        f"{name}=***" if "password" in name.lower() else name + equals + value
        for name, equals, value in (part.partition("=") for part in query.split("&"))
    ]
    return f"{head}{separator}{address}{question}{'&'.join(shown)}"


def parse_url(url: str | None) -> Endpoint:
    """An `Endpoint`, or `PolicyError` that shows the URL (redacted) and what to write instead."""
    if not isinstance(url, str):
        raise PolicyError(f"the server URL must be text such as {_EXAMPLES}; got {url!r}")
    given = redact(url)

    def refuse(problem: str) -> NoReturn:
        raise PolicyError(f"cannot use the server URL {given!r}: {problem}")

    try:
        parts = urlsplit(url.strip())
    except ValueError as error:
        refuse(f"{error}; write one such as {_EXAMPLES}")
    if parts.scheme not in _SCHEMES:
        what = f"scheme {parts.scheme!r} is not known" if parts.scheme else "it has no scheme"
        refuse(f"{what}; write one such as {_EXAMPLES}")
    if parts.fragment or "#" in url:
        refuse("'#' must be written as %23 (in a password, say)")
    kind, secure = _SCHEMES[parts.scheme]
    user_info, _, hosts = parts.netloc.rpartition("@")
    username, _, password = user_info.partition(":")
    options = _options(parts, kind, secure, refuse)
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    service = ""
    nodes: tuple[Node, ...]
    if parts.scheme == "unix":
        if hosts or not segments:
            refuse(
                "a unix socket needs an absolute path after three slashes: unix:///run/valkey.sock"
            )
        nodes = (Node("", 0, unquote(parts.path)),)
        segments = []
    else:
        nodes = _addresses(hosts, 26379 if kind == "sentinel" else 6379, refuse)
        if kind == "standalone" and len(nodes) > 1:
            refuse("several hosts need redis+cluster:// or redis+sentinel://")
    if kind == "sentinel":
        if not segments:
            refuse("name the primary after the hosts: redis+sentinel://host:26379/mymaster")
        service, *segments = segments
    if len(segments) > 1 or (segments and "db" in options):
        refuse("the path holds one database number, given once, and nothing else")
    db = _whole("the database", segments[0] if segments else options.pop("db", "0"), refuse)
    if kind == "cluster" and db:
        refuse("a cluster has database 0 only; leave the number out")
    protocol = _whole("protocol", options.pop("protocol", "2"), refuse)
    if protocol not in (2, 3):
        refuse("protocol must be 2 or 3")
    return Endpoint(
        kind=kind,
        nodes=nodes,
        db=db,
        username=unquote(username) or None,
        password=unquote(password) or None,
        protocol=protocol,
        tls=_tls(options, refuse) if secure else None,
        service=service,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _options(parts: SplitResult, kind: Kind, secure: bool, refuse: _Refuse) -> dict[str, str]:
    """The query, every name checked against what this kind of URL takes."""
    allowed = ["protocol"]
    if kind != "cluster":
        allowed.append("db")
    if kind == "sentinel":
        allowed.extend(_SENTINEL_OPTIONS)
    if secure:
        allowed.extend(_SSL_OPTIONS)
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _SSL_OPTIONS and not secure:
            refuse(f"{name} needs TLS: write {_secure(parts.scheme)} instead of {parts.scheme}://")
        if name not in allowed:
            refuse(f"option {name!r} is not known here; allowed are {', '.join(sorted(allowed))}")
        if name in options:
            refuse(f"option {name!r} is given twice")
        options[name] = value
    return options


def _addresses(hosts: str, default_port: int, refuse: _Refuse) -> tuple[Node, ...]:
    """`h1:1,h2,[::1]:3` -> nodes; a missing host is localhost when it stands alone."""
    nodes = []
    for item in hosts.split(","):
        if item.startswith("["):
            host, bracket, port = item[1:].partition("]")
            if not bracket or (port and not port.startswith(":")):
                refuse(f"{item!r} is not [address]:port")
            port = port[1:]
        else:
            host, _, port = item.partition(":")
            if ":" in port:
                refuse(f"{item!r} is not host:port; an IPv6 address stands in brackets: [::1]:6379")
        if not host:
            if hosts not in ("", f":{port}"):
                refuse("there is an empty host name in the list")
            host = "localhost"
        number = _whole("the port", port or str(default_port), refuse)
        if not 1 <= number <= 65535:
            refuse(f"the port must be 1 to 65535, not {number}")
        nodes.append(Node(unquote(host), number))
    return tuple(nodes)


def _tls(options: dict[str, str], refuse: _Refuse) -> tuple[tuple[str, str | bool], ...]:
    chosen: list[tuple[str, str | bool]] = []
    for name in _SSL_OPTIONS:
        if name not in options:
            continue
        value = options[name]
        if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            refuse(f"ssl_cert_reqs must be none, optional or required, not {value!r}")
        if name == "ssl_check_hostname":
            if value.lower() not in _BOOLEANS:
                refuse(f"ssl_check_hostname must be true or false, not {value!r}")
            chosen.append((name, _BOOLEANS[value.lower()]))
        else:
            chosen.append((name, value))
    return tuple(chosen)


def _secure(scheme: str) -> str:
    return (
        "rediss://host:port" if scheme == "unix" else scheme.replace("redis", "rediss", 1) + "://"
    )


def _whole(what: str, text: str, refuse: _Refuse) -> int:
    if not (text.isascii() and text.isdigit()):
        refuse(f"{what} must be a whole number, not {text!r}")
    return int(text)
