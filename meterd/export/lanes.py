"""Lanes: entries that must go one after another, side by side with those of other lanes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

from meterd.export.item import Item
from meterd.export.sink import Outcome, Sink

# An entry and how its delivery ended; None: it was not tried. Or what was raised.
Ended = tuple[Item, Outcome | BaseException | None]

_TURN = 0.5  # seconds after which `idle` is called, however long a delivery takes


class Lanes:
    """Threads for one sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pool = ThreadPoolExecutor(sink.workers, thread_name_prefix=f"meterd-{sink.name}")

    def run(
        self,
        lanes: Mapping[Hashable, Sequence[Item]],
        may_go: Callable[[], bool],
        now_ms: Callable[[], int],
        idle: Callable[[], None],
    ) -> Generator[Ended, None, None]:
        """How each entry ended, as soon as that is known.

        A lane stops at the first entry that has to be tried again, and where `may_go` says no.
        """
        ended: SimpleQueue[Ended] = SimpleQueue()
        left = sum(map(len, lanes.values()))
        stopped = False

        def go() -> bool:
            return not stopped and may_go()

        for items in lanes.values():
            self._pool.submit(self._lane, items, go, now_ms, ended)
        try:
            while left:
                try:
                    one = ended.get(timeout=_TURN)
                except Empty:
                    idle()
                    continue
                left -= 1
                yield one
        finally:
            stopped = True  # whoever is under way finishes, nobody begins

    def _lane(
        self,
        items: Sequence[Item],
        may_go: Callable[[], bool],
        now_ms: Callable[[], int],
        ended: SimpleQueue[Ended],
    ) -> None:
        going = True
        for item in items:
            outcome: Outcome | BaseException | None = None
            if going and may_go():
                assert item.entry is not None
                try:
                    outcome = self._sink.send(item.entry, item.meta or {}, now_ms())
                except BaseException as error:  # noqa: BLE001  # the main thread raises it
                    outcome = error
                going = isinstance(outcome, Outcome) and outcome.kind != "retry"
            ended.put((item, outcome))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
