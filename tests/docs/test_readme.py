"""The README against the product: every snippet runs, every command of the CLI is in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from meterd.catalog_toml import load_settings, load_toml
from meterd.cli import main
from tests.support.servers import Server, start

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start("valkey-9.1") as running:
        yield running


def test_python_snippets_run_in_order() -> None:
    names: dict[str, object] = {}
    snippets = blocks("python")
    assert len(snippets) >= 9
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)


def test_toml_snippet_is_a_catalog(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    file = tmp_path / "meterd.toml"
    file.write_text(text, encoding="utf-8")
    assert [plan.id for plan in load_toml(file)] == ["free", "pro"]
    assert load_settings(file)["url"].startswith("redis://")


def test_console_snippets_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERD_URL", server.url)
    (toml,) = blocks("toml")
    Path("meterd.toml").write_text(toml, encoding="utf-8")
    Path("access.log.gz").write_text(
        '203.0.113.7 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 23 "-" "-"\n'
    )
    Path("llm.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    )
    Path("calls.jsonl").write_text(
        '{"time": "2025-01-01T00:00:00Z", "org": "acme", "user": "ana"}\n'
    )
    ran = 0
    for block in blocks("console"):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[0] == "make":
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
                continue
            assert words[0] == "meterd"
            result = CliRunner().invoke(main, words[1:])
            assert result.exit_code == 0, (line, result.output, result.stderr)
            ran += 1
    assert ran >= 5


def test_every_command_is_in_the_readme() -> None:
    missing = [name for name in main.commands if f"`meterd {name}" not in README]
    assert not missing


def test_every_error_is_in_the_readme() -> None:
    for name in ("Unavailable", "OutcomeUnknown", "OpConflict", "UnsafeServer", "PolicyError"):
        assert f"`{name}`" in README
