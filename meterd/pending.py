"""`Pending`: what the verbs of `AsyncMeter` return, to be awaited; forgetting it is loud."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

T = TypeVar("T")


class Pending(Coroutine[Any, Any, T]):
    """A call that has to be awaited, or made a task.

    Testing, unpacking or looking into it raises `TypeError`, so a forgotten `await` is loud. One
    that is simply dropped gets Python's own "was never awaited" warning.
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
        self._work.close()  # the error says it all: no warning on top
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
