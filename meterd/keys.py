"""The only place that spells a Redis key.

A subject's root picks one of 1,024 partitions; each has a fixed three-character hash tag whose slot
lies in the middle of the partition's sixteen slots. Everything about a root shares that tag, so one
script may read and write all of it on any cluster, and nothing has to be converted to move to one.

    meterd:{tag}:s:<subject>     record of a subject
    meterd:{tag}:m:<subject>     what the application keeps beside it
    meterd:{tag}:o:<root>/<id>   an operation id
    meterd:{tag}:h:<subject>     open holds of a subject
    meterd:{tag}:x:<subject>     when they end
    meterd:{tag}:e:<root>/<id>   how a hold was ended
    meterd:{tag}:k:<id>          an API key
    meterd:{tag}:k:<owner>/      ids of the API keys of an owner
    meterd:{tag}:k:<sha256>      which API key an imported secret belongs to
    meterd:{tag}:l:<limiter>/<subject>   record of a plain limiter
    meterd:{tag}:t:<subject>     automatic top-ups
    meterd:{tag}:events          events of the partition's subjects
    meterd:{tag}:outbox          what is billed and not delivered yet
    meterd:{tag}:due             subjects by when harvest has to look at them
    meterd:{tag}:tries           how often an entry of the outbox was tried, by sink
    meterd:{tag}:dead            what a sink refused, or may not be sent again
    meterd:{tag}:lease:<sink>    which exporter delivers the outbox to a sink
    meterd:{store}:catalog       the catalog
    meterd:{store}:policies      policies and plan definitions
    meterd:{store}:clock         which clock the store runs on
    meterd:{store}:private       cost names that a private plan charges to what never fails open
    meterd:{store}:sinks         where outboxes are delivered to
    meterd:{store}:topups:<group>   events that an automatic top-up has put off

Segments are joined by "/"; inside one, "%" and "/" are percent-encoded: the encoding is injective.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from meterd.errors import PolicyError
from meterd.tags import TAGS
from meterd.timespec import shown

MAX_LEVELS = 4
MAX_SEGMENT_BYTES = 128
PARTITIONS = 1024

Subject = str | tuple[str, ...]


def partition_of(root: bytes) -> int:
    """The partition, 0..1023, of an encoded root."""
    return (crc_hqx(root, 0) & 16383) >> 4


def tag_of(root: bytes) -> bytes:
    """The three-character hash tag of an encoded root's partition."""
    at = partition_of(root) * 3
    return TAGS[at : at + 3]


def tag_at(partition: int) -> bytes:
    """The hash tag of partition 0..1023."""
    return TAGS[partition * 3 : partition * 3 + 3]


