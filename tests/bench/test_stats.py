"""Medians, ratios between neighbours, taking turns; scenarios by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.core.floor import Measured
from bench.core.lab import Lab
from bench.core.measure import (
    CPU,
    RATE,
    Contender,
    Quantity,
    compare,
    shown,
    sync_block,
    thread_block,
)
from bench.core.registry import Finding, Registry
from bench.core.stats import Measure, Spread, divided
from bench.scenarios.cluster import counted, imbalance, spread_measures


def test_a_spread_is_the_median_between_quartiles() -> None:
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4)
    assert Spread.of([5, 1, 3, 2, 4]) == Spread(3, 2, 4)
    assert Spread.of([7]) == Spread(7, 7, 7)


def test_a_ratio_is_taken_within_rounds_not_between_medians() -> None:
    measure = Measure("time", "us", "floor", more_is_better=False)
    for floor, mine in ((1, 2), (10, 20), (100, 200)):  # the machine got slower and slower
        measure.add_round({"floor": floor, "mine": mine, "other": 4 * floor})
    assert measure.ratio("mine") == Spread(2, 2, 2)
    assert measure.ratio("mine", "other") == Spread(0.5, 0.5, 0.5)
    assert measure.value("mine") == Spread(20, 11, 110)
    assert measure.ratio("floor").median == 1


def test_each_sample_may_have_a_reference_of_its_own() -> None:
    measure = Measure("time", "us", "floor", more_is_better=False)
    measure.add("a", 6, 2)
    measure.add("b", 30, 5)
    assert measure.ratio("a").median == 3
    assert measure.ratio("a", "b").median == 0.5
    assert measure.ratio("b", "floor").median == 6


def test_the_best_is_the_fastest_or_the_cheapest_of_those_that_ran() -> None:
    rates = Measure(RATE, "", "x")
    costs = Measure(CPU, "", "x", more_is_better=False)
    for measure in (rates, costs):
        measure.add_round({"x": 2, "y": 3})
    assert rates.best(["x", "y", "never ran"]) == "y"
    assert costs.best(["x", "y"]) == "x"
    assert rates.best(["never ran"]) is None


def test_nothing_is_divided_by_nothing() -> None:
    assert divided(1, 0) == 0
    assert shown(0, 1, 1) == {RATE: 0, CPU: 0}
    assert shown(100, 2, 0.001) == {RATE: 50, CPU: 10}


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def contender(name: str, value: float) -> Contender:
        def sample() -> dict[str, float]:
            order.append(name)
            return {"speed": value if order.count(name) > 1 else -1}

        return Contender(name, sample)

    contenders = [contender("a", 1), contender("b", 2), contender("c", 3)]
    (measure,) = compare(contenders, 4, "b", [Quantity("speed", "")])
    assert measure.samples == {"a": [1] * 4, "b": [2] * 4, "c": [3] * 4}
    assert all(set(order[at : at + 3]) == {"a", "b", "c"} for at in range(0, 15, 3))
    assert measure.ratio("a").median == 0.5


def test_blocks_go_through_all_subjects() -> None:
    seen: list[int] = []
    figures = sync_block(seen.append, 0.001, range(7))
    assert figures.keys() == {RATE, CPU}
    assert seen[:9] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    seen.clear()
    assert thread_block(seen.append, 3, 0.01, range(6))[RATE] > 0
    assert set(seen) == set(range(6))


def test_a_thread_that_fails_ends_the_measurement() -> None:
    def fail(_: int) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        thread_block(fail, 2, 0.01, range(2))


def test_a_fresh_text_is_another_one_in_every_command() -> None:
    measured = Measured("ops", "fcall", [b"x a000", b"y a000"], b"a000")
    assert measured.batch(3) == [b"x a001", b"y a002", b"x a003"]
    assert measured.batch(1) == [b"y a004"]


def test_a_decision_of_several_commands_stays_together() -> None:
    measured = Measured("windows", "evalsha", [b"a1", b"a2", b"b1", b"b2"], per=2)
    assert measured.batch(1) == [b"a1", b"a2"]
    assert measured.batch(2) == [b"b1", b"b2", b"a1", b"a2"]


def test_scenarios_are_found_by_name_in_the_order_of_the_report() -> None:
    registry = Registry()

    def run(_: Lab) -> Iterator[Finding]:
        yield from ()

    registry("second", "entered first")(run)
    registry("first", "entered second")(run)
    assert registry.names() == ["second", "first"]
    assert [each.name for each in registry.chosen(())] == ["second", "first"]
    assert [each.name for each in registry.chosen(["first", "second"])] == ["second", "first"]
    with pytest.raises(ValueError, match="no scenario third"):
        registry.chosen(["third"])
    with pytest.raises(ValueError, match="twice"):
        registry("first", "again")(run)


def test_an_even_spread_has_an_imbalance_of_one() -> None:
    assert imbalance([5, 5, 5]) == 1
    assert imbalance([10, 5, 0]) == 2
    assert imbalance([]) == 0
    assert counted([0, 2, 2], 3) == [1, 0, 2]


def test_roots_spread_about_as_evenly_as_at_random() -> None:
    measure = spread_measures([b"customer-%d" % n for n in range(20_000)], seed=1)
    assert measure.value("3 primaries").median < 1.1
    assert 0.5 < measure.ratio("1024 partitions").median < 1.5
