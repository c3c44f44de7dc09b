"""Harvest: what is billed goes into the outbox, and periods that are over are told of.

Every partition has an index of the subjects that somebody has to look at, and when. A walk goes
over the indexes of all partitions, as their keys are known, and has one script look at many of
their subjects at a time. What a script did is done; a walk that stops anywhere is simply begun
again. These are flows: no I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from redis.exceptions import ResponseError

from meterd import wire
from meterd.batch import Rounds, together
from meterd.compile import ABSENT
from meterd.errors import MeterdError, PolicyError, ScriptError, Unavailable
from meterd.flow import Flow
from meterd.keys import Path, decode_segment
from meterd.needs import Needs
from meterd.operations import Operations
from meterd.roles import Joining
from meterd.tags import TAGS
from meterd.timespec import refuse

T = TypeVar("T")
_log = logging.getLogger("meterd")
_PAGE = 128  # subjects of one script
_PAGES = 64  # scripts that are sent together
# The records are taken as they are: whatever revision of the catalog they were brought to.
_AS_THEY_ARE = wire.context(0, ABSENT)
_FAILURES = (PolicyError, ScriptError)  # of one record, not of the server


class Harvest:
    """The walks of one meter."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._keys = operations.keys
        self._session = operations.session
        self._store = operations.store

    def rounds(self, limit: int | None = None) -> Rounds[int]:
        """Looks at every subject that is due, at most `limit`. Returns how many entries it wrote.

        A record that cannot be read is logged and left; it keeps nothing else from being harvested.
        """
        if limit is not None and (type(limit) is not int or limit < 1):
            raise refuse("harvest: limit", limit, "None or a positive integer")
        (until,) = yield from self._all([self._until()])
        entries = 0
        budget = limit
        # Per partition how many subjects at the front of its index could not be harvested.
        stuck = {TAGS[at : at + 3]: 0 for at in range(0, len(TAGS), 3)}
        while stuck and budget != 0:
            found = yield from self._all(
                [self._due(tag, until, skip) for tag, skip in stuck.items()]
            )
            due = {tag: subjects for tag, subjects in zip(stuck, found, strict=True) if subjects}
            if budget is not None:
                due, budget = _first(due, budget)
            work = list(due.items())
            stuck = {tag: stuck[tag] for tag in due if len(due[tag]) == _PAGE}
            for at in range(0, len(work), _PAGES):
                part = work[at : at + _PAGES]
                made = yield from self._all([self._page(tag, subjects) for tag, subjects in part])
                for (tag, _), (written, failed) in zip(part, made, strict=True):
                    entries += written
                    if tag in stuck:
                        stuck[tag] += failed
        return entries

    def _all(self, flows: Sequence[Flow[T]]) -> Rounds[list[T]]:
        """What came of each; the first error once all have ended."""
        done: list[T] = []
        for result in (yield from together(flows)):
            if isinstance(result, MeterdError):
                raise result
            done.append(result)
        return done

    def _until(self) -> Flow[bytes]:
        """The instant of the walk, in ms: what is due by then is looked at."""
        yield from self._store.prepare()
        given = self._operations.now_argument()
        if given:
            return given
        (reply,) = yield from self._session.plain(None, (b"TIME",))
        if isinstance(reply, ResponseError):
            raise Unavailable(f"harvest: the server's time could not be read: {reply}")
        return b"%d" % (int(reply[0]) * 1000 + int(reply[1]) // 1000)

    def _due(self, tag: bytes, until: bytes, skip: int) -> Flow[list[bytes]]:
        key = self._keys.partition(tag).due
        (reply,) = yield from self._session.plain(
            key,
            (b"ZRANGEBYSCORE", key, b"-inf", until, b"LIMIT", b"%d" % skip, b"%d" % _PAGE),
        )
        if isinstance(reply, ResponseError):
            raise Unavailable(f"harvest: an index could not be read: {reply}")
        return list(reply)

    def _page(self, tag: bytes, subjects: list[bytes]) -> Flow[tuple[int, int]]:
        """Harvests these. Returns how many entries were written, and how many records are stuck."""
        try:
            entries, left = yield from self._together(tag, subjects)
        except _FAILURES:
            entries, left = 0, subjects
        failed = 0
        for subject in left:
            try:
                entries += yield from self._alone(tag, subject)
            except _FAILURES as error:
                failed += 1
                shown = "/".join(decode_segment(part) for part in subject.split(b"/"))
                _log.warning("%r cannot be harvested, and is left as it is: %s", shown, error)
        return entries, failed

    def _together(self, tag: bytes, subjects: list[bytes]) -> Flow[tuple[int, list[bytes]]]:
        """One script for many records. Returns what it wrote, and which of them need more."""
        needs, entries = Needs(), 0
        left: list[bytes] = []
        held = False
        while subjects:
            records = [self._keys.record(tag, subject) for subject in subjects]
            keys = list(records)
            if held:
                for key in records:
                    keys += self._keys.holds(Path((), (key,), b"", tag), 1)
            now = self._operations.now_argument()
            named = wire.numbers(range(len(records)) if held else ())
            reply = yield from self._session.call(
                "harvest",
                [*keys, *self._keys.partition(tag)],
                [now, _AS_THEY_ARE, needs.packed(), named],
                harmless=True,
            )
            if reply[0] == wire.NEED:
                for name in wire.decode_need(reply):
                    policy = yield from self._store.policy(name)
                    needs.policies[name] = policy.blob
                continue
            if reply[0] in (wire.STALE, wire.DUE):
                left += subjects  # there was only one
                break
            if reply[0] == wire.HOLDS:
                held = True  # there was only one
                continue
            done = wire.decode_harvest(reply)
            entries += done.entries
            left += [subjects[n] for n in done.left]
            subjects, held = [subjects[n] for n in done.waiting], True
        return entries, left

    def _alone(self, tag: bytes, subject: bytes) -> Flow[int]:
        """One record, brought whatever it needs, as any call would."""
        key = self._keys.record(tag, subject)
        segments = tuple(decode_segment(part) for part in subject.split(b"/"))
        path = Path(segments, (key,), subject.partition(b"/")[0], tag)
        role = Joining(self._store, None, root=len(segments) == 1, planless=True)
        deadline = yield from self._store.prepare()
        reply = yield from self._operations.settle(
            "harvest",
            path,
            [key],
            lambda needs: [
                self._operations.now_argument(),
                role.context(),
                needs.packed(),
                wire.numbers([0] if needs.holds else []),
            ],
            role,
            deadline=deadline,
            harmless=True,
            shared=True,
        )
        return wire.decode_harvest(reply).entries


def _first(due: dict[bytes, list[bytes]], most: int) -> tuple[dict[bytes, list[bytes]], int]:
    """At most that many of them, and how many more that leaves."""
    kept: dict[bytes, list[bytes]] = {}
    for tag, subjects in due.items():
        if most > 0:
            kept[tag] = subjects[:most]
            most -= len(kept[tag])
    return kept, most
