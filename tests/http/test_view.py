"""Who sent a request: addresses that are believed and those that are not, and API keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd import PolicyError
from meterd.http import api_key, client_address, client_subject
from meterd.http.view import networks

PROXIES = networks(["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.9"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        # no proxy of ours: whatever it says
        ("203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("203.0.113.7", "10.0.0.1", "203.0.113.7"),
        # a proxy of ours vouches for the last entry, and for no other
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 198.51.100.2", "198.51.100.2"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.2, 10.9.9.9", "198.51.100.2"),
        ("192.0.2.9", "198.51.100.2,192.0.2.9,10.9.9.9", "198.51.100.2"),
        # all of them are proxies
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        # what is no address ends the walk
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", ",", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, _hidden, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2, 999.1.1.1", "10.0.0.1"),
        # ports, brackets, zones, mapped addresses
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "2001:db8:0:0::7", "2001:db8::7"),
        ("10.0.0.1", "[2001:db8::7", "10.0.0.1"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("2001:db8:ffff::1", "fe80::1%eth0", "fe80::1"),
        # no address at all
        (None, "198.51.100.1", None),
        ("testclient", "198.51.100.1", "testclient"),
        ("10.0.0.1", None, "10.0.0.1"),
    ],
)
def test_x_forwarded_for(peer: str | None, forwarded_for: str | None, client: str | None) -> None:
    assert client_address(peer, forwarded_for=forwarded_for, trusted=PROXIES) == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('For="[2001:db8:cafe::17]:4711";proto=https;by=10.0.0.1', "2001:db8:cafe::17"),
        ("for=1.1.1.1, for=198.51.100.1;proto=http, for=10.0.0.7", "198.51.100.1"),
        ('for="1.1.1.1, for=2.2.2.2"', "10.0.0.1"),  # a comma in quotes separates nothing
        ('for="198.51.100.1\\", for=2.2.2.2"', "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
        ("for=198.51.100.1, proto=https", "10.0.0.1"),
        ("for=_secret", "10.0.0.1"),
        ("for=unknown", "10.0.0.1"),
        ("", "10.0.0.1"),
        ('for="198.51.100.1', "10.0.0.1"),
    ],
)
def test_forwarded(forwarded: str, client: str) -> None:
    assert client_address("10.0.0.1", forwarded=forwarded, trusted=PROXIES) == client
    assert client_address("203.0.113.7", forwarded=forwarded, trusted=PROXIES) == "203.0.113.7"


def test_of_two_fields_that_disagree_neither_is_believed() -> None:
    said = {"forwarded_for": "198.51.100.1", "trusted": PROXIES}
    assert client_address("10.0.0.1", forwarded="for=198.51.100.1", **said) == "198.51.100.1"
    assert client_address("10.0.0.1", forwarded="for=203.0.113.99", **said) == "10.0.0.1"
    assert client_address("10.0.0.1", forwarded="", **said) == "10.0.0.1"


@given(st.text(max_size=80), st.none() | st.text(max_size=80))
def test_no_header_moves_a_client_without_a_proxy(said: str, other: str | None) -> None:
    found = client_address("203.0.113.7", forwarded_for=said, forwarded=other, trusted=PROXIES)
    assert found == "203.0.113.7"


@given(st.text(max_size=80))
def test_what_the_client_wrote_left_of_the_proxys_entry_does_not_count(forged: str) -> None:
    written = f"{forged}, 198.51.100.1"
    assert client_address("10.0.0.1", forwarded_for=written, trusted=PROXIES) == "198.51.100.1"


@pytest.mark.parametrize(
    "bad", ["10.0.0.0/8", b"10.0.0.0/8", ["10.0.0.1/8"], ["proxy"], [None], [1]]
)
def test_trusted_proxies_are_networks(bad: object) -> None:
    with pytest.raises(PolicyError, match="trusted_proxies"):
        networks(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("203.0.113.7", "ip:203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "ip:2001:db8:1:2::"),
        ("::ffff:203.0.113.7", "ip:203.0.113.7"),
        ("testclient", "ip:testclient"),
        ("a/b%20\n" + "c" * 200, "ip:ab20" + "c" * 60),
        ("", "ip:unknown"),
        (None, "ip:unknown"),
    ],
)
def test_the_subject_of_an_address(address: str | None, subject: str) -> None:
    assert client_subject(address) == subject


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"authorization": "Bearer mk_1"}, "mk_1"),
        ({"authorization": "bearer   mk_1 "}, "mk_1"),
        ({"authorization": "Bearer"}, None),
        ({"authorization": "Bearer "}, None),
        ({"authorization": "Basic bWs="}, None),
        ({"authorization": "Basic bWs=", "x-api-key": "mk_2"}, "mk_2"),
        ({"x-api-key": " mk_2 "}, "mk_2"),
        ({"x-api-key": " "}, None),
        ({"authorization": "Bearer mk_1", "x-api-key": "mk_2"}, "mk_1"),
    ],
)
def test_the_api_key_of_a_request(headers: dict[str, str], key: str | None) -> None:
    assert api_key(headers.get) == key
