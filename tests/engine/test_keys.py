"""Keys: one per subject and no two alike, all of a root in one slot, spread evenly over slots."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd.errors import PolicyError
from meterd.keys import (
    Keyspace,
    decode_segment,
    encode_segment,
    find_tags,
    partition_of,
    slot_of,
    tag_of,
)
from meterd.tags import TAGS
from tests.engine.raw import database
from tests.support.servers import Server

KEYS = Keyspace()
# Dense in what an encoding can stumble over.
PARTS = [*"a/%25F*?[]\\{}:\x00\n\r\u200bé", "%2F", "%25", "%252F", "2F", "😀"]
NASTY = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)
SEGMENT = NASTY | st.text(min_size=1, max_size=30).filter(
    lambda text: "\ud800" not in text and len(text.encode("utf-8", "ignore")) <= 128
)
SEGMENT = SEGMENT.filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
PATH = st.lists(SEGMENT, min_size=1, max_size=4).map(tuple)
PREFIX = st.text(alphabet="ab:s", min_size=1, max_size=4)
OP = st.text(alphabet="a/%:{}\x00é", min_size=1, max_size=8)


def all_keys(path: tuple[str, ...], op: str) -> list[bytes]:
    found = KEYS.path(path)
    metas = [KEYS.meta(KEYS.path(path[: i + 1])) for i in range(len(path))]
    holds = [key for level in range(1, len(path) + 1) for key in KEYS.holds(found, level)]
    topups = [KEYS.topups(KEYS.path(path[: i + 1])) for i in range(len(path))]
    partition = partition_of(found.root)
    shared = [
        KEYS.partition_key(partition, kind) for kind in (b"events", b"outbox", b"dead", b"lease:x")
    ]
    assert KEYS.root_meta(partition, found.root) == metas[0]
    assert KEYS.shared(found)[:2] == tuple(shared[:2])
    api_key = KEYS.api_key(partition, "key_00000000000000")
    keys = [KEYS.api_keys(KEYS.path(path[: i + 1])) for i in range(len(path))]
    ops = [KEYS.op(found, op), KEYS.hold_end(found, op)]
    return [*found.keys, *metas, *holds, *topups, *shared, *ops, api_key, *keys]


@given(paths=st.lists(PATH, min_size=2, max_size=6, unique=True), ops=st.tuples(OP, OP))
@settings(deadline=None)
def test_no_two_things_share_a_key(paths: list[tuple[str, ...]], ops: tuple[str, str]) -> None:
    """Records, metas, holds, operation ids, ends of holds, API keys, and records of limiters."""
    owners: dict[bytes, Any] = {}
    for partition, sha256 in itertools.product((0, 1023), (bytes(32), b"\xff" * 32)):
        key_id = f"key_{partition:014}"
        owners[KEYS.api_key(partition, key_id)] = ("key", key_id)
        owners[KEYS.api_key_of(sha256)] = ("imported", sha256)
    for path in paths:
        found = KEYS.path(path)
        for level, key in enumerate(found.keys, 1):
            assert owners.setdefault(key, ("record", path[:level])) == ("record", path[:level])
            meta = KEYS.meta(KEYS.path(path[:level]))
            assert owners.setdefault(meta, ("meta", path[:level])) == ("meta", path[:level])
            topups = KEYS.topups(KEYS.path(path[:level]))
            assert owners.setdefault(topups, ("topups", path[:level])) == ("topups", path[:level])
            for kind, held in zip(("holds", "ends"), KEYS.holds(found, level), strict=True):
                assert owners.setdefault(held, (kind, path[:level])) == (kind, path[:level])
        for op in ops:
            mine = ("op", path[0], op)
            assert owners.setdefault(KEYS.op(found, op), mine) == mine
            over = ("end", path[0], op)
            assert owners.setdefault(KEYS.hold_end(found, op), over) == over
        for level in range(1, len(path) + 1):
            listed = ("keys of", path[:level])
            assert owners.setdefault(KEYS.api_keys(KEYS.path(path[:level])), listed) == listed
        for name in ("login", "a"):
            mine = ("limiter", name, path)
            assert owners.setdefault(KEYS.limiter(name, path).keys[0], mine) == mine


@given(path=PATH)
@settings(deadline=None)
def test_a_subject_can_be_read_back_from_its_key(path: tuple[str, ...]) -> None:
    for level, key in enumerate(KEYS.path(path).keys, 1):
        assert KEYS.parse_subject(key) == path[:level]
    for segment in path:
        encoded = encode_segment(segment)
        assert b"/" not in encoded
        assert decode_segment(encoded) == segment


@given(path=PATH, op=OP)
@settings(deadline=None)
def test_everything_of_a_root_is_in_one_slot(path: tuple[str, ...], op: str) -> None:
    root = path[0]
    slots = {slot_of(key) for key in [*all_keys(path, op), *all_keys((root, "x", "y"), "other")]}
    assert len(slots) == 1
    assert slots.pop() >> 4 == partition_of(encode_segment(root))


@given(path=PATH, op=OP)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_agrees_on_the_slot(client: redis.Redis, path: tuple[str, ...], op: str) -> None:
    for key in all_keys(path, op):
        assert client.execute_command("CLUSTER", "KEYSLOT", key) == slot_of(key)


@pytest.mark.parametrize(
    "word", [b"plain", b"", b"{}", b"{}a", b"a{b}c", b"a{b}{c}", b"{a", b"}{a}"]
)
def test_the_slot_of_any_key(client: redis.Redis, word: bytes) -> None:
    assert client.execute_command("CLUSTER", "KEYSLOT", word) == slot_of(word)


# Partitions ---------------------------------------------------------------------------------------


def test_the_table_of_tags_is_what_its_rule_gives() -> None:
    tags = list(find_tags())
    assert b"".join(tags) == TAGS
    assert len(tags) == len(set(tags)) == 1024
    for partition, tag in enumerate(tags):
        assert slot_of(b"x:{" + tag + b"}") == partition * 16 + 8


def test_partitions_spread_evenly_over_any_cluster() -> None:
    slots = sorted(slot_of(TAGS[i * 3 : i * 3 + 3]) for i in range(1024))
    for nodes in range(1, 65):
        counts = Counter(slot * nodes // 16384 for slot in slots)
        assert len(counts) == nodes
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(
    "name",
    ["customer-{}".format, "{}".format, "{:032x}".format, "é{}@x.org".format, "{0:o}-{0:b}".format],
)
def test_roots_spread_evenly_over_partitions(name: Callable[[int], str]) -> None:
    counts = Counter(partition_of(encode_segment(name(i * 79))) for i in range(102_400))
    assert len(counts) == 1024
    # 100 each on average; by pure chance no partition of 1,024 would stray further.
    assert min(counts.values()) > 40
    assert max(counts.values()) < 180


def test_a_limiter_spreads_its_subjects() -> None:
    tags = {KEYS.limiter("login", (f"10.0.{i // 256}.{i % 256}",)).tag for i in range(5000)}
    assert len(tags) > 900


# What is no subject, and what is no prefix --------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        "", "/", "a/", "/a", "a//b", "a/b/c/d/e", (), ("",), ("a", ""), ("a",) * 5, "x" * 129,
        ("a", "é" * 65), ("a", 1), (None,), (b"a",), b"a", None, 5, 1.5, ("a", True), ["a", ["b"]],
        "\ud800", ("a", "\udfff"), {"a": 1}, {"a"},
    ],
)  # fmt: skip
def test_what_is_no_subject(subject: Any) -> None:
    with pytest.raises(PolicyError, match="subject"):
        KEYS.path(tuple(subject) if isinstance(subject, list) else subject)


@pytest.mark.parametrize(
    "subject",
    ["a", "x" * 128, ("é" * 64, "a/b"), "a/b/c/d", ("\x00", "\n", " ", "%"), "\uff41/\uff41"],
)
def test_what_is_one(subject: Any) -> None:
    assert len(KEYS.path(subject).keys) == (
        len(subject) if isinstance(subject, tuple) else subject.count("/") + 1
    )


@pytest.mark.parametrize(
    "prefix", ["", "a{b", "a}b", "a*", "a?", "[a", "a]", "a\\b", 5, None, b"a"]
)
def test_what_is_no_prefix(prefix: Any) -> None:
    with pytest.raises(PolicyError, match="prefix"):
        Keyspace(prefix)


@given(
    prefixes=st.lists(PREFIX, min_size=2, max_size=2, unique=True),
    paths=st.tuples(PATH, PATH),
)  # fmt: skip
@settings(deadline=None)
def test_stores_under_different_prefixes_never_meet(
    prefixes: list[str], paths: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    one, two = (Keyspace(prefix) for prefix in prefixes)
    left = {*one.path(paths[0]).keys, one.catalog, one.policies, one.clock}
    right = {*two.path(paths[1]).keys, two.catalog, two.policies, two.clock}
    assert not left & right


# Patterns -----------------------------------------------------------------------------------------


@given(
    paths=st.lists(PATH, min_size=2, max_size=8, unique=True),
    prefix=st.sampled_from(["p", "p:q", "p^", "p.é", "p-"]),
    op=OP,
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_patterns_match_what_they_should_and_nothing_else(
    server: Server, paths: list[tuple[str, ...]], prefix: str, op: str
) -> None:
    keys, other = Keyspace(prefix), Keyspace(prefix + "x")
    client = database(server, 7)
    client.flushdb()
    everything = set(
        itertools.chain.from_iterable((p[:i] for i in range(1, len(p) + 1)) for p in paths)
    )
    for path in everything:
        found = keys.path(path)
        mine = (keys.meta(found), keys.op(found, op), keys.hold_end(found, op))
        values = dict.fromkeys((found.keys[-1], *mine, *keys.holds(found, len(path))), b"")
        client.mset(
            {**values, keys.limiter("l", path).keys[0]: b"", other.path(path).keys[-1]: b""}
        )
    client.mset({keys.catalog: b"", keys.policies: b"", keys.clock: b""})

    def scan(pattern: bytes) -> set[bytes]:
        return set(client.scan_iter(match=pattern, count=10_000))

    assert {keys.parse_subject(key) for key in scan(keys.subjects_pattern())} == everything
    assert len(scan(keys.subjects_pattern())) == len(everything)
    for path in everything:
        found = keys.path(path)
        below = {p for p in everything if p[: len(path)] == path and p != path}
        assert scan(keys.below_pattern(found)) == {keys.path(p).keys[-1] for p in below}
        assert scan(keys.below_pattern(found, b"m")) == {keys.meta(keys.path(p)) for p in below}
        held = {keys.holds(keys.path(p), len(p)) for p in below}
        assert scan(keys.below_pattern(found, b"h")) == {key for key, _ in held}
        assert scan(keys.below_pattern(found, b"x")) == {key for _, key in held}
        of_root = keys.path(path[:1])
        assert scan(keys.below_pattern(of_root, b"o")) == {keys.op(found, op)}
        assert scan(keys.below_pattern(of_root, b"e")) == {keys.hold_end(found, op)}
        every = {key for pair in held for key in pair} | scan(keys.below_pattern(found))
        assert scan(keys.below_pattern(found, b"shx")) == every
        assert {keys.record_of(key) for key in every} == scan(keys.below_pattern(found))
        assert all(keys.record_of(key) is None for key in mine)
        # By root the pattern may name other roots that begin alike; the client tells them apart.
        named = {keys.parse_subject(key) for key in scan(keys.subjects_pattern(path[0]))}
        assert named >= {p for p in everything if p[0] == path[0]}
        assert all(tag_of(encode_segment(p[0])) == found.tag for p in named)
