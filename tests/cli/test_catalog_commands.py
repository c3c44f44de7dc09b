"""apply, plans, subscribe, unsubscribe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.helpers import PLANS, Run, data_of


def test_apply_shows_the_difference(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "plans.toml"
    path.write_text(PLANS)
    dry = run("apply", "plans.toml", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "+ plan free" in dry.stdout
    assert "not applied" in dry.stdout
    assert "no plans" in run("plans").stdout

    assert "+ plan pro" in run("apply", "plans.toml").stdout
    assert run("apply", "plans.toml").stdout == "no changes\n"
    path.write_text(PLANS.replace("limit = 1000", "limit = 2000"))
    data = data_of(run("apply", "plans.toml", "--json"))
    assert data["applied"] is True
    assert data["changed"][0]["changes"] == [
        {"limit": "pool credits", "field": "limit", "old": 1000, "new": 2000}
    ]


def test_apply_from_a_module(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cli_demo_plans.py").write_text(
        "from meterd import Plan, Pool\nPLANS = [Plan('x', includes=[Pool('credits', 5)])]\n"
    )
    assert "+ plan x" in run("apply", "cli_demo_plans:PLANS").stdout


def test_plans_lists_the_catalog(stocked: Run) -> None:
    text = stocked("plans").stdout
    assert "pro Professional" in text
    assert "29.00 USD per month" in text
    assert "1,000 per month, from subscription, overage 50" in text
    assert "5 per minute, token" in text
    assert "10 at once" in text
    data = data_of(stocked("plans", "--json"))
    assert [plan["id"] for plan in data["plans"]] == ["free", "pro"]
    assert data["revision"] == 1


def test_retiring_a_plan(stocked: Run) -> None:
    assert stocked("apply", "--remove", "pro").exit_code == 0
    data = data_of(stocked("plans", "--json"))
    assert ([plan["id"] for plan in data["plans"]], data["retired"]) == (["free"], ["pro"])
    assert "retired" in stocked("plans").stdout
    assert stocked("subscribe", "acme", "pro").exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[plans.x.pools.credits]\nlimit = -1\n", "plans.x.pools.credits"),
        ("[plans.x.pools.credits]\nlimmit = 1\n", "limmit"),
        ("nonsense", "not valid TOML"),
        ("", "no plans"),
    ],
)
def test_a_bad_file_is_one_line(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    result = run("apply", "bad.toml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_apply_needs_something_to_apply(run: Run) -> None:
    assert run("apply").exit_code == 2
    assert run("apply", "missing.toml").exit_code == 1


def test_subscribing_and_leaving(stocked: Run) -> None:
    assert "subscribed to pro" in stocked("subscribe", "acme", "pro").stdout
    data = data_of(stocked("show", "acme", "--json"))
    assert data["levels"][0]["plans"] == {"base": "pro"}
    assert stocked("unsubscribe", "acme", "pro").exit_code == 0
    data = data_of(stocked("show", "acme", "--json"))
    assert data["levels"][0]["plans"] == {"base": "free"}


def test_changes_to_come(stocked: Run) -> None:
    stocked("subscribe", "acme", "pro")
    result = stocked("subscribe", "acme", "free", "--when", "period_end", "--change", "prorate")
    assert result.stdout == "acme: subscribed to free (at the end of the period)\n"
    (change,) = data_of(stocked("show", "acme", "--json"))["levels"][0]["pending"]
    assert (change["group"], change["plan"], change["change"]) == ("base", "free", "prorate")
    shown = stocked("show", "acme").stdout
    assert "plan pro (base)" in shown
    assert "  plan free (base, prorate) from 2" in shown
    result = stocked("unsubscribe", "acme", "pro", "--when", "2999-01-01T00:00Z")
    assert result.stdout == "acme: unsubscribed from pro (2999-01-01T00:00:00+00:00)\n"
    shown = stocked("show", "acme").stdout
    assert "  plan of base goes at 29" in shown
    assert "from 2" not in shown
    assert stocked("subscribe", "acme", "free", "--when", "3d").exit_code == 0
    assert "  plan free (base) from 2" in stocked("show", "acme").stdout
    data = data_of(stocked("subscribe", "acme", "pro", "--when", "now", "--json"))
    assert data == {"subject": "acme", "plan": "pro", "when": "now"}
    assert " from 2" not in stocked("show", "acme").stdout


def test_half_of_a_month_at_another_limit(stocked: Run) -> None:
    begun = datetime.now(UTC) - timedelta(days=14, hours=1)
    stocked("subscribe", "acme", "pro", "--anchor", begun.isoformat())
    own = '[plans.own.pools.credits]\nlimit = 3000\nreset = "month"\n'
    Path("own.toml").write_text(own)
    words = ["subscribe", "acme", "--limits", "own.toml", "--change", "prorate"]
    assert stocked(*words).exit_code == 0
    (limit,) = data_of(stocked("show", "acme", "--json"))["limits"]
    assert 1_900 < limit["limit"] < 2_100


def test_a_private_plan_for_a_deeper_level(stocked: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[plans.own.buckets.api]\nlimit = 2\nper = "1h"\n')
    assert stocked("subscribe", "acme/ana", "--limits", "own.toml").exit_code == 0
    limits = data_of(stocked("check", "acme/ana", "api=3", "--json"))["limits"]
    assert [(limit["subject"], limit["allowed"]) for limit in limits] == [
        ("acme", True),
        ("acme/ana", False),
    ]
    assert stocked("subscribe", "acme/ana", "--limits", "plans.toml").exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["subscribe", "acme"],
        ["subscribe", "acme", "pro", "--change", "maybe"],
        ["subscribe", "acme", "pro", "--anchor", "2024-01-31T00:00"],
        ["subscribe", "acme", "pro", "--when", "later"],
        ["subscribe", "acme", "pro", "--when", "2024-01-31T00:00"],
        ["unsubscribe", "acme"],
        ["unsubscribe", "acme", "pro", "--when", "end"],
    ],
)
def test_usage_errors(run: Run, words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


def test_an_anchor_with_a_zone(stocked: Run) -> None:
    words = ["subscribe", "acme", "pro", "--change", "reset", "--anchor", "2024-01-31T12:00+01:00"]
    result = stocked(*words)
    assert result.exit_code == 0, result.stderr
    limits = data_of(stocked("show", "acme", "--json"))["limits"]
    assert "T11:00:00" in limits[0]["resets_at"]
