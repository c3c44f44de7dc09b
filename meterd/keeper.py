"""Things that are due later, for code without an event loop: one thread, started when needed.

    handle = keeper.at(time.monotonic() + 20, renew)
    handle.cancel()
    keeper.close()

A callback runs in the keeper's thread, one at a time, at its time or a little after it; one that
raises is logged and changes nothing. The thread ends by itself when nothing has been due for a
while, and is a daemon. After a fork the child starts with nothing due: what was is the parent's.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable

_log = logging.getLogger("meterd")

_IDLE_SECONDS = 10.0  # how long the thread waits for something to do before it ends


class Handle:
    """Something that is due; `cancel()` may come from any thread, any number of times."""

    __slots__ = ("_callback", "_when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self._when = when
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not run, unless it runs already. Lets go of the callback."""
        self._callback = None

    @property
    def cancelled(self) -> bool:
        """Cancelled, or done."""
        return self._callback is None


class Keeper:
    """Runs callbacks when they are due; thread-safe."""

    def __init__(self, name: str = "meterd-keeper") -> None:
        self._name = name
        self._closed = False
        self._begin()
        _keepers.add(self)

    def _begin(self) -> None:
        self._serial = itertools.count()  # of two that are due together, the first asked for
        self._due: list[tuple[float, int, Handle]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def at(self, when_monotonic: float, callback: Callable[[], None]) -> Handle:
        """Calls `callback()` once `time.monotonic()` has reached `when_monotonic`.

        Of a keeper that was closed nothing is called any more.
        """
        handle = Handle(when_monotonic, callback)
        with self._changed:
            if self._closed:
                handle.cancel()
                return handle
            entry = (when_monotonic, next(self._serial), handle)
            heapq.heappush(self._due, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._due[0] is entry:
                self._changed.notify()
        return handle

    def close(self) -> None:
        """Forgets all that is due and ends the thread, waiting for a callback that runs."""
        with self._changed:
            self._closed = True
            self._due.clear()
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            handle = self._next()
            if handle is None:
                return
            callback = handle._callback
            handle.cancel()  # done: lets go of what the callback refers to
            if callback is not None:
                try:
                    callback()
                except Exception:  # noqa: BLE001  # it must not stop what else is due
                    _log.exception("what %s was to do failed", self._name)
            del handle, callback

    def _next(self) -> Handle | None:
        """Waits for what is due next; None: the thread is to end."""
        idle_until = time.monotonic() + _IDLE_SECONDS
        with self._changed:
            while not self._closed:
                while self._due and self._due[0][2].cancelled:
                    heapq.heappop(self._due)
                now = time.monotonic()
                if self._due:
                    if self._due[0][0] <= now:
                        return heapq.heappop(self._due)[2]
                    # A cancelled entry further down is dropped when its time comes.
                    self._changed.wait(self._due[0][0] - now)
                    idle_until = time.monotonic() + _IDLE_SECONDS
                elif now >= idle_until:
                    self._thread = None
                    return None
                else:
                    self._changed.wait(idle_until - now)
            return None


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _forked() -> None:
    """The threads, and whoever held a lock, are the parent's."""
    for keeper in list(_keepers):
        keeper._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
