"""Every contender does what it is compared for: it allows what fits, and refuses what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bench.core.census import Census, watch
from bench.core.effort import TINY
from bench.core.lab import Lab
from bench.core.raw import Raw
from bench.peers import AsyncPeer, Peer, Setting
from bench.peers.everybody import ASYNC, SYNC

# What other libraries warn of is their business.
pytestmark = pytest.mark.filterwarnings("ignore")

DECIDE = ("ours", "peer")  # the others answer something that is no decision


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(TINY) as made:
        yield made


@pytest.mark.parametrize("peer", SYNC, ids=lambda peer: peer.name)
def test_a_peer_allows_and_refuses(lab: Lab, peer: Peer) -> None:
    if peer.missing:
        pytest.skip(peer.missing)
    lab.tcp.flush()
    with peer.open(Setting(lab.tcp.url, lab.tcp.path)) as calls:
        for call in filter(None, (calls.one, calls.four)):
            answers = [call(n) for n in (0, 1, 0)]
            assert peer.role not in DECIDE or all(map(bool, answers))
        if calls.refused:
            assert [bool(calls.refused(0)) for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("peer", ASYNC, ids=lambda peer: peer.name)
def test_an_async_peer_allows_and_refuses(lab: Lab, peer: AsyncPeer) -> None:
    if peer.missing:
        pytest.skip(peer.missing)
    lab.tcp.flush()

    async def run() -> None:
        async with peer.open(Setting(lab.tcp.url, lab.tcp.path, 4)) as calls:
            for call in filter(None, (calls.one, calls.four)):
                answers = [await call(n) for n in (0, 1, 0)]
                assert peer.role not in DECIDE or all(map(bool, answers))
            if calls.refused:
                assert [bool(await calls.refused(0)) for _ in range(3)] == [True, False, False]

    asyncio.run(run())


def test_names_are_unique() -> None:
    for peers in (SYNC, ASYNC):
        names = [peer.name for peer in peers]
        assert len(set(names)) == len(names)


def test_a_peer_that_is_not_installed_says_so() -> None:
    absent = Peer("nobody", SYNC[0].open, ("surely-not-installed-anywhere",))
    assert absent.missing == "surely-not-installed-anywhere is not installed"


def test_the_census_tells_commands_from_what_scripts_call(lab: Lab) -> None:
    with Raw(lab.tcp.path) as raw:

        def work() -> None:
            raw.ask(b"SET", b"a", b"1")
            raw.ask(b"EVAL", b"redis.call('GET', KEYS[1]) redis.call('GET', KEYS[1])", b"1", b"a")

        counted = watch(lab.tcp.path, work)
    assert counted == Census({"set": 1, "eval": 1}, inner=2)
    assert counted.sent == 2
