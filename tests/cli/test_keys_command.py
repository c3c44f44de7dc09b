"""`meterd keys`: made, verified, changed, rotated, revoked; secrets only where they belong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from meterd.cli import main
from tests.cli.helpers import Run, data_of

VERBS = {"create", "verify", "get", "list", "update", "revoke", "rotate"}
LIMITS = """
[plans.key]
[plans.key.pools.credits]
limit = 3
"""


@pytest.fixture
def made(stocked: Run) -> dict[str, Any]:
    found: dict[str, Any] = data_of(stocked("keys", "create", "acme", "--name", "ci", "--json"))
    return found


def test_there_is_a_command_for_each_verb(bare: Run) -> None:
    group: Any = main.commands["keys"]
    assert set(group.commands) == VERBS
    for name in VERBS:
        result = bare("keys", name, "--help")
        assert result.exit_code == 0
        for option in ("--url", "--prefix", "--config", "--json"):
            assert option in result.stdout


def test_create_prints_the_secret_once(stocked: Run) -> None:
    result = stocked("keys", "create", "acme/team", "--secret-prefix", "acme_live", "--meta", "{}")
    assert result.exit_code == 0
    assert result.stderr == ""
    head, _, secret = result.stdout.splitlines()
    key_id, subject = head.split()
    assert subject == f"acme/team/{key_id}"
    assert secret.startswith("acme_live_")
    for words in (("get", key_id), ("list", "acme/team"), ("get", key_id, "--json")):
        shown = stocked("keys", *words)
        assert shown.exit_code == 0
        assert key_id in shown.stdout
        assert secret not in shown.output
    assert stocked("keys", "verify", input=secret + "\n").exit_code == 0


def test_the_secret_comes_from_stdin_a_file_or_the_environment(
    stocked: Run, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = made["secret"]
    (tmp_path / "secret").write_text(secret + "\r\n")
    for words, more in (
        ((), {"input": secret}),
        (("--file", "-"), {"input": secret + "\n"}),
        (("--file", "secret"), {}),
    ):
        result = stocked("keys", "verify", "--json", *words, **more)
        assert (result.exit_code, data_of(result)["valid"]) == (0, True)
        assert secret not in result.output
    monkeypatch.setenv("METERD_SECRET", secret)
    assert data_of(stocked("keys", "verify", "--json"))["credits"] == 96
    monkeypatch.setenv("METERD_SECRET", "")
    nothing = stocked("keys", "verify", input="\n")
    assert nothing.exit_code == 2
    assert "no secret" in nothing.stderr
    missing = stocked("keys", "verify", "--file", "nowhere")
    assert missing.exit_code == 1


def test_verify_charges_and_says_what(stocked: Run, made: dict[str, Any]) -> None:
    secret = made["secret"]
    result = stocked("keys", "verify", "credits=5", "api=2", "--no-auto", input=secret)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"VALID  {made['subject']}"
    assert "5 / 100 (+5)" in result.stdout
    again = [stocked("keys", "verify", "--op", "x", "--json", input=secret) for _ in range(2)]
    assert [data_of(one)["decision"]["replayed"] for one in again] == [False, True]
    refused = stocked("keys", "verify", "credits", "--amount", "1000", input=secret)
    assert refused.exit_code == 3
    assert "USAGE_EXCEEDED" in refused.stdout
    for wrong in (secret[:-1] + "~", "nonsense"):
        result = stocked("keys", "verify", input=wrong)
        assert (result.exit_code, result.stdout) == (3, "NOT_FOUND\n")


def test_limits_of_its_own(stocked: Run, tmp_path: Path) -> None:
    (tmp_path / "key.toml").write_text(LIMITS)
    key = data_of(stocked("keys", "create", "acme", "--limits", "key.toml", "--json"))
    assert data_of(stocked("keys", "verify", "--json", input=key["secret"]))["credits"] == 2
    text = stocked("show", key["subject"]).stdout
    assert "1 / 3" in text
    assert stocked("ls", key["subject"]).stdout.split() == [key["subject"]]
    assert stocked("keys", "update", key["id"], "--no-limits").exit_code == 0
    assert data_of(stocked("keys", "verify", "--json", input=key["secret"]))["credits"] == 98
    assert stocked("keys", "update", key["id"], "--limits", "key.toml").exit_code == 0
    assert data_of(stocked("keys", "verify", "--json", input=key["secret"]))["credits"] == 2


def test_update(stocked: Run, made: dict[str, Any]) -> None:
    key_id = made["id"]

    def update(*words: str) -> Any:
        return data_of(stocked("keys", "update", key_id, *words, "--json"))

    assert update("--disable")["enabled"] is False
    assert stocked("keys", "verify", input=made["secret"]).stdout.startswith("DISABLED")
    assert update("--enable", "--name", "new", "--meta", '{"a": [1]}')["meta"] == {"a": [1]}
    assert update("--expires", "30d")["name"] == "new"
    text = stocked("keys", "get", key_id).stdout
    assert "expires 2" in text
    assert 'meta {"a": [1]}' in text
    assert update("--expires", "never", "--name", "")["expires"] is None
    assert data_of(stocked("keys", "get", key_id, "--json"))["name"] is None
    for words in ([], ["--limits", "x", "--no-limits"], ["--meta", "[1]"], ["--expires", "soon"]):
        assert stocked("keys", "update", key_id, *words).exit_code == 2


def test_rotate_and_revoke(stocked: Run, made: dict[str, Any]) -> None:
    key_id, secret = made["id"], made["secret"]
    new = data_of(stocked("keys", "rotate", key_id, "--overlap", "1h", "--json"))
    assert "former secret good until" in stocked("keys", "get", key_id).stdout
    for good in (secret, new["secret"]):
        assert stocked("keys", "verify", input=good).exit_code == 0
    shown = stocked("keys", "rotate", key_id).stdout.splitlines()[-1]
    assert [stocked("keys", "verify", input=s).exit_code for s in (secret, shown)] == [3, 0]
    assert stocked("keys", "revoke", key_id).stdout == f"{key_id}: revoked\n"
    for words in (("revoke", key_id), ("get", key_id), ("rotate", key_id), ("get", "x")):
        gone = stocked("keys", *words)
        assert gone.exit_code == 1
        assert gone.stderr.startswith("error: ")
    assert stocked("keys", "list", "acme").stdout == "no keys\n"
    assert data_of(stocked("keys", "list", "acme", "--json")) == []


def test_import_and_join(stocked: Run) -> None:
    digest = hashlib.sha256(b"old-secret").hexdigest()
    words = ("keys", "create", "acme", "--sha256", digest, "--join", "pro", "--expires", "1d")
    result = stocked(*words)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1  # there is no secret to show
    assert data_of(stocked("keys", "verify", "--json", input="old-secret"))["credits"] == 999
    again = stocked(*words)
    assert again.exit_code == 1
    assert "imported already" in again.stderr
    assert "old-secret" not in again.output
    assert "imported" in stocked("keys", "list", "acme").stdout


@pytest.mark.parametrize(
    "words", [("create",), ("create", "acme", "--meta", "x"), ("verify", "a=b"), ("frobnicate",)]
)
def test_usage_errors(stocked: Run, words: tuple[str, ...]) -> None:
    result = stocked("keys", *words, input="x")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
