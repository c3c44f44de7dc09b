"""API keys, as flows: a key is a subject below its owner, with an entry that says who may use it.

The entry decides. It is one string in the slot of the owner's root, read by the script that
charges, so that what `update`, `rotate` or `revoke` wrote counts for the very next verification
anywhere. Everything else may be incomplete without harm: the list of an owner's keys may name one
that is not there (yet, or any more), a pointer from an imported secret may lead nowhere. Flows of
several steps therefore write the entry when all that belongs to it is there, and may be repeated
from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from meterd import policy_checks as checks
from meterd import secret as secrets
from meterd import wire
from meterd.errors import PolicyError, ScriptError
from meterd.flow import Flow
from meterd.keyentry import About, Entry, Pointer, pack_about, pack_meta
from meterd.keys import MAX_LEVELS, Path, Subject, display, partition_of
from meterd.keyshapes import Place
from meterd.policy import Limit
from meterd.result import Code
from meterd.roles import Joining
from meterd.timespec import Instant, duration_ms, instant_ms, refuse
from meterd.verification import ApiKey
from meterd.verifying import Verifying

_CHUNK = 200


class _Unchanged:
    """The default of what `update` leaves alone."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()


class ApiKeys(Verifying):
    """The flows of one meter's API keys."""

    # Making --------------------------------------------------------------------------------------

    def create(
        self,
        owner: Subject,
        limits: Sequence[Limit],
        join: str | None,
        name: str | None,
        expires: Instant | None,
        meta: Mapping[str, Any] | None,
        prefix: str,
        sha256: str | bytes | None,
    ) -> Flow[ApiKey]:
        """A new key; from the digest of a secret, the key that this owner always imports it as."""
        path = self._keys.path(owner)
        if len(path.keys) >= MAX_LEVELS:
            raise PolicyError(
                f"keys: an owner is a path of 1 to {MAX_LEVELS - 1} segments, got {len(path.keys)}"
            )
        if join is not None and not isinstance(join, str):
            raise refuse("join", join, "the id of a plan")
        label = None if name is None else checks.label(name, "name")
        imported = b"" if sha256 is None else secrets.checked_digest(sha256)
        about = About(
            path.segments, join, label, pack_meta(meta), secrets.checked_prefix(prefix), imported
        )
        until = self._expiry(expires)
        yield from self._store.prepare()
        secret = None
        partition = partition_of(path.root)
        if imported:
            whose = b"\0".join([path.keys[-1], (join or "").encode()])
            where = secrets.import_place(partition, imported, whose)
        else:
            where = secrets.new_place(partition)
            secret = secrets.new_secret(about.prefix, where)
        digest = imported or secrets.digest(secret or "")
        place = self._place(secrets.id_of(where), path.segments, join)
        pointed, left = b"", None
        if imported:
            pointed = yield from self._unclaimed(imported)
            left = yield from self._entry(where)
            if left is not None and left.revoked:
                yield from self.revoke(place.key_id)
                left = None
        yield from self._join(path, join)
        if limits or imported:  # an import that was interrupted may have left others there
            yield from self._limit(place.path, limits)
        yield from self._plain(
            self._keys.api_keys(path), b"SADD", self._keys.api_keys(path), place.key_id.encode()
        )
        made = yield from self._call(
            "keys_create",
            place.entry,
            [self._operations.now_argument(), digest, until, pack_about(about)],
        )
        if made != wire.DONE:
            raise ScriptError(f"keys: there is another key {place.key_id}")
        if left is not None:
            changes = [b"enabled", until or b"none", _text(label), _text(about.meta)]
            yield from self._call("keys_update", place.entry, changes)
        if imported:
            yield from self._claim(place, imported, pointed)
        key = yield from self._shown(where, secret)
        if key is None:
            raise PolicyError(f"keys: {place.key_id} was revoked while it was being made")
        return key

    def _join(self, path: Path, join: str | None) -> Flow[None]:
        """The owner's root joins a plan now, as at first sight, if it holds none of that group."""
        if join is None:
            return
        role = Joining(self._store, join)
        root = self._keys.path(path.segments[:1])
        nothing = wire.with_auto(None, 0)
        operations = self._operations
        reply = yield from operations.settle(
            "consume",
            root,
            root.keys,
            lambda needs: [
                operations.now_argument(),
                role.context(),
                nothing.joined,
                nothing.amounts,
                b"",
                needs.packed(),
            ],
            role,
            deadline=(yield from self._store.prepare()),
            harmless=True,
        )
        if operations.decision("consume", root, role, reply, None).code is Code.NO_PLAN:
            role.complain()

    def _limit(self, path: Path, limits: Sequence[Limit]) -> Flow[None]:
        """Gives a key these limits of its own, or none."""
        try:
            yield from self._set_limits(path, limits)
        finally:
            self._freed(path)

    def _freed(self, path: Path) -> None:
        """What was refused before may not be any more."""
        if self._refusals is not None:
            self._refusals.drop(path.segments[0])

    def _set_limits(self, path: Path, limits: Sequence[Limit]) -> Flow[None]:
        if limits or not isinstance(limits, Sequence):
            yield from self._subscriptions.subscribe(
                path.segments, None, limits, "keep", "now", None, None
            )
            return
        usage = yield from self._administration.usage(path.segments, None)
        held = usage.levels[-1] if usage.levels else None
        if held is not None and held.subject == display(path.segments):
            for plan in held.plans.values():
                if plan not in self._store.catalog.plans:
                    yield from self._subscriptions.unsubscribe(path.segments, plan, "now")

    def _unclaimed(self, sha256: bytes) -> Flow[bytes]:
        """What stands in the place of a pointer; raises where that leads to a key that is good."""
        raw = yield from self._get(self._keys.api_key_of(sha256))
        if raw is None:
            return b""
        key_id = Pointer.from_bytes(raw).key_id
        entry = yield from self._entry(secrets.place_of_id(key_id) or "")
        if entry is not None and not entry.revoked and sha256 in (entry.sha256, entry.former):
            raise PolicyError(f"keys: a secret with this SHA-256 is imported already, as {key_id}")
        return raw

    def _claim(self, place: Place, sha256: bytes, pointed: bytes) -> Flow[None]:
        """Lets an imported secret lead to its key, unless another import was faster."""
        pointer = Pointer(place.key_id, place.path.segments[:-1], place.join).to_bytes()
        where = self._keys.api_key_of(sha256)
        if (yield from self._call("keys_point", where, [pointed, pointer])) == wire.DONE:
            return
        yield from self.revoke(place.key_id)
        yield from self._unclaimed(sha256)
        raise PolicyError("keys: a secret with this SHA-256 is being imported elsewhere")

    # Looking -------------------------------------------------------------------------------------

    def get(self, key_id: str) -> Flow[ApiKey | None]:
        """A key by its id."""
        where = secrets.place_of_id(key_id)
        if where is None:
            return None
        yield from self._store.prepare()
        return (yield from self._shown(where))

    def listed(self, owner: Subject) -> Flow[list[ApiKey]]:
        """The keys of an owner, the oldest first."""
        path = self._keys.path(owner)
        yield from self._store.prepare()
        found = []
        for key_id, raw in (yield from self._members(self._keys.api_keys(path))):
            if raw is not None and not (entry := Entry.from_bytes(raw)).revoked:
                found.append(entry.key(key_id))
        return sorted(found, key=lambda key: key.created_ms)

    def _members(self, index: bytes) -> Flow[list[tuple[str, bytes | None]]]:
        """The ids in an owner's list, with what is stored of each."""
        # A small set keeps the order in which it grew, which tells keys of one millisecond apart.
        ids = list((yield from self._plain(index, b"SMEMBERS", index)))
        head = index.partition(b"}:k:")[0] + b"}:k:"
        found: list[tuple[str, bytes | None]] = []
        for at in range(0, len(ids), _CHUNK):
            chunk = ids[at : at + _CHUNK]
            stored = yield from self._plain(index, b"MGET", *[head + key_id for key_id in chunk])
            found += zip([key_id.decode() for key_id in chunk], stored, strict=True)
        return found

    # Changing ------------------------------------------------------------------------------------

    def update(
        self,
        key_id: str,
        enabled: bool | _Unchanged,
        limits: Sequence[Limit] | _Unchanged,
        name: str | _Unchanged | None,
        expires: Instant | _Unchanged | None,
        meta: Mapping[str, Any] | _Unchanged | None,
    ) -> Flow[ApiKey]:
        """Changes what is given. May be repeated where it was interrupted."""
        state = until = label = notes = b""
        if not isinstance(enabled, _Unchanged):
            if type(enabled) is not bool:
                raise refuse("enabled", enabled, "True or False")
            state = b"enabled" if enabled else b"disabled"
        if not isinstance(expires, _Unchanged):
            until = self._expiry(expires) or b"none"
        if not isinstance(name, _Unchanged):
            label = _text(None if name is None else checks.label(name, "name"))
        if not isinstance(meta, _Unchanged):
            notes = _text(pack_meta(meta))
        where = secrets.place_of_id(key_id)
        yield from self._store.prepare()
        entry = None if where is None else (yield from self._entry(where))
        if where is None or entry is None or entry.revoked:
            raise _no_key(where)
        place = self._place(key_id, entry.about.owner, entry.about.join)
        changes = [state, until, label, notes]
        stricter = state == b"disabled"  # before its limits become others, else after
        if stricter:
            yield from self._change(place, changes)
        if not isinstance(limits, _Unchanged):
            yield from self._limit(place.path, limits)
        if not stricter and any(changes):
            yield from self._change(place, changes)
        key = yield from self._shown(where)
        if key is None:
            raise _no_key(where)
        return key

    def _change(self, place: Place, changes: Sequence[bytes]) -> Flow[None]:
        if (yield from self._call("keys_update", place.entry, changes)) == wire.UNKNOWN:
            raise _no_key(place.key_id.removeprefix("key_"))

    def rotate(self, key_id: str, overlap: str | timedelta) -> Flow[ApiKey]:
        """Another secret for the same key; the one it has stays good for `overlap`."""
        overlap_ms = duration_ms(overlap, field="overlap", allow_zero=True)
        where = secrets.place_of_id(key_id)
        yield from self._store.prepare()
        entry = None if where is None else (yield from self._entry(where))
        if where is None or entry is None or entry.revoked:
            raise _no_key(where)
        place = self._place(key_id, entry.about.owner, entry.about.join)
        secret = secrets.new_secret(entry.about.prefix, where)
        args = [self._operations.now_argument(), secrets.digest(secret), b"%d" % overlap_ms]
        if (yield from self._call("keys_rotate", place.entry, args)) == wire.UNKNOWN:
            raise _no_key(where)
        key = yield from self._shown(where, secret)
        if key is None:
            raise _no_key(where)
        return key

    def revoke(self, key_id: str) -> Flow[bool]:
        """The end of a key, and of what was stored of its use; whether there was one.

        It is refused from the first step on; a second call goes on where one was interrupted.
        """
        where = secrets.place_of_id(key_id)
        yield from self._store.prepare()
        entry = None if where is None else (yield from self._entry(where))
        if entry is None:
            return False
        yield from self._end(key_id, entry)
        return True

    def _end(self, key_id: str, entry: Entry) -> Flow[int]:
        """How many keys that were in the server."""
        place = self._place(key_id, entry.about.owner, entry.about.join)
        if not entry.revoked:
            yield from self._call("keys_update", place.entry, [b"revoked", b"", b"", b""])
        removed = yield from self._forgetting.one(place.path)
        self._freed(place.path)
        removed += yield from self._unpoint(place, entry)
        removed += yield from self._forgetting.remove([place.entry])
        index = self._keys.api_keys(self._keys.path(entry.about.owner))
        yield from self._plain(index, b"SREM", index, key_id.encode())
        return removed

    def _unpoint(self, place: Place, entry: Entry) -> Flow[int]:
        """Takes away the pointer to an imported key, if it leads here."""
        if not entry.about.imported:
            return 0
        pointer = Pointer(place.key_id, entry.about.owner, entry.about.join).to_bytes()
        where = self._keys.api_key_of(entry.about.imported)
        gone = yield from self._call("keys_point", where, [pointer, b""])
        return int(gone == wire.DONE)

    def forget(self, subject: Subject) -> Flow[int]:
        """`Forgetting.forget`, and the API keys at and below the subject before that."""
        path = self._keys.path(subject)
        yield from self._store.prepare()
        own = secrets.place_of_id(path.segments[-1])
        removed = 0
        if own is not None and len(path.segments) > 1:
            entry = yield from self._entry(own)
            if entry is not None and entry.about.owner == path.segments[:-1]:
                removed += yield from self._end(path.segments[-1], entry)
        pattern = self._keys.below_pattern(path, b"k")
        for node in (yield from self._session.nodes()):
            cursor, more = 0, True
            while more:
                cursor, found = yield from self._administration.page(node, cursor, pattern)
                more = cursor != 0
                for index in found:
                    removed += yield from self._forget_all(index)
        return removed + (yield from self._forgetting.forget(subject))

    def _forget_all(self, index: bytes) -> Flow[int]:
        """Removes the keys in an owner's list, and the list when they are gone."""
        removed = 0
        head = index.partition(b"}:k:")[0] + b"}:k:"
        entries = []
        for key_id, raw in (yield from self._members(index)):
            if raw is not None:
                entry = Entry.from_bytes(raw)
                place = self._place(key_id, entry.about.owner, entry.about.join)
                removed += yield from self._unpoint(place, entry)
                entries.append(head + key_id.encode())
        entries.append(index)
        for at in range(0, len(entries), _CHUNK):
            chunk = entries[at : at + _CHUNK]
            removed += yield from self._forgetting.remove(chunk)
        return removed

    # Asking --------------------------------------------------------------------------------------

    def _expiry(self, expires: object) -> bytes:
        if expires is None:
            return b""
        now_ms = self._operations.now_ms()
        given: Any = expires
        until = instant_ms(given, now_ms, "expires")
        if until <= now_ms:
            raise refuse("expires", expires, "an instant after now")
        return b"%d" % until

    def _shown(self, where: str, secret: str | None = None) -> Flow[ApiKey | None]:
        entry = yield from self._entry(where)
        if entry is None or entry.revoked:
            return None
        return entry.key(secrets.id_of(where), secret)


def _text(value: str | None) -> bytes:
    return b"=" + value.encode() if value else b"-"


def _no_key(where: str | None) -> PolicyError:
    if where is None:
        return PolicyError("keys: that is not the id of a key; an id is 'key_' and 14 digits")
    return PolicyError(f"keys: there is no key {secrets.id_of(where)}")
