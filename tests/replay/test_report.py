"""The report: what is counted, how it is shown, what a terminal can take."""

from __future__ import annotations

import json

import click
import pytest

from meterd.policy import Bucket, Flag, Plan, Pool, Slots
from meterd.replay import InputError, Report, Selection, built_in, check_costs, choose, render
from meterd.replay.inputs import Cost
from meterd.replay.records import Problem
from meterd.term import Look, columns

NOON = 1_700_136_000_000
PRO = Plan(
    "pro",
    includes=[
        Pool("credits", 1000, "day", anchor="calendar", rates={"tokens": 2}),
        Bucket("rate", 60, "1m", rates={"tokens": 1}),
        Flag("sso"),
    ],
)


def sample() -> Report:
    report = Report.empty([PRO], NOON, NOON + 3 * 3_600_000)
    paid = [("credits", 10), ("rate", 5), ("sso", 0)]
    for n in range(3):
        at = NOON + n * 3_600_000
        report.add(at, ("ana",), {"tokens": 5}, allowed=True, code="OK", applied=paid)
    report.add(NOON, ("bob\x1b[31m",), {"tokens": 7}, allowed=False, code="X", refused=["rate"])
    both = ["credits", "rate"]
    for _ in range(2):
        report.add(NOON, ("c/d", "東京"), {"tokens": 9}, allowed=False, code="X", refused=both)
    report.unreadable, report.problems = 7, [Problem(3, "not\ta time")]
    return report


def test_totals() -> None:
    report = sample()
    assert (report.rows, report.allowed, report.refused) == (6, 3, 3)
    credits, rate = report.limits["credits"], report.limits["rate"]
    assert (credits.allowed, credits.allowed_amount) == (3, 30)
    assert (credits.refused, credits.refused_amount, credits.refused_alone) == (2, 36, 0)
    assert (rate.refused, rate.refused_amount, rate.refused_alone) == (3, 25, 1)
    assert (report.costs["tokens"].allowed, report.costs["tokens"].refused) == (15, 25)
    assert [who.subject for who in report.refused_most()] == [("c/d", "東京"), ("bob\x1b[31m",)]
    assert sum(a + r for _, a, r in report.steps()) == 6


def test_as_dict_is_json_and_complete() -> None:
    data = json.loads(json.dumps(sample().as_dict(top=1)))
    assert data["limits"][0]["refused_amount"] == 36
    assert data["subjects"] == 3
    assert len(data["refused_most"]) == 1
    assert data["unreadable"] == {"count": 7, "first": [{"line": 3, "reason": "not\ta time"}]}
    assert data["first"] == "2023-11-16T12:00:00Z"
    assert [step["allowed"] for step in data["timeline"]["steps"] if step["allowed"]] == [1, 1, 1]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_rendering_fits_the_terminal(width: int, unicode: bool) -> None:
    text = render(sample(), Look(width, unicode, color=False))
    assert "\x1b" not in text
    assert text.isascii() or unicode
    timeline = text.split("timeline")[1].split("unreadable")[0].splitlines()[1:-2]
    assert timeline
    assert max(map(columns, timeline)) <= width
    assert "7 unreadable lines" in text
    assert "line 3: not\\ta time" in text
    assert "and 6 more" in text


def test_colours_only_when_asked_for() -> None:
    plain = render(sample(), Look(100, True, color=False))
    colored = render(sample(), Look(100, True, color=True))
    assert "\x1b[" in colored
    assert click.unstyle(colored) == plain


def test_an_empty_report_renders() -> None:
    report = Report.empty([PRO])
    report.unreadable = 2
    assert "0 rows" in render(report, Look())
    assert report.as_dict()["first"] is None


@pytest.mark.parametrize("length_ms", [0, 1, 59_000, 3_600_000, 86_400_000 * 4, 10**12, 10**14])
def test_a_timeline_has_a_few_lines_however_long_the_traffic(length_ms: int) -> None:
    report = Report.empty([PRO], NOON, NOON + length_ms)
    for at in (NOON, NOON + length_ms):
        report.add(at, ("a",), {"tokens": 1}, allowed=True, code="OK")
    assert 1 <= len(report.steps()) <= 31


def test_choosing_a_plan() -> None:
    more = Pool("credits", 5, "day", anchor="calendar", rates={"tokens": 2})
    extra = Plan("extra", includes=[more], group="add", default=True)
    other = Plan("other", includes=[Bucket("x", 1, "1s")])
    assert choose([PRO]).join is PRO
    choice = choose([PRO, extra, other], "pro")
    assert choice.effective == (PRO, extra)
    assert choice.limits[0].limit == 1005  # type: ignore[union-attr]
    assert choice.cost_names == ("tokens",)
    check_costs(choice, ["tokens", "sso"])
    with pytest.raises(InputError, match=r"charges tokens; did you mean 'tokens'"):
        check_costs(choice, ["token"])
    jobs = Plan(
        "jobs", includes=[Slots("jobs", 5), Bucket("all", 9, "1m", rates={"jobs": 1, "x": 1})]
    )
    assert choose([jobs]).cost_names == ("x",)
    with pytest.raises(InputError, match="cost 'jobs' takes slots 'jobs', and rows do not say how"):
        check_costs(choose([jobs]), ["jobs"])
    with pytest.raises(InputError, match="which plan"):
        choose([PRO, other])
    with pytest.raises(InputError, match="no plan 'prp'; there are pro, other; did you mean"):
        choose([PRO, other], "prp")
    with pytest.raises(InputError, match="no plans"):
        choose([])


def test_built_in_plans() -> None:
    log = built_in(Selection())
    assert [limit.algorithm for limit in log.limits if isinstance(limit, Bucket)] == [
        "sliding", "fixed", "token",
    ]  # fmt: skip
    assert log.cost_names == ("requests",)
    tokens = built_in(Selection(costs=(Cost.parse("credits=a+b"), Cost.parse("hits=1"))))
    assert tokens.cost_names == ("credits", "hits")
    assert [limit.kind for limit in tokens.limits] == ["pool", *["bucket"] * 4]
