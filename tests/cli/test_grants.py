"""grant, void, and what show says of grants."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterd import Meter
from tests.cli.helpers import Run, data_of


def grants_of(run: Run, subject: str = "acme", level: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data_of(run("show", subject, "--json"))["levels"][level]["grants"]
    return found


def test_a_grant_and_what_is_left_of_it(stocked: Run) -> None:
    words = ["--expires", "30d", "--priority", "10", "--source", "order 7", "--op", "evt_1"]
    result = stocked("grant", "acme", "credits", "50", *words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("acme: grant evt_1: credits 50 of 50 until 2")
    assert result.stdout.rstrip().endswith("priority 10, source order 7")
    assert stocked("consume", "acme", "credits=20").exit_code == 0
    (line,) = (row for row in stocked("show", "acme").stdout.splitlines() if "grant " in row)
    assert line.startswith("  grant evt_1: credits 30 of 50 until 2")
    assert "(in 29d 23h" in line
    assert line.endswith(", priority 10, source order 7")
    (grant,) = grants_of(stocked)
    assert {k: grant[k] for k in ("id", "name", "amount", "remaining", "held", "consumed")} == {
        "id": "evt_1", "name": "credits", "amount": 50, "remaining": 30, "held": 0, "consumed": 20,
    }  # fmt: skip
    assert (grant["priority"], grant["source"], grant["expired"]) == (10, "order 7", 0)
    left = datetime.fromisoformat(grant["expires"]) - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=30)


def test_the_same_id_grants_nothing_twice(stocked: Run) -> None:
    first = data_of(stocked("grant", "acme", "credits", "50", "--op", "evt_1", "--json"))
    assert first["subject"] == "acme"
    assert data_of(stocked("grant", "acme", "credits", "50", "--op", "evt_1", "--json")) == first
    assert [g["amount"] for g in grants_of(stocked)] == [50]
    other = stocked("grant", "acme", "credits", "51", "--op", "evt_1")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "evt_1" in other.stderr


def test_show_lists_grants_in_burn_order_with_what_is_held(stocked: Run) -> None:
    assert stocked("subscribe", "acme", "pro").exit_code == 0
    for words in (
        ["credits", "5", "--op", "last"],
        ["credits", "1_500", "--priority", "10", "--op", "first"],
        ["credits", "7", "--expires", "60d", "--op", "middle"],
        ["bonus", "9", "--starts", "2h", "--op", "beside"],
        ["credits", "3", "--priority", "0", "--op", "spent"],
    ):
        assert stocked("grant", "acme", *words).exit_code == 0
    with Meter(prefix=os.environ["METERD_PREFIX"]) as meter:
        assert meter.consume("acme", "credits", 3)
        assert meter.reserve("acme", "credits", 200, op="job")
    text = stocked("show", "acme").stdout
    lines = [line.strip() for line in text.splitlines() if "grant " in line]
    names = [line.split(":")[0] for line in lines]
    assert names == ["grant beside", "grant first", "grant middle", "grant last"]
    assert "bonus 9 of 9 from " in lines[0]
    assert "credits 1,300 of 1,500 (200 held), priority 10" in lines[1]
    assert lines[3] == "grant last: credits 5 of 5, priority 50"
    assert "hold job: credits 200 until " in text
    assert {g["id"]: g["held"] for g in grants_of(stocked)}["first"] == 200


def test_a_pool_that_no_plan_includes(stocked: Run) -> None:
    assert stocked("consume", "acme", "bonus").exit_code == 3
    assert stocked("grant", "acme", "bonus", "2").exit_code == 0
    for code in (0, 0, 3):
        assert stocked("consume", "acme", "bonus").exit_code == code
    assert "2 / 0" in stocked("show", "acme").stdout


def test_void(stocked: Run) -> None:
    assert stocked("grant", "acme", "credits", "1_050", "--op", "evt_1").exit_code == 0
    assert stocked("consume", "acme", "credits=110").exit_code == 0
    result = stocked("void", "acme", "evt_1")
    assert (result.exit_code, result.stdout) == (0, "acme: grant evt_1: 1,040 taken back\n")
    again = data_of(stocked("void", "acme", "evt_1", "--json"))
    assert again == {"subject": "acme", "id": "evt_1", "taken": 0}
    assert stocked("consume", "acme", "credits").exit_code == 3
    assert "grant " not in stocked("show", "acme").stdout
    unknown = stocked("void", "acme", "evt_2")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "evt_2" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["credits"], 2),
        (["credits", "0"], 2),
        (["credits", "-5"], 2),
        (["credits", "1.5"], 2),
        (["credits", "1000000000000001"], 2),
        (["credits", "5", "--priority", "101"], 2),
        (["credits", "5", "--priority", "low"], 2),
        (["credits", "5", "--expires", "tomorrow"], 2),
        (["credits", "5", "--expires", "2001-01-01T00:00:00Z"], 1),
        (["credits", "5", "--expires", "1d", "--starts", "2d"], 1),
        (["no pool", "5"], 1),
        (["api", "5"], 1),
    ],
)
def test_what_cannot_be_granted(stocked: Run, words: list[str], code: int) -> None:
    result = stocked("grant", "acme", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert stocked("ls").stdout == ""


def test_names_that_are_no_text_for_a_terminal(stocked: Run) -> None:
    words = ["--op", "a\x1b[31mred", "--source", "x\x07\ny"]
    given = stocked("grant", "acme", "credits", "5", *words)
    assert given.exit_code == 0
    for text in (given.stdout, stocked("show", "acme").stdout):
        assert not set("\x1b\x07") & set(text)
        assert sum("grant " in line for line in text.splitlines()) == 1
    voided = stocked("void", "acme", "a\x1b[31mred")
    assert voided.exit_code == 0
    assert "\x1b" not in voided.stdout
