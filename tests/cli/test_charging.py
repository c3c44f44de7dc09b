"""check, consume, report, refund: answers, exit codes, operation ids."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.cli.helpers import Run, data_of


def test_consume_prints_a_bar_per_limit_and_exits_with_0(stocked: Run) -> None:
    result = stocked("consume", "acme", "credits=30", "api")
    assert result.exit_code == 0, result.stderr
    assert "allowed" in result.stdout
    assert "30 / 100 (+30)" in result.stdout
    assert "1 / 5 (+1)" in result.stdout
    assert result.stderr == ""


def test_a_refusal_exits_with_3_and_charges_nothing(stocked: Run) -> None:
    result = stocked("consume", "acme", "credits=101", "--json")
    assert result.exit_code == 3
    data = data_of(result)
    assert (data["allowed"], data["code"], data["refused"]) == (
        False,
        "USAGE_EXCEEDED",
        ["credits"],
    )
    assert data["retry_after"] is None
    assert "will not fit by waiting" in stocked("check", "acme", "credits=101").stdout
    assert data_of(stocked("check", "acme", "credits", "--json"))["balance"] == 100


def test_check_changes_nothing(stocked: Run) -> None:
    for _ in range(2):
        result = stocked("check", "acme/ana", "credits", "--amount", "100", "--json")
        assert result.exit_code == 0
        assert data_of(result)["limits"][0]["applied"] == 0
    assert stocked("ls").stdout == ""


def test_a_rate_limit_says_when_to_come_back(stocked: Run) -> None:
    assert stocked("consume", "acme", "api=5").exit_code == 0
    result = stocked("consume", "acme", "api")
    assert result.exit_code == 3
    assert "RATE_LIMITED" in result.stdout
    assert "fits in 1" in result.stdout  # 12 s at most


def test_wait(stocked: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    plans = tmp_path_factory.mktemp("fast") / "fast.toml"
    plans.write_text('[plans.fast.buckets.hits]\nlimit = 1\nper = "300ms"\nalgorithm = "fixed"\n')
    assert stocked("apply", str(plans)).exit_code == 0
    assert stocked("consume", "acme", "hits", "--join", "fast").exit_code == 0
    started = time.monotonic()
    assert stocked("consume", "acme", "hits", "--wait", "30").exit_code == 0
    assert time.monotonic() - started < 20
    assert stocked("consume", "acme", "hits=2", "--wait", "500ms").exit_code == 3


def test_the_plan_to_join(stocked: Run) -> None:
    data = data_of(stocked("consume", "acme", "credits", "--join", "pro", "--json"))
    assert data["limits"][0]["limit"] == 1000
    assert datetime.fromisoformat(data["limits"][0]["resets_at"]).tzinfo is not None
    result = stocked("consume", "beta", "credits", "--join", "prp")
    assert result.exit_code == 1
    assert "did you mean 'pro'" in result.stderr


def test_an_operation_id_charges_once(stocked: Run) -> None:
    assert data_of(stocked("consume", "acme", "credits=7", "--op", "o1", "--json"))["op"] == "o1"
    again = stocked("consume", "acme", "credits=7", "--op", "o1")
    assert "replayed" in again.stdout
    conflict = stocked("consume", "acme", "credits=8", "--op", "o1")
    assert conflict.exit_code == 1
    assert conflict.stderr.startswith("error: ")
    assert data_of(stocked("check", "acme", "credits", "--json"))["balance"] == 93


def test_report_goes_beyond_the_limit(stocked: Run) -> None:
    result = stocked("report", "acme", "credits=130")
    assert result.exit_code == 0
    assert "130 / 100, 30 over (+130)" in result.stdout
    missing = stocked("report", "acme", "nothing")
    assert missing.exit_code == 3
    assert missing.stderr.startswith("error: ")


def test_a_whole_operation(stocked: Run) -> None:
    assert stocked("consume", "acme/ana", "credits=30", "--op", "x").exit_code == 0
    text = stocked("show", "acme", "--op", "x").stdout
    assert "operation x" in text
    assert "consume credits 30" in text
    assert "acme/ana" in text
    assert "30 / 100 (+30)" in text
    for replayed in (False, True):
        data = data_of(stocked("refund", "acme/ana", "--of", "x", "--json"))
        assert [state["applied"] for state in data["limits"]] == [30]
        assert data["replayed"] == replayed
    assert "given back: credits 30" in stocked("show", "acme", "--op", "x").stdout
    data = data_of(stocked("show", "acme", "--op", "x", "--json"))
    assert (data["verb"], data["subject"], data["refunded"]) == ("consume", "acme/ana", True)
    for words in (["show", "acme", "--op", "y"], ["refund", "acme", "--of", "y"]):
        result = stocked(*words)
        assert result.exit_code == 1
        assert "no operation 'y' is known" in result.stderr


def test_refunds(stocked: Run) -> None:
    stocked("consume", "acme", "credits=50")
    result = stocked("refund", "acme", "credits=20", "--json")
    assert result.exit_code == 0
    assert data_of(result)["limits"][0]["used"] == 30
    more = stocked("refund", "acme", "credits=99", "--op", "r1")
    assert "(+30)" in more.stdout
    assert "replayed" in stocked("refund", "acme", "credits=99", "--op", "r1").stdout
    assert data_of(stocked("check", "acme", "credits", "--json"))["balance"] == 100
    assert stocked("refund", "nobody", "image").exit_code == 3


def test_not_included(stocked: Run) -> None:
    result = stocked("check", "acme", "image")
    assert result.exit_code == 3
    assert "NOT_INCLUDED" in result.stdout


def test_segments_with_slashes(stocked: Run) -> None:
    assert stocked("consume", '["acme", "a/b"]', "credits").exit_code == 0
    assert stocked("subscribe", '["acme", "a/b"]', "pro").exit_code == 0
    assert '["acme", "a/b"]' in stocked("ls").stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["consume", "acme"], "COST"),
        (["consume", "acme", "a=-5"], "'-5' is not a whole number"),
        (["consume", "acme", "a=1.5"], "'1.5' is not a whole number"),
        (["consume", "acme", "a=nan"], "not a whole number"),
        (["consume", "acme", "a=1000000000000001"], "more than 1000000000000000"),
        (["consume", "acme", "=5"], "NAME=AMOUNT"),
        (["consume", "acme", "a", "a=2"], "given twice"),
        (["consume", "acme", "a=2", "--amount", "3"], "--amount goes with a single COST"),
        (["consume", "acme", "a", "--amount", "many"], "'many' is not a whole number"),
        (["consume", "acme", "a", "--wait", "soon"], "--wait"),
        (["refund", "acme"], "COST"),
        (["refund", "acme", "credits", "--of", "x"], "--of"),
        (["refund", "acme", "--of", "x", "--amount", "2"], "--of"),
        (["show", "acme", "--op", "x", "--join", "pro"], "--join"),
    ],
)
def test_usage_errors(run: Run, words: list[str], message: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
