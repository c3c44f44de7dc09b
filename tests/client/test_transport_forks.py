"""A process that forks after using a transport: parent and child do not disturb each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pytest

from meterd.errors import PolicyError
from meterd.transport import open_async_transport
from tests.client.transport_tools import command, fresh_key, transport
from tests.support import servers

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_fork_shares_no_connection(server: servers.Server) -> None:
    key = fresh_key()
    with transport(server.url, connections=4) as made:
        ids = {made.send(command("CLIENT", "ID"), 1) for _ in range(3)}
        children = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                status = 1
                with contextlib.suppress(BaseException):
                    fresh = made.send(command("CLIENT", "ID"), 2) not in ids
                    for _ in range(50):
                        made.send(command("INCR", key), 2)
                    made.close()
                    status = 0 if fresh else 2
                os._exit(status)
            children.append(pid)
        for _ in range(50):
            made.send(command("INCR", key), 2)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
        assert made.send(command("GET", key), 1) == b"250"
        assert made.send(command("CLIENT", "ID"), 1) in ids, "the parent keeps its connection"


def test_a_fork_of_an_async_transport(server: servers.Server) -> None:
    made = open_async_transport(server.url, timeout=2, max_connections=2)
    with asyncio.Runner() as runner:
        own_id = runner.run(made.send(command("CLIENT", "ID"), 1))
        pid = os.fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException), asyncio.Runner() as second:
                child_id = second.run(made.send(command("CLIENT", "ID"), 1))
                second.run(made.aclose())
                status = 0 if child_id != own_id else 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert runner.run(made.send(command("CLIENT", "ID"), 1)) == own_id
        runner.run(made.aclose())


def test_a_forked_child_that_ends_the_loop_leaves_the_parent_its_connection(
    server: servers.Server,
) -> None:
    """The two processes share the selector, so what the child takes out of it is gone for both."""
    made = open_async_transport(server.url, timeout=2, max_connections=2)
    runner = asyncio.Runner()
    own_id = runner.run(made.send(command("CLIENT", "ID"), 2))
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            runner.close()
            made.abandon()
        os._exit(0)
    os.waitpid(pid, 0)
    assert runner.run(made.send(command("CLIENT", "ID"), 2)) == own_id
    runner.run(made.aclose())
    runner.close()


def test_a_forked_child_that_runs_the_loop_takes_no_reply(server: servers.Server) -> None:
    made = open_async_transport(server.url, timeout=2, max_connections=2)
    key = fresh_key()

    async def begin() -> Any:
        waiting = made.start(command("BLPOP", key, 20), 30)
        await asyncio.sleep(0.05)
        return waiting

    with asyncio.Runner() as runner:
        runner.run(made.open())
        waiting = runner.run(begin())
        ours, childs = os.pipe()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                runner.get_loop().call_later(0.1, os.write, childs, b"x")
                runner.run(asyncio.sleep(0.5))
            os._exit(0)
        os.read(ours, 1)  # now the child runs it
        server.ask("LPUSH", key, "x")
        os.waitpid(pid, 0)

        async def end() -> Any:
            return await waiting

        assert runner.run(end()) == [key.encode(), b"x"]
        assert runner.run(made.send(command("ECHO", "mine"), 2)) == b"mine"
        runner.run(made.aclose())
    os.close(ours)
    os.close(childs)


def test_a_loop_from_before_the_fork_is_refused(server: servers.Server) -> None:
    made = open_async_transport(server.url, timeout=2, max_connections=2)
    with asyncio.Runner() as runner:
        own_id = runner.run(made.send(command("CLIENT", "ID"), 1))
        pid = os.fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                for call in (made.send, lambda *args: _started(made, *args)):
                    with pytest.raises(PolicyError, match="fork"):
                        runner.run(call(command("CLIENT", "ID"), 1))
                status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert runner.run(made.send(command("CLIENT", "ID"), 1)) == own_id
        runner.run(made.aclose())


async def _started(made: Any, *args: Any) -> Any:
    return await made.start(*args)
