"""Real traffic through the engine and the pure-Python model: the same answer to every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meterd import Bucket, Meter, Plan, Pool
from meterd.replay import (
    Choice,
    Cost,
    Report,
    Row,
    Selection,
    Source,
    built_in,
    choose,
    read_rows,
    replay,
)
from meterd.testing import ManualClock
from tests.oracle import Oracle

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LOG = DATA / "apache_access.log.gz"
TOKENS = DATA / "azure_llm_conv.csv.gz"

WEB = Plan(
    "web",
    includes=[
        Bucket("sliding", 12, "1m", rates={"requests": 1}),
        Bucket("fixed", 40, "1h", algorithm="fixed", rates={"requests": 1}),
        Bucket("token", 3, "7s", algorithm="token", burst=8, rates={"requests": 1}),
        Bucket("weighted", 100, "10m", rates={"requests": 3}),
        Pool("daily", 60, "day", anchor="calendar", tz="America/St_Johns", rates={"requests": 1}),
        Pool("rolling", 9, "90m", rollover=5, rates={"requests": 1}),
        Pool("opened", 30, "5h", anchor="first_use", rates={"requests": 1}),
    ],
)
LLM = Plan(
    "llm",
    includes=[
        Pool("ai-tokens", 18_000_000, "day", anchor="calendar", rates={"credits": 1}),
        Bucket("token-rate", 450_000, "1m", algorithm="token", rates={"credits": 1}),
    ],
)
SHORT = Plan(
    "short",
    includes=[
        Pool("ten-minutes", 4_000_000, "10m", rollover=100_000, rates={"credits": 1}),
        Pool("soft", 1_000_000, "hour", anchor="calendar", overage=None, rates={"credits": 2}),
        Bucket("sliding", 400_000, "1m", rates={"credits": 1}),
        Bucket("fixed", 70_000, "10s", algorithm="fixed", rates={"credits": 1}),
    ],
)
COST = Selection(subject=("=all",), costs=(Cost.parse("credits=ContextTokens+GeneratedTokens"),))


class Recording:
    """Stands where the meter does and keeps the figures of every answer."""

    def __init__(self, consume: Any) -> None:
        self._consume = consume
        self.answers: list[tuple[Any, ...]] = []

    def consume(self, subject: tuple[str, ...], costs: Any, *, join: str) -> Any:
        decision = self._consume(subject, costs, join=join)
        figures = [
            (s.name, s.used, s.remaining, s.overage, s.applied, s.allowed, s.resets_at_ms)
            for s in decision.limits
        ]
        self.answers.append(
            (decision.allowed, str(decision.code), decision.balance, retry_ms(decision), figures)
        )
        return decision


def retry_ms(decision: Any) -> int | None:
    if hasattr(decision, "retry_after_ms"):
        return decision.retry_after_ms  # type: ignore[no-any-return]
    return None if decision.retry_after is None else round(decision.retry_after * 1000)


def by_engine(choice: Choice, rows: Sequence[Row]) -> tuple[Report, list[tuple[Any, ...]]]:
    clock = ManualClock(rows[0].time_ms)
    with Meter.embedded(plans=list(choice.catalog), clock=clock) as meter:
        recording = Recording(meter.consume)
        report = replay(recording, rows, clock=clock, choice=choice)  # type: ignore[arg-type]
    return report, recording.answers


def by_oracle(choice: Choice, rows: Sequence[Row]) -> tuple[Report, list[tuple[Any, ...]]]:
    oracle = Oracle(choice.catalog)
    clock = ManualClock(rows[0].time_ms)

    def consume(subject: Any, costs: Any, *, join: str) -> Any:
        return oracle.consume(subject, costs, join=join, now_ms=clock.now_ms)

    recording = Recording(consume)
    report = replay(recording, rows, clock=clock, choice=choice)  # type: ignore[arg-type]
    return report, recording.answers


def rows_of(path: Path, selection: Selection) -> list[Row]:
    if not path.exists():
        pytest.skip(f"recorded traffic is not here: {path}")
    with Source(path) as source:
        traffic = read_rows(source, selection)
    assert traffic.unreadable == 0
    return traffic.rows


@pytest.mark.parametrize(
    ("path", "selection", "choice"),
    [
        pytest.param(LOG, Selection(), choose([WEB]), id="log-all-kinds"),
        pytest.param(LOG, Selection(), built_in(Selection()), id="log-built-in"),
        pytest.param(TOKENS, COST, choose([LLM]), id="tokens-pool-and-bucket"),
        pytest.param(TOKENS, COST, choose([SHORT]), id="tokens-short-periods"),
        pytest.param(TOKENS, COST, built_in(COST), id="tokens-built-in"),
    ],
)
def test_engine_and_model_agree(path: Path, selection: Selection, choice: Choice) -> None:
    rows = rows_of(path, replace(selection, default_costs=choice.cost_names))
    expected, expected_answers = by_oracle(choice, rows)
    found, answers = by_engine(choice, rows)
    for row, answer, wanted in zip(rows, answers, expected_answers, strict=True):
        assert answer == wanted, row
    assert found.limits == expected.limits
    assert found.subjects == expected.subjects
    assert found.timeline == expected.timeline
    assert (found.allowed, found.refused) == (expected.allowed, expected.refused)
    assert found.codes == expected.codes
    assert found.refused > 0
    assert found.rows == len(rows)


def test_what_the_files_hold() -> None:
    log = rows_of(LOG, Selection(default_costs=("requests",)))
    assert (len(log), len({row.subject for row in log})) == (10_000, 1_753)
    assert log == sorted(log, key=lambda row: row.time_ms)
    tokens = rows_of(TOKENS, COST)
    assert len(tokens) == 19_366
    assert sum(row.costs["credits"] for row in tokens) == 26_450_535
