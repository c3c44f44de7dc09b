"""The same story on every server, under both protocols: the same answers to the last field."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meterd.scripts import Scripts
from meterd.testing import ManualClock, async_fake, fake
from tests.client.meter_tools import AnyMeter, build, fresh_prefix
from tests.client.scenario import PLANS, play
from tests.support.servers import Server


@pytest.fixture(scope="module")
def told(server: Server) -> list[Any]:
    """What the default server says, over functions and RESP2."""
    return story(server.url)


def story(url: str, runner: asyncio.Runner | None = None, **settings: Any) -> list[Any]:
    clock = ManualClock()
    given = {"plans": PLANS, "prefix": fresh_prefix(), "clock": clock, "timeout": 10, **settings}
    with build(runner, url, **given) as meter:
        return play(meter, clock)


def assert_same(one: list[Any], other: list[Any]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine == theirs


def test_the_story_says_something(told: list[Any]) -> None:
    errors = [entry[1] for entry in told if isinstance(entry, tuple) and len(entry) == 3]
    assert sorted(set(errors)) == ["NotIncluded", "OpConflict", "PolicyError"]
    answers = [entry[1] for entry in told if isinstance(entry, tuple) and entry[0] == "consume"]
    codes = {answer["code"] for answer in answers if isinstance(answer, dict)}
    assert codes == {"OK", "USAGE_EXCEEDED", "RATE_LIMITED", "NOT_INCLUDED"}
    assert len(told) > 90


@pytest.mark.matrix
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_server(matrix_server: Server, told: list[Any], protocol: int) -> None:
    assert_same(story(f"{matrix_server.url}?protocol={protocol}"), told)


@pytest.mark.matrix
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_server_awaited(matrix_server: Server, told: list[Any], protocol: int) -> None:
    with asyncio.Runner() as runner:
        assert_same(story(f"{matrix_server.url}?protocol={protocol}", runner), told)


@pytest.mark.matrix
def test_every_server_without_functions(matrix_server: Server, told: list[Any]) -> None:
    """EVALSHA of the same sources, as on servers that have no functions or forbid them."""
    assert_same(story(matrix_server.url, functions=False), told)


@pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])
def test_fakeredis(told: list[Any], awaited: bool) -> None:
    clock = ManualClock()
    if not awaited:
        with AnyMeter(fake(PLANS, clock=clock, timeout=10), None) as meter:
            assert_same(play(meter, clock), told)
        return
    made = async_fake(PLANS, clock=clock, timeout=10)
    with asyncio.Runner() as runner, AnyMeter(made, runner) as meter:
        assert_same(play(meter, clock), told)


def test_a_prelude_changes_no_answer(server: Server, told: list[Any]) -> None:
    """The text in front of the library that fakeredis needs, on a real server."""
    from meterd.testing.prelude import prelude

    assert_same(story(server.url, scripts=Scripts(prelude=prelude())), told)
