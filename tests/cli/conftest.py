"""The command line against a real server: every test in a prefix and a directory of its own."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meterd.cli import main
from tests.cli.helpers import PLANS, Run
from tests.support.servers import Server


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`bare("check", ...)` runs a command without any setting, in an empty directory."""
    for name in ("URL", "PREFIX", "TIMEOUT", "CONFIG", "DEBUG", "OP_RETENTION", "ACCEPT_EVICTION"):
        monkeypatch.delenv(f"METERD_{name}", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **more: Any) -> Result:
        result = CliRunner().invoke(main, list(words), prog_name="meterd", **more)
        assert "Traceback" not in result.output
        if result.exit_code not in (0, 3) and not result.stderr.startswith("Usage"):
            errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
            assert len(errors) <= 1, result.stderr
        return result

    return run


@pytest.fixture
def run(bare: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same with a server and a fresh prefix in the environment."""
    monkeypatch.setenv("METERD_URL", server.url)
    monkeypatch.setenv("METERD_PREFIX", f"cli-{secrets.token_hex(6)}")
    return bare


@pytest.fixture
def stocked(run: Run, tmp_path: Path) -> Run:
    """The same with the plans above applied from a file."""
    (tmp_path / "plans.toml").write_text(PLANS)
    assert run("apply", "plans.toml").exit_code == 0
    return run
