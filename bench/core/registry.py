"""Scenarios by name. A scenario is a function that measures on a `Lab` and yields findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .lab import Lab
from .stats import Measure


@dataclass(slots=True)
class Finding:
    """One table of the report. `absent`: contenders that did not run, and why."""

    key: str
    title: str
    measures: list[Measure]
    note: str = ""
    absent: dict[str, str] = field(default_factory=dict)


Run = Callable[[Lab], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    about: str
    run: Run


class Registry:
    """Scenarios in the order in which they were entered, which is the order of the report."""

    def __init__(self) -> None:
        self._scenarios: dict[str, Scenario] = {}

    def __call__(self, name: str, about: str) -> Callable[[Run], Run]:
        """A decorator that enters a scenario."""

        def enter(run: Run) -> Run:
            if name in self._scenarios:
                raise ValueError(f"scenario {name!r} exists twice")
            self._scenarios[name] = Scenario(name, about, run)
            return run

        return enter

    def names(self) -> list[str]:
        return list(self._scenarios)

    def __iter__(self) -> Iterator[Scenario]:
        return iter(self._scenarios.values())

    def chosen(self, names: Iterable[str]) -> list[Scenario]:
        """Those named, in the order of the report; all if none is named."""
        wanted = set(names)
        if unknown := wanted - set(self._scenarios):
            raise ValueError(f"no scenario {', '.join(sorted(unknown))}; there are: {self.names()}")
        return [found for found in self if not wanted or found.name in wanted]


scenario = Registry()
