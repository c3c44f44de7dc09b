"""Secrets of API keys: their shape, their checksum, and that no two are alike."""

from __future__ import annotations

import hashlib
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd import PolicyError
from meterd import secret as secrets

DIGITS = string.digits + string.ascii_letters
PREFIXES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", fullmatch=True)


@given(prefix=PREFIXES, partition=st.integers(0, 1023))
def test_a_secret_leads_to_its_key(prefix: str, partition: int) -> None:
    place = secrets.new_place(partition)
    secret = secrets.new_secret(prefix, place)
    assert secrets.place_of(secret) == place
    assert secrets.partition_of_place(place) == partition
    assert secrets.place_of_id(secrets.id_of(place)) == place
    # Constant length behind the prefix, and nothing that a double click would leave out.
    assert len(secret) == len(prefix) + 44
    assert re.fullmatch(r"[A-Za-z0-9_-]+", secret)


def test_enough_of_it_is_random() -> None:
    place = secrets.new_place(5)
    made = [secrets.new_secret("mk", place) for _ in range(2000)]
    hidden = [secret.rpartition("_")[2][:-6] for secret in made]
    assert len(set(hidden)) == len(made)
    assert 62 ** len(hidden[0]) >= 2**128
    for at in range(len(hidden[0])):
        assert len({text[at] for text in hidden}) > 50  # each digit takes any value
    assert len({secrets.new_place(5) for _ in range(2000)}) == 2000


@given(data=st.data())
def test_one_wrong_letter_breaks_the_checksum(data: st.DataObject) -> None:
    secret = secrets.new_secret("sk_live", secrets.new_place(77))
    at = data.draw(st.integers(0, len(secret) - 1))
    letter = data.draw(st.sampled_from([c for c in DIGITS if c != secret[at]]))
    wrong = secret[:at] + letter + secret[at + 1 :]
    # Where a separator goes, it is no secret of ours any more: it may have been imported.
    assert secrets.place_of(wrong) == ("" if secret[at] != "_" or at < 7 else None)


def test_two_letters_that_changed_places() -> None:
    secret = secrets.new_secret("mk", secrets.new_place(77))
    for at in range(len(secret) - 1):
        a, b = secret[at], secret[at + 1]
        if a != b and "_" not in (a, b):
            assert secrets.place_of(secret[:at] + b + a + secret[at + 2 :]) == ""


@pytest.mark.parametrize(
    "text",
    [
        "", "mk", "mk__", "old-secret", "ghp_" + "a" * 36, "sk_live_" + "a" * 24, "\ud800",
        "mk_" + "a" * 42, "mk_" + "a" * 14 + "_" + "a" * 27, "-mk_" + "a" * 14 + "_" + "a" * 28,
        "mk_" + "a" * 14 + "_" + "a" * 28 + "\n", "mk_" + "é" * 14 + "_" + "a" * 28,
    ],
)  # fmt: skip
def test_what_is_not_ours(text: str) -> None:
    assert secrets.place_of(text) is None
    assert len(secrets.digest(text)) == 32


def test_a_partition_that_does_not_exist_is_broken() -> None:
    forged = secrets.new_secret("mk", "zz" + "a" * 12)
    assert secrets.place_of(forged) == ""
    assert secrets.place_of_id("key_zz" + "a" * 12) is None


def test_only_the_digest_of_the_text_counts() -> None:
    assert secrets.digest("old-secret") == hashlib.sha256(b"old-secret").digest()
    given = hashlib.sha256(b"x")
    for form in (given.digest(), given.hexdigest(), given.hexdigest().upper()):
        assert secrets.checked_digest(form) == given.digest()


@pytest.mark.parametrize("wrong", ["a-secret", "0" * 63, "g" * 64, b"0" * 64, 55555, "\u0660" * 64])
def test_what_is_no_digest_is_not_repeated(wrong: object) -> None:
    with pytest.raises(PolicyError, match="64 hexadecimal digits") as caught:
        secrets.checked_digest(wrong)
    assert str(wrong) not in str(caught.value).replace("64", "")


@pytest.mark.parametrize("prefix", ["", "_mk", "-", "a" * 33, "a b", "mk/", "ключ", 5, None])
def test_prefixes_that_are_none(prefix: object) -> None:
    with pytest.raises(PolicyError, match="prefix"):
        secrets.checked_prefix(prefix)


def test_an_import_has_one_place_for_each_owner() -> None:
    places = {
        secrets.import_place(partition, secrets.digest(secret), owner)
        for partition in (0, 1023)
        for secret in ("a", "b")
        for owner in (b"acme", b"globex")
    }
    assert len(places) == 8
    assert secrets.import_place(3, secrets.digest("a"), b"x") == secrets.import_place(
        3, secrets.digest("a"), b"x"
    )
