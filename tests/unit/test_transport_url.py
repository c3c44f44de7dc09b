"""URLs become endpoints, or a `PolicyError` that says what to write instead."""

from __future__ import annotations

import pytest

from meterd.errors import PolicyError
from meterd.transport import Endpoint, Node, parse_url, redact
from meterd.transport.routing import key_slot


def node(host: str = "localhost", port: int = 6379) -> Node:
    return Node(host, port)


GOOD = {
    "redis://": (Endpoint("standalone", (node(),)), "redis://localhost:6379/0"),
    "redis://:7000": (Endpoint("standalone", (node(port=7000),)), "redis://localhost:7000/0"),
    "redis://h/5": (Endpoint("standalone", (node("h"),), db=5), "redis://h:6379/5"),
    "redis://h?db=5": (Endpoint("standalone", (node("h"),), db=5), "redis://h:6379/5"),
    " redis://h ": (Endpoint("standalone", (node("h"),)), "redis://h:6379/0"),
    "redis://[::1]:7000/1": (
        Endpoint("standalone", (node("::1", 7000),), db=1),
        "redis://[::1]:7000/1",
    ),
    "redis://ana:p%40ss@h": (
        Endpoint("standalone", (node("h"),), username="ana", password="p@ss"),
        "redis://ana@h:6379/0",
    ),
    "redis://:p@ss:word@h": (
        Endpoint("standalone", (node("h"),), password="p@ss:word"),
        "redis://h:6379/0",
    ),
    "redis://h?protocol=3": (
        Endpoint("standalone", (node("h"),), protocol=3),
        "redis://h:6379/0",
    ),
    "rediss://h?ssl_ca_certs=%2Fca.pem&ssl_cert_reqs=none&ssl_check_hostname=false": (
        Endpoint(
            "standalone",
            (node("h"),),
            tls=(
                ("ssl_ca_certs", "/ca.pem"),
                ("ssl_cert_reqs", "none"),
                ("ssl_check_hostname", False),
            ),
        ),
        "rediss://h:6379/0",
    ),
    "unix:///run/valkey.sock": (
        Endpoint("standalone", (Node("", 0, "/run/valkey.sock"),)),
        "unix:///run/valkey.sock",
    ),
    "unix://ana:secret@/run/a%20b.sock?db=3": (
        Endpoint(
            "standalone",
            (Node("", 0, "/run/a b.sock"),),
            db=3,
            username="ana",
            password="secret",
        ),
        "unix://ana@/run/a b.sock?db=3",
    ),
    "redis+cluster://a:7000,b,[::1]:7002": (
        Endpoint("cluster", (node("a", 7000), node("b"), node("::1", 7002))),
        "redis+cluster://a:7000,b:6379,[::1]:7002",
    ),
    "rediss+cluster://a/0": (Endpoint("cluster", (node("a"),), tls=()), "rediss+cluster://a:6379"),
    "redis+sentinel://:pw@a,b:26380/mymaster/2?sentinel_username=s&sentinel_password=t": (
        Endpoint(
            "sentinel",
            (node("a", 26379), node("b", 26380)),
            db=2,
            password="pw",
            service="mymaster",
            sentinel_username="s",
            sentinel_password="t",
        ),
        "redis+sentinel://a:26379,b:26380/mymaster/2",
    ),
    "rediss+sentinel://a/mymaster": (
        Endpoint("sentinel", (node("a", 26379),), tls=(), service="mymaster"),
        "rediss+sentinel://a:26379/mymaster/0",
    ),
}


@pytest.mark.parametrize("url", GOOD)
def test_a_url_becomes_an_endpoint(url: str) -> None:
    endpoint, shown = GOOD[url]
    assert parse_url(url) == endpoint
    assert parse_url(url).url == shown


@pytest.mark.parametrize("url", [url for url in GOOD if "secret" not in url and "p@" not in url])
def test_the_url_shown_parses_again(url: str) -> None:
    shown = parse_url(url).url
    assert parse_url(shown).url == shown


BAD = {
    "": "it has no scheme",
    "localhost:6379": "scheme 'localhost' is not known",
    "localhost": "it has no scheme",
    "http://h": "scheme 'http' is not known",
    "redis+clusters://h": "is not known",
    "redis://h:port": "the port must be a whole number, not 'port'",
    "redis://h:70000": "the port must be 1 to 65535, not 70000",
    "redis://::1": "brackets",
    "redis://[::1": "Invalid IPv6",
    "redis://a,b": "redis\\+cluster:// or redis\\+sentinel://",
    "redis+cluster://a,,b": "empty host name",
    "redis://h/zero": "the database must be a whole number, not 'zero'",
    "redis://h/-1": "the database must be a whole number",
    "redis://h/0/1": "one database number",
    "redis://h/0?db=1": "one database number, given once",
    "redis://h?db=0&db=1": "given twice",
    "redis://h?timeout=5": "allowed are db, protocol",
    "redis://h?protocol=4": "protocol must be 2 or 3",
    "redis://h?ssl_ca_certs=x": "write rediss:// instead of redis://",
    "redis+cluster://h?ssl_certfile=x": "write rediss\\+cluster:// instead",
    "unix:///s?ssl_certfile=x": "write rediss://host:port instead",
    "rediss://h?ssl_cert_reqs=maybe": "none, optional or required, not 'maybe'",
    "rediss://h?ssl_check_hostname=maybe": "true or false",
    "redis+cluster://h/1": "database 0 only",
    "redis+cluster://h?db=1": "option 'db' is not known here",
    "redis+sentinel://h": "name the primary",
    "redis+sentinel://h/m/1/2": "one database number",
    "redis://h?sentinel_password=x": "option 'sentinel_password' is not known",
    "unix://valkey.sock": "three slashes",
    "unix://": "three slashes",
    "redis://:pass#word@h": "%23",
}


@pytest.mark.parametrize("url", BAD)
def test_a_malformed_url_is_refused_with_words(url: str) -> None:
    with pytest.raises(PolicyError, match=BAD[url]):
        parse_url(url)


def test_none_is_refused_with_an_example() -> None:
    with pytest.raises(PolicyError, match="redis://host:6379/0"):
        parse_url(None)


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://ana:{SECRET}@h:bad",
        f"redis://:{SECRET}@h?nonsense=1",
        f"http://ana:{SECRET}@h",
        f"ana:{SECRET}@h",
        f"redis://:a@{SECRET}@h:bad",
        f"redis://:{SECRET}#x@h",
        f"redis+sentinel://h?sentinel_password={SECRET}",
        f"redis://h?password={SECRET}",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)
    assert SECRET not in redact(url)


def test_no_repr_shows_a_password() -> None:
    endpoint = parse_url(f"redis+sentinel://u:{SECRET}@h/m?sentinel_password={SECRET}")
    assert endpoint.password == endpoint.sentinel_password == SECRET
    assert SECRET not in repr(endpoint)
    assert SECRET not in endpoint.url


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 12739),
        (b"{user1000}.following", 3443),
        (b"foo{}{bar}", 8363),
        (b"foo{{bar}}zap", 4015),
        (b"foo{bar}{zap}", 5061),
        (b"foo{bar", 15278),
        (b"", 0),
        (b"{}", 15257),
    ],
)
def test_the_slot_of_a_key_as_servers_compute_it(key: bytes, slot: int) -> None:
    assert key_slot(key) == slot
