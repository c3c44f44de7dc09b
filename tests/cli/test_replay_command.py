"""`meterd replay`: recorded traffic in, a report out."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.cli.helpers import Run, data_of
from tests.support.servers import Server

LOG = "".join(
    f'10.0.0.{n % 2} - - [16/Nov/2023:12:00:{n:02} +0000] "GET / HTTP/1.1" 200 5\n'
    for n in range(50)
)
TOKENS = "TIMESTAMP,In,Out,user\n" + "".join(
    f"2023-11-16 12:{n:02}:00.1234567,{n},{10 * n},u{n % 3}\n" for n in range(20)
)
PLANS = """
[plans.day.pools.ai]
limit = 1000
reset = "day"
anchor = "calendar"
rates = { credits = 1 }
[plans.minute.buckets.rate]
limit = 100
per = "1m"
rates = { credits = 1 }
"""


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    (tmp_path / "access.log.gz").write_bytes(gzip.compress(LOG.encode()))
    (tmp_path / "tokens.csv").write_text(TOKENS)
    (tmp_path / "plans.toml").write_text(PLANS)
    return tmp_path


def test_an_access_log_with_the_built_in_plan(bare: Run, traffic: Path) -> None:
    result = bare("replay", "access.log.gz")
    assert result.exit_code == 0, result.stderr
    assert "access.log.gz · access log · 50 rows · 2 subjects" in result.stdout
    assert "plan replay-default (built in" in result.stdout
    assert "30 per minute, sliding" in result.stdout
    assert "timeline" in result.stdout
    assert result.stderr == ""


def test_csv_with_costs_and_plans(bare: Run, traffic: Path) -> None:
    words = ["--subject", "=all", "--cost", "credits=In+Out", "--plans", "plans.toml"]
    data = data_of(bare("replay", "tokens.csv", *words, "--plan", "day", "--json"))
    total = sum(11 * n for n in range(20))
    ai = data["limits"][0]
    assert (data["plan"], data["rows"], data["subjects"]) == ("day", 20, 1)
    assert ai["allowed_amount"] + ai["refused_amount"] == total
    assert ai["allowed_amount"] <= 1000
    assert ai["refused"] > 0
    assert data["columns"] == {
        "time": "TIMESTAMP", "subject": ["=all"], "costs": {"credits": "In+Out"},
    }  # fmt: skip
    assert data["refused_most"][0]["subject"] == ["all"]


def test_a_path_of_columns(bare: Run, traffic: Path) -> None:
    words = ["--subject", "=acme", "--subject", "user", "--cost", "credits=Out", "--json"]
    data = data_of(bare("replay", "tokens.csv", *words))
    assert (data["subjects"], data["built_in_plan"]) == (3, True)


def test_unreadable_lines_are_shown(bare: Run, traffic: Path) -> None:
    (traffic / "bad.csv").write_text(TOKENS + "never,1,1,u\n2023-11-16,1,x,u\n")
    result = bare("replay", "bad.csv", "--cost", "credits=In+Out")
    assert result.exit_code == 0
    assert "2 unreadable lines" in result.stdout
    assert "line 22: 'never' is not a time" in result.stdout
    data = data_of(bare("replay", "bad.csv", "--cost", "credits=In+Out", "--json"))
    assert data["unreadable"]["count"] == 2
    assert [line["line"] for line in data["unreadable"]["first"]] == [22, 23]


def test_standard_input(bare: Run, traffic: Path) -> None:
    assert data_of(bare("replay", "-", "--json", input=LOG))["source"] == "standard input"


def test_nothing_readable_is_still_a_report(bare: Run, traffic: Path) -> None:
    (traffic / "empty.csv").write_text("time,user\nnever,x\n")
    result = bare("replay", "empty.csv")
    assert result.exit_code == 0
    assert "0 rows" in result.stdout
    assert "1 unreadable line" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokens.csv", "--cost", "credits=Nope"], "no column 'Nope'"),
        (["tokens.csv", "--cost", "tokens=In", "--plans", "plans.toml"], "which plan"),
        (
            ["tokens.csv", "--cost", "ai=In", "--plans", "plans.toml", "--plan", "day"],
            "charges cred",
        ),
        (["tokens.csv", "--plans", "plans.toml", "--plan", "dya"], "did you mean 'day'"),
        (["tokens.csv", "--plan", "day"], "give both"),
        (["tokens.csv", "--subject", "="], "--subject"),
        (["tokens.csv", "--time", "when"], "there are TIMESTAMP, In, Out, user"),
        (["tokens.csv", "--cost", "credits=+"], "NAME=COLUMN"),
        (["tokens.csv", "--format", "xml"], "xml"),
        ([], "FILE"),
    ],
)
def test_usage_errors(bare: Run, traffic: Path, words: list[str], message: str) -> None:
    result = bare("replay", *words)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_file(bare: Run, tmp_path: Path) -> None:
    result = bare("replay", "missing.csv")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: missing.csv: No such file or directory\n"


def test_another_server_is_left_as_it_was(bare: Run, traffic: Path, server: Server) -> None:
    def keys() -> list[str]:
        return sorted(key for key in server.admin.scan_iter("*replay*"))

    before = keys()
    data = data_of(bare("replay", "access.log.gz", "--url", server.url, "--json"))
    assert data["rows"] == 50
    assert keys() == before


def test_a_configured_server_is_not_used(
    bare: Run, traffic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERD_URL", "redis://127.0.0.1:1/0")
    assert bare("replay", "access.log.gz").exit_code == 0
