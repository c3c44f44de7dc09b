"""Removing what is stored of subjects, as a flow. What is billed goes into the outbox first."""

from __future__ import annotations

import logging

from meterd import wire
from meterd.administration import Administration
from meterd.errors import ScriptError
from meterd.flow import Flow
from meterd.keys import Path, Subject
from meterd.needs import Needs

_log = logging.getLogger("meterd")
_UNREADABLE = ("METERD-LAYOUT", "names policy")  # of a record, or of one of its holds
_MANY = 200  # keys of one call
_FEW = 50  # records of one call


class Forgetting:
    """Built on the administration of one meter."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration
        self._operations = administration.operations
        self._store = administration.store
        self._keys = administration.keys
        self._session = administration.session

    def forget(self, subject: Subject) -> Flow[int]:
        """Removes everything at and below a subject. Returns how many keys that were.

        Resumable: a second call removes what an interrupted one left. A root takes its operation
        ids and the ends of its holds along. Events and what is in the outbox stay.
        """
        path = self._keys.path(subject)
        yield from self._store.prepare()
        beside = (self._keys.meta(path), self._keys.topups(path))
        removed = yield from self._records(path.tag, [path.keys[-1]], *beside)
        # One walk through a node's keys finds all of them. It may come upon the holds of a record
        # before the record, which is what they have to be removed with.
        kinds = b"shxmtoe" if len(path.keys) == 1 else b"shxmt"
        pattern = self._keys.below_pattern(path, kinds)
        for node in (yield from self._session.nodes()):
            cursor, more = 0, True
            while more:
                cursor, found = yield from self._administration.page(node, cursor, pattern)
                more = cursor != 0
                records = {key: self._keys.record_of(key) for key in found}
                named = sorted({record for record in records.values() if record is not None})
                others = [key for key, record in records.items() if record is None]
                for at in range(0, len(named), _FEW):
                    removed += yield from self._records(path.tag, named[at : at + _FEW])
                for at in range(0, len(others), _MANY):
                    removed += yield from self._remove(others[at : at + _MANY], Needs())
        self._operations.forget_hints()
        return removed

    def one(self, path: Path) -> Flow[int]:
        """Removes what is stored of one subject."""
        beside = (self._keys.meta(path), self._keys.topups(path))
        removed = yield from self._records(path.tag, [path.keys[-1]], *beside)
        self._operations.forget_hints()
        return removed

    def remove(self, keys: list[bytes]) -> Flow[int]:
        """Removes keys that are neither records nor their holds."""
        return (yield from self._remove(keys, Needs()))

    def _records(self, tag: bytes, records: list[bytes], *others: bytes) -> Flow[int]:
        """Records, each with its holds."""
        keys = [*records, *others]
        for key in records:
            keys += self._keys.holds(Path((), (key,), b"", tag), 1)
        shared = self._keys.partition(tag)
        try:
            return (yield from self._remove(keys, Needs(shared=True), *shared))
        except ScriptError as error:
            if not any(word in str(error) for word in _UNREADABLE):
                raise
            if len(records) > 1:
                removed = 0
                for key in records:
                    removed += yield from self._records(tag, [key])
                return removed
            _log.warning("%r is removed, but it cannot be read: %s", records[0], error)
            return (yield from self._remove(keys, Needs(shared=True), *shared, blind=True))

    def _remove(
        self, keys: list[bytes], needs: Needs, *shared: bytes, blind: bool = False
    ) -> Flow[int]:
        while True:
            reply = yield from self._session.call(
                "forget",
                [*keys, *shared],
                [self._operations.now_argument(), needs.packed(), b"1" if blind else b""],
                harmless=True,
            )
            removed = wire.removed(reply)
            if removed is not None:
                return removed
            for name in wire.decode_need(reply):
                needs.policies[name] = (yield from self._store.policy(name)).blob
