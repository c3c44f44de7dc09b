"""The keeper: things happen when they are due, in one thread, and end with a close."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from meterd import keeper as module
from meterd.keeper import Keeper


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper("meterd-test-keeper")
    yield made
    made.close()
    assert not threads()


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "meterd-test-keeper"]


def soon(milliseconds: float) -> float:
    return time.monotonic() + milliseconds / 1000


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_in_the_order_of_their_times(keeper: Keeper) -> None:
    done: list[str] = []
    assert not threads()  # until there is something to do
    begun = soon(0)
    for seconds, name in ((0.6, "c"), (0.2, "a"), (0.4, "b")):
        keeper.at(begun + seconds, lambda name=name: done.append(name))  # type: ignore[misc]
    wait_for(lambda: len(done) == 3)
    assert done == ["a", "b", "c"]
    assert time.monotonic() >= begun + 0.6
    assert len(threads()) == 1


def test_never_before_its_time(keeper: Keeper) -> None:
    happened: list[float] = []
    due = soon(30)
    keeper.at(due, lambda: happened.append(time.monotonic()))
    wait_for(lambda: bool(happened))
    assert happened[0] >= due


def test_cancelled(keeper: Keeper) -> None:
    done: list[str] = []

    class Thing:
        def act(self) -> None:
            done.append("cancelled")

    thing = Thing()
    known = weakref.ref(thing)
    handle = keeper.at(soon(20), thing.act)
    keeper.at(soon(40), lambda: done.append("other"))
    handle.cancel()
    handle.cancel()
    assert handle.cancelled
    del thing
    gc.collect()
    assert known() is None  # lets go of what it would have called
    wait_for(lambda: bool(done))
    assert done == ["other"]


def test_a_callback_may_ask_for_the_next(keeper: Keeper) -> None:
    times: list[float] = []

    def again() -> None:
        times.append(time.monotonic())
        if len(times) < 3:
            keeper.at(soon(10), again)

    keeper.at(soon(0), again)
    wait_for(lambda: len(times) == 3)
    assert times[2] - times[0] >= 0.02


def test_one_that_raises_stops_nothing(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    keeper.at(soon(0), lambda: done[5] and None)
    keeper.at(soon(10), lambda: done.append("after"))
    wait_for(lambda: bool(done))
    assert "what meterd-test-keeper was to do failed" in caplog.text
    assert "IndexError" in caplog.text


def test_closing(keeper: Keeper) -> None:
    done: list[str] = []
    running = threading.Event()

    def slow() -> None:
        running.set()
        time.sleep(0.05)
        done.append("slow")

    keeper.at(soon(0), slow)
    keeper.at(soon(1), lambda: done.append("late"))
    assert running.wait(5)
    keeper.close()  # waits for what runs
    assert done == ["slow"]
    assert not threads()
    assert keeper.at(soon(0), lambda: done.append("never")).cancelled
    keeper.close()
    time.sleep(0.01)
    assert done == ["slow"]


def test_closing_from_its_own_thread(keeper: Keeper) -> None:
    closed = threading.Event()

    def close() -> None:
        keeper.close()
        closed.set()

    keeper.at(soon(0), close)
    assert closed.wait(5)
    wait_for(lambda: not threads())


def test_an_idle_thread_ends(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.02)
    done: list[str] = []
    for name in ("one", "two"):
        keeper.at(soon(0), lambda name=name: done.append(name))  # type: ignore[misc]
        wait_for(lambda name=name: name in done)  # type: ignore[misc]
        wait_for(lambda: not threads())
    assert done == ["one", "two"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork(keeper: Keeper) -> None:
    done: list[str] = []
    keeper.at(soon(60_000), lambda: done.append("the parent's"))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        handle = keeper.at(soon(5), lambda: os.write(write, b"x") and None)
        wait_for(lambda: handle.cancelled)
        os._exit(0 if handle.cancelled and len(keeper._due) == 0 else 1)
    os.close(write)
    try:
        assert os.read(read, 1) == b"x"
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.close(read)
    assert len(keeper._due) == 1
    assert done == []
