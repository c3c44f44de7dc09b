"""show, ls, override, adjust, forget."""

from __future__ import annotations

import os

import pytest

from meterd import Meter
from tests.cli.helpers import Run, data_of


def test_show_draws_a_bar_per_limit(stocked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked("consume", "acme", "credits=500", "--join", "pro")
    text = stocked("show", "acme").stdout
    assert "acme  plan pro (base)" in text
    assert "500 / 1,000" in text
    assert "██████████░░░░░░░░░░" in text
    assert "resets 2" in text
    assert "(in " in text
    assert "included" in text  # the flag


def test_show_an_unseen_subject(stocked: Run) -> None:
    result = stocked("show", "nobody")
    assert result.exit_code == 0
    assert "not seen yet; this is what it would join" in result.stdout
    assert stocked("ls").stdout == ""


def test_show_two_levels(stocked: Run) -> None:
    stocked("consume", "acme", "credits=3")
    stocked("subscribe", "acme/ana", "pro")
    data = data_of(stocked("show", "acme/ana", "--json"))
    assert [level["subject"] for level in data["levels"]] == ["acme", "acme/ana"]
    text = stocked("show", "acme/ana").stdout
    assert "acme/ana  plan pro (base)" in text
    assert "3 / 100" in text


def test_show_open_holds(stocked: Run) -> None:
    with Meter(prefix=os.environ["METERD_PREFIX"]) as meter:
        meter.subscribe("acme", "pro")
        first = meter.reserve("acme", {"jobs": 2, "credits": 1500 // 3}, ttl="30m", op="import 7")
        others = [meter.reserve("acme", "jobs", 0, ttl="1h") for _ in range(2)]
        assert first
        assert all(others)
    text = stocked("show", "acme").stdout
    assert "2 / 10" in text
    assert "  hold import 7: jobs 2, credits 500 until " in text
    assert text.count("hold ") == 1  # of nothing, nothing is held
    (level,) = data_of(stocked("show", "acme", "--json"))["levels"]
    assert level["open_holds"] == 1
    assert level["holds"][0]["amounts"] == {"jobs": 2, "credits": 500}
    with Meter(prefix=os.environ["METERD_PREFIX"]) as meter:
        for _ in range(8):
            assert meter.reserve("acme", "jobs")
        for _ in range(3):
            assert meter.reserve("acme", "credits")
    text = stocked("show", "acme").stdout
    assert text.count("  hold ") == 10
    assert "  2 more open holds" in text


def test_ls(stocked: Run) -> None:
    assert data_of(stocked("ls", "--json")) == []
    for subject in ("acme", "acme2", "beta"):
        stocked("consume", subject, "credits")
    stocked("subscribe", "acme/ana", "pro")
    assert sorted(stocked("ls").stdout.split()) == ["acme", "acme/ana", "acme2", "beta"]
    assert sorted(stocked("ls", "acme").stdout.split()) == ["acme", "acme/ana"]
    assert sorted(data_of(stocked("ls", "--json"))) == ["acme", "acme/ana", "acme2", "beta"]
    assert len(data_of(stocked("ls", "-n", "2", "--json"))) == 2
    assert data_of(stocked("ls", "-n", "0", "--json")) == []


def test_override_and_clear(stocked: Run) -> None:
    result = stocked("override", "acme", "credits", "--limit", "7", "--expires", "30d")
    assert result.exit_code == 0, result.stderr
    text = stocked("show", "acme").stdout
    assert "0 / 7" in text
    assert "override credits: limit 7 until 2" in text
    assert stocked("override", "acme", "credits", "--limit", "unlimited").exit_code == 0
    assert "0 used, unlimited" in stocked("show", "acme").stdout
    assert stocked("override", "acme", "credits", "--clear").exit_code == 0
    assert "0 / 100" in stocked("show", "acme").stdout


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--clear", "--limit", "5"],
        ["--limit", "-5"],
        ["--burst", "unlimited"],
        ["--limit", "5", "--expires", "tomorrow"],
    ],
)
def test_override_usage(run: Run, words: list[str]) -> None:
    assert run("override", "acme", "credits", *words).exit_code == 2


def test_adjust(stocked: Run) -> None:
    stocked("consume", "acme", "credits")
    assert stocked("adjust", "acme", "credits", "--used", "40").exit_code == 0
    assert "40 / 100" in stocked("show", "acme").stdout
    assert stocked("adjust", "acme", "nothing", "--used", "1").exit_code == 1
    assert stocked("adjust", "acme", "credits").exit_code == 2


def test_forget_never_asks_without_a_terminal(stocked: Run) -> None:
    for subject in ("acme", "acme2"):
        stocked("consume", subject, "credits")
    stocked("subscribe", "acme/ana", "pro")
    refused = stocked("forget", "acme", input="y\n")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert len(stocked("ls").stdout.split()) == 3
    assert stocked("forget", "acme", "--yes").exit_code == 0
    assert stocked("ls").stdout.split() == ["acme2"]


def test_forget_asks_on_a_terminal(stocked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked("consume", "acme", "credits")
    monkeypatch.setattr("meterd.cli.records._on_terminal", lambda: True)
    assert stocked("forget", "acme", input="n\n").exit_code == 1
    assert stocked("ls").stdout.split() == ["acme"]
    assert stocked("forget", "acme", input="y\n").exit_code == 0
    assert stocked("ls").stdout == ""
