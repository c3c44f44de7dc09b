"""`Pending`: what the verbs of `AsyncMeter` return, to be awaited; forgetting it is loud."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

T = TypeVar("T")


class _Told(Coroutine[Any, Any, T]):
    """The work of a call of whose missing `await` was told: it may still be awaited, and where it
    is dropped the error has said it all, and no warning comes on top."""

    __slots__ = ("_begun", "_work")

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._begun = False

    def __await__(self) -> Generator[Any, None, T]:
        self._begun = True
        return self._work.__await__()

    def send(self, value: Any) -> Any:
        self._begun = True
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        self._begun = True
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __del__(self) -> None:
        if not self._begun:
            self._work.close()


class Pending(Coroutine[Any, Any, T]):
    """A call that has to be awaited, or made a task.

    Testing, unpacking or looking into it raises `TypeError`, so a forgotten `await` is loud; it can
    be awaited all the same. One that is simply dropped gets Python's own "was never awaited"
    warning.
    """

    __slots__ = ("_verb", "_work")
    _owner = "meter"

    def __init__(self, verb: str, work: Coroutine[Any, Any, T]) -> None:
        self._verb = verb
        self._work = work

    def __await__(self) -> Generator[Any, None, T]:
        return self._work.__await__()

    def send(self, value: Any) -> Any:
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def _forgotten(self) -> NoReturn:
        if type(self._work) is not _Told:
            self._work = _Told(self._work)
        raise TypeError(
            f"{self._verb} was not awaited: write `await {self._owner}.{self._verb}(...)`"
        )

    if not TYPE_CHECKING:  # a type checker finds these by itself, as long as they are not there

        def __bool__(self):
            # asyncio tests the coroutine of a task that it shows in a log.
            asking = sys._getframe(1).f_globals.get("__name__", "")
            return asking.startswith("asyncio.") or self._forgotten()

        def __iter__(self):
            self._forgotten()

        def __contains__(self, name):
            self._forgotten()

        def __getitem__(self, name):
            self._forgotten()

        def __getattr__(self, name):
            # asyncio and debuggers look for what coroutines may have; an answer has no such names.
            if name.startswith(("_", "ag_", "cr_", "gi_")):
                raise AttributeError(name)
            self._forgotten()

    def __repr__(self) -> str:
        return f"<{self._verb}(...), not awaited yet>"
