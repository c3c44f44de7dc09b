"""The command as a whole: verbs, global options, settings, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from meterd.cli import main
from meterd.errors import PolicyError
from meterd.settings import read_settings
from tests.cli.helpers import Run, data_of
from tests.support.servers import Server

VERBS = {
    "adjust", "apply", "check", "consume", "demo", "doctor", "forget", "grant", "ls", "override",
    "plans", "refund", "replay", "report", "show", "subscribe", "unsubscribe", "void",
}  # fmt: skip


def test_there_is_one_command_per_verb() -> None:
    assert set(main.commands) >= VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_command_explains_itself_and_takes_the_global_options(bare: Run, verb: str) -> None:
    result = bare(verb, "--help")
    assert result.exit_code == 0
    for option in ("--url", "--prefix", "--config", "--json"):
        assert option in result.stdout
    assert main.commands[verb].help


def test_help_version_and_no_command(bare: Run) -> None:
    assert "Exit codes" in bare("--help").stdout
    assert bare("--version").stdout.startswith("meterd, version ")
    nothing = bare()
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "Usage: meterd" in nothing.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["frobnicate"], "frobnicate"), (["check", "--nope"], "--nope"), (["show"], "SUBJECT")],
)
def test_usage_errors_are_one_line(bare: Run, words: list[str], hint: str) -> None:
    result = bare(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert hint in result.stderr
    assert "--help'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["check", "consume", "show", "ls", "plans", "doctor"])
def test_an_unreachable_server_exits_with_4(bare: Run, verb: str) -> None:
    words = {"check": ["a", "b"], "consume": ["a", "b"], "show": ["a"]}.get(verb, [])
    result = bare(verb, *words, "--url", "redis://user:s3cret@127.0.0.1:1/0", "--timeout", "0.2")
    assert (result.exit_code, result.stdout) == (4, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert "s3cret" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bad_settings_are_one_line(bare: Run, tmp_path: Path) -> None:
    assert bare("show", "a", "--url", "http://x").exit_code == 1
    assert bare("show", "a", "--prefix", "a{b", "--url", "redis://127.0.0.1:1").exit_code == 1
    (tmp_path / "meterd.toml").write_text("urll = 'x'\n")
    result = bare("show", "a")
    assert result.exit_code == 1
    assert "urll" in result.stderr


def test_a_mistake_of_ours_is_one_line_too(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_state: Any) -> Any:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("meterd.cli.base.State.settings", broken)
    result = bare("show", "a")
    assert result.exit_code == 1
    assert "METERD_DEBUG=1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_global_options_before_or_after_the_verb(bare: Run, server: Server) -> None:
    for words in (
        ["--url", server.url, "--prefix", "cli-any", "--json", "show", "acme"],
        ["show", "acme", "--url", server.url, "--prefix", "cli-any", "--json"],
        ["--url", "redis://127.0.0.1:1", "show", "--url", server.url, "--json", "acme"],
    ):
        assert data_of(bare(*words))["subject"] == "acme"


def test_settings_arguments_environment_file_defaults(tmp_path: Path) -> None:
    (tmp_path / "meterd.toml").write_text('url = "redis://file"\nprefix = "file"\ntimeout = 7\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    environ = {"METERD_PREFIX": "env", "METERD_ACCEPT_EVICTION": "yes"}
    assert read_settings({"timeout": 3.0, "url": None}, environ=environ, start=below) == {
        "url": "redis://file",
        "prefix": "env",
        "timeout": 3.0,
        "accept_eviction": True,
    }
    other = tmp_path / "other.toml"
    other.write_text('prefix = "other"\n')
    named = {"METERD_CONFIG": str(other)}
    assert read_settings({}, environ=named, start=below) == {"prefix": "other"}
    assert read_settings({}, environ={}, start=Path("/")) == {}
    for bad in ({"METERD_TIMEOUT": "soon"}, {"METERD_ACCEPT_EVICTION": "maybe"}):
        with pytest.raises(PolicyError, match=next(iter(bad))):
            read_settings({}, environ=bad, start=Path("/"))


def test_settings_in_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.meterd]\nprefix = "project"\n')
    assert read_settings({}, environ={}, start=tmp_path) == {"prefix": "project"}
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert read_settings({}, environ={}, start=tmp_path) == {}
    (tmp_path / "pyproject.toml").write_text("broken")
    assert read_settings({}, environ={}, start=tmp_path) == {}


def process(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("METERD_")}
    return subprocess.run(
        [sys.executable, "-c", "from meterd.cli import main; main(prog_name='meterd')", *words],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_plain_ascii_where_the_output_is_not_utf8(stocked: Run) -> None:
    stocked("consume", "acme", "credits=50")
    where = {name: os.environ[name] for name in ("METERD_URL", "METERD_PREFIX")}
    result = process("show", "acme", PYTHONIOENCODING="ascii", PYTHONUTF8="0", **where)
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert "##########.........." in result.stdout


def test_a_closed_pipe_is_no_error(stocked: Run) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("METERD_DEBUG")}
    command = f"{sys.executable} -c 'from meterd.cli import main; main()' plans | true"
    done = subprocess.run(
        command, shell=True, env=clean, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_colours_follow_the_terminal_and_no_color() -> None:
    result = process("--help")
    assert "\x1b" not in result.stdout
    assert click.unstyle(result.stdout) == result.stdout


def test_json_of_doctor(run: Run) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.stdout
    data = json.loads(result.stdout)
    assert data["ok"] is True
    states = {check["name"]: check["state"] for check in data["checks"]}
    assert states["connection"] == states["server"] == states["eviction"] == "ok"
    assert states["catalog"] == "warn"