def slot_of(key: bytes) -> int:
    """Cluster slot, 0..16383, of a key (its hash tag decides where it has one)."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & 16383


def encode_segment(segment: str) -> bytes:
    """One segment as it stands in a key; `PolicyError` for anything that is not a segment."""
    if not isinstance(segment, str):
        raise PolicyError(
            f"subject: a segment must be text, got {segment!r}; "
            'write "acme/team/ana" or ("acme", "team", "ana")'
        )
    try:
        raw = segment.encode()
    except UnicodeEncodeError as error:
        raise PolicyError(f"subject: segment {segment!r} is not valid Unicode text") from error
    if not raw or len(raw) > MAX_SEGMENT_BYTES:
        raise PolicyError(
            f"subject: a segment is 1 to {MAX_SEGMENT_BYTES} bytes of UTF-8, "
            f"got {len(raw)} in {segment[:40]!r}"
        )
    if b"%" in raw:
        raw = raw.replace(b"%", b"%25")
    return raw.replace(b"/", b"%2F") if b"/" in raw else raw


def decode_segment(raw: bytes) -> str:
    return raw.replace(b"%2F", b"/").replace(b"%25", b"%").decode()


def checked_subject(subject: object) -> Subject:
    """Text, or a tuple of 1 to 4 texts (a list counts as one); anything else is a `PolicyError`."""
    if isinstance(subject, str):
        return subject
    if not isinstance(subject, (tuple, list)):
        raise PolicyError(
            f"subject: expected text or a tuple of texts, got {type(subject).__name__} "
            f"{shown(subject)}"
        )
    if not 1 <= len(subject) <= MAX_LEVELS:
        raise PolicyError(f"subject: a path has 1 to {MAX_LEVELS} segments, got {len(subject)}")
    for part in subject:
        if not isinstance(part, str):
            raise PolicyError(
                f"subject: a segment must be text, got {shown(part)}; "
                'write "acme/team/ana" or ("acme", "team", "ana")'
            )
    return tuple(subject)


def segments_of(subject: Subject) -> tuple[str, ...]:
    """The path of a subject as a tuple of 1 to 4 segments."""
    parts = tuple(subject.split("/")) if isinstance(subject, str) else subject
    if not 1 <= len(parts) <= MAX_LEVELS:
        raise PolicyError(f"subject: a path has 1 to {MAX_LEVELS} segments, got {len(parts)}")
    return parts


def parse_path(encoded: bytes) -> tuple[str, ...]:
    """The segments of a path as it stands in keys."""
    return tuple([decode_segment(part) for part in encoded.split(b"/")])


def display(segments: tuple[str, ...]) -> Subject:
    """How a path is shown: as text, or as a tuple where a segment itself contains "/"."""
    if any("/" in part for part in segments):
        return segments
    return "/".join(segments)


class Path(NamedTuple):
    """A subject with the keys of its levels, root first."""

    segments: tuple[str, ...]
    keys: tuple[bytes, ...]
    root: bytes  # the root, encoded
    tag: bytes
    limiter: bool = False  # one record for all segments; a text is one, whatever it contains

    def shown(self, level: int) -> Subject:
        """The subject of level 1..n, as people write it."""
        if self.limiter:
            return self.segments if len(self.segments) > 1 else self.segments[0]
        return display(self.segments[:level])


class PartitionKeys(NamedTuple):
    """What the subjects of one partition share: two streams and a sorted set."""

    events: bytes
    outbox: bytes
    due: bytes


def leaf(path: Path) -> Path:
    """The last level alone: verbs that set something touch one record."""
    return Path(path.segments, (path.keys[-1],), path.root, path.tag)


class Keyspace:
    """Every key of one store, that is, of one prefix."""

    def __init__(self, prefix: str = "meterd") -> None:
        allowed = "a non-empty text without { } * ? [ ] \\"
        if not isinstance(prefix, str) or not prefix or any(c in prefix for c in "{}*?[]\\"):
            raise PolicyError(f"prefix: {allowed}, got {prefix!r}")
        self.prefix = prefix
        try:
            self._raw = prefix.encode()
        except UnicodeEncodeError as error:
            raise PolicyError(f"prefix: {allowed}, got {prefix!r}") from error
        self.catalog = self._raw + b":{store}:catalog"
        self.policies = self._raw + b":{store}:policies"
        self.clock = self._raw + b":{store}:clock"
        self.private = self._raw + b":{store}:private"
        self.sinks = self._raw + b":{store}:sinks"
        self.put_off = self._raw + b":{store}:topups"
        self._known = lru_cache(maxsize=4096)(self._path)

    def is_of_store(self, key: bytes) -> bool:
        """Whether a key is one that all subjects share."""
        return key.startswith(self._raw + b":{store}:")

    def path(self, subject: Subject) -> Path:
        """A subject and the keys of its levels. Raises `PolicyError` for what is no subject."""
        return self._known(subject if type(subject) is str else checked_subject(subject))

    def _path(self, subject: Subject) -> Path:
        segments = segments_of(subject)
        encoded = [encode_segment(part) for part in segments]
        tag = tag_of(encoded[0])
        head = b"%b:{%b}:s:" % (self._raw, tag)
        keys = tuple(head + b"/".join(encoded[: i + 1]) for i in range(len(encoded)))
        return Path(segments, keys, encoded[0], tag)

    def limiter(self, name: str, segments: tuple[str, ...]) -> Path:
        """The record of a plain limiter; the whole subject decides its partition."""
        encoded = b"/".join([name.encode(), *(encode_segment(part) for part in segments)])
        tag = tag_of(encoded)
        key = b"%b:{%b}:l:%b" % (self._raw, tag, encoded)
        return Path(segments, (key,), encoded, tag, True)

    def op(self, path: Path, op: str) -> bytes:
        """Where an operation id of the path's root is kept."""
        return b"%b:{%b}:o:%b/%b" % (self._raw, path.tag, path.root, op.encode())

    def meta(self, path: Path) -> bytes:
        head, _, subject = path.keys[-1].partition(b"}:s:")
        return head + b"}:m:" + subject

    def holds(self, path: Path, level: int) -> tuple[bytes, bytes]:
        """The open holds of level 1..n, and when they end."""
        head, _, subject = path.keys[level - 1].partition(b"}:s:")
        return head + b"}:h:" + subject, head + b"}:x:" + subject

    def record_of(self, key: bytes) -> bytes | None:
        """The record that a key is, or whose holds it has, or when they end; None for others."""
        head, _, rest = key.partition(b"}:")
        return head + b"}:s:" + rest[2:] if rest[:2] in (b"s:", b"h:", b"x:") else None

    def shared(self, path: Path) -> PartitionKeys:
        """Events, outbox and index of the path's partition."""
        return self.partition(path.tag)

    def partition(self, tag: bytes) -> PartitionKeys:
        """Events, outbox and index of the partition with that hash tag."""
        head = b"%b:{%b}:" % (self._raw, tag)
        return PartitionKeys(head + b"events", head + b"outbox", head + b"due")

    def record(self, tag: bytes, subject: bytes) -> bytes:
        """The record of a subject, spelled as in keys, in the partition with that hash tag."""
        return b"%b:{%b}:s:%b" % (self._raw, tag, subject)

    def hold_end(self, path: Path, hold_id: str) -> bytes:
        """Where it is kept how a hold of the path's root was ended."""
        return b"%b:{%b}:e:%b/%b" % (self._raw, path.tag, path.root, hold_id.encode())

    def api_key(self, partition: int, key_id: str) -> bytes:
        """Where an API key of a partition is kept."""
        tag = TAGS[partition * 3 : partition * 3 + 3]
        return b"%b:{%b}:k:%b" % (self._raw, tag, key_id.encode())

    def api_keys(self, owner: Path) -> bytes:
        """The ids of the API keys of an owner. No id, and no digest, holds a "/"."""
        head, _, subject = owner.keys[-1].partition(b"}:s:")
        return b"%b}:k:%b/" % (head, subject)

    def api_key_of(self, sha256: bytes) -> bytes:
        """Which API key the secret of that digest was imported as; the digest is its partition."""
        at = int.from_bytes(sha256[:2], "big") % 1024 * 3
        return b"%b:{%b}:k:%b" % (self._raw, TAGS[at : at + 3], sha256.hex().encode())

    def partition_key(self, partition: int, kind: bytes) -> bytes:
        """What all subjects of a partition share: b"events", b"outbox", b"dead", ..."""
        return b"%b:{%b}:%b" % (self._raw, tag_at(partition), kind)

    def root_meta(self, partition: int, root: bytes) -> bytes:
        """What the application keeps beside an encoded root of a partition."""
        return b"%b:{%b}:m:%b" % (self._raw, tag_at(partition), root)

    def topups(self, path: Path) -> bytes:
        """The automatic top-ups of a subject."""
        head, _, subject = path.keys[-1].partition(b"}:s:")
        return head + b"}:t:" + subject

    def below_pattern(self, path: Path, kinds: bytes = b"s") -> bytes:
        """SCAN pattern of what is kept below a subject: records, b"s", or other kinds, or several.

        Below a root that includes its operation ids, b"o", and how holds were ended, b"e".
        """
        subject = path.keys[-1].partition(b"}:s:")[2]
        return b"%b:{%b}:[%b]:%b/*" % (_glob(self._raw), path.tag, kinds, _glob(subject))

    def subjects_pattern(self, root: str | None = None) -> bytes:
        """SCAN pattern of records: all, or those of one root and below."""
        if root is None:
            return _glob(self._raw) + b":{???}:s:*"
        encoded = encode_segment(root)
        return b"%b:{%b}:s:%b*" % (_glob(self._raw), tag_of(encoded), _glob(encoded))

    def parse_subject(self, key: bytes) -> tuple[str, ...]:
        """The path whose record is kept under a key."""
        return parse_path(key.partition(b"}:s:")[2])


def _glob(raw: bytes) -> bytes:
    """A literal inside a SCAN pattern."""
    for special in (b"\\", b"*", b"?", b"[", b"]"):
        raw = raw.replace(special, b"\\" + special)
    return raw


def find_tags() -> Iterator[bytes]:
    """How `meterd.tags` was made: per partition the first tag whose slot lies in its middle."""
    alphabet = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    wanted: dict[int, bytes] = {}
    for a in alphabet:
        for b in alphabet:
            for c in alphabet:
                tag = bytes((a, b, c))
                wanted.setdefault(crc_hqx(tag, 0) & 16383, tag)
    for partition in range(1024):
        yield wanted[partition * 16 + 8]
