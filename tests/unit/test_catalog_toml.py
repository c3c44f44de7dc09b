"""Plans and settings from TOML files and from Python modules."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meterd.catalog_toml import (
    load_plans,
    load_settings,
    load_toml,
)
from meterd.errors import PolicyError
from meterd.policy import Bucket, Flag, Plan, Pool, Price, Slots

T0 = datetime(2024, 1, 31, tzinfo=UTC)

FILE = """
url = "redis://localhost:6379/0"
timeout = 0.5
op_retention = "48h"
accept_eviction = true

[plans.free]
default = true
flags = ["export"]

[plans.free.pools.credits]
limit = 100
reset = "month"
anchor = "calendar"
tz = "Europe/Berlin"

[plans.pro]
group = "base"
name = "Pro"
flags = ["sso", "export"]
meta = { seats = 5, tags = ["a", "b"] }

[plans.pro.price]
amount = 2900
currency = "EUR"

[plans.pro.buckets.api]
limit = 600
per = "1m"
algorithm = "token"
burst = 1000

[plans.pro.pools.credits]
limit = 10_000
reset = "month"
anchor = 2024-01-31T00:00:00Z
rollover = 500
overage = "unlimited"
warn_at = [0.5, 1]
warn_below = [10]
bill = "overage"

[plans.pro.pools.credits.rates]
tokens = 1
"gpt-4.1" = 20

[plans.pro.pools.seats]
limit = "unlimited"

[plans.pro.slots.jobs]
limit = 10
rates = { job = 1, big-job = 4 }

[plans."extra.1"]
group = "addons"
"""

PLANS = [
    Plan(
        "free",
        includes=[
            Pool("credits", 100, "month", anchor="calendar", tz="Europe/Berlin"),
            Flag("export"),
        ],
        default=True,
    ),
    Plan(
        "pro",
        includes=[
            Pool(
                *("credits", 10_000, "month"),
                anchor=T0,
                rollover=500,
                overage=None,
                warn_at=(0.5, 1),
                warn_below=(10,),
                bill="overage",
                rates={"tokens": 1, "gpt-4.1": 20},
            ),
            Pool("seats", None),
            Bucket("api", 600, "1m", algorithm="token", burst=1000),
            Slots("jobs", 10, rates={"job": 1, "big-job": 4}),
            Flag("sso"),
            Flag("export"),
        ],
        name="Pro",
        price=Price(2900, "eur"),
        meta={"seats": 5, "tags": ["a", "b"]},
    ),
    Plan("extra.1", includes=[], group="addons"),
]
SETTINGS = {
    "url": "redis://localhost:6379/0",
    "timeout": 0.5,
    "op_retention": "48h",
    "accept_eviction": True,
}


def nested(text: str) -> str:
    """The same file as it looks inside a pyproject.toml."""
    head, _, tables = text.partition("[plans")
    return (
        '[project]\nname = "x"\n\n[tool.ruff]\n\n[tool.meterd]\n'
        + head
        + ("[plans" + tables).replace("[plans", "[tool.meterd.plans")
    )


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_text(FILE)
    for source in (FILE, FILE.encode(), path, str(path), b"\xef\xbb\xbf" + FILE.encode()):
        assert load_toml(source) == PLANS
        assert load_settings(source) == SETTINGS
    assert load_plans(str(path)) == PLANS


def test_toml_inside_pyproject(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(nested(FILE))
    for source in (path, nested(FILE)):
        assert load_toml(source) == PLANS
        assert load_settings(source) == SETTINGS
    path.write_text('[project]\nname = "x"\n')
    assert load_settings(path) == {}
    with pytest.raises(PolicyError, match=r"no plans; write them as \[tool\.meterd\.plans\.ID\]"):
        load_toml(path)


def test_every_field_can_be_written_in_toml() -> None:
    text = """
        [plans.p.pools.a]
        limit = 1
        reset = "5h"
        anchor = "subscription"
        tz = "UTC"
        rollover = 1
        overage = 1
        carry_debt = true
        rates = { x = 1 }
        auto = 1
        warn_at = []
        warn_below = []
        bill = "use"
        [plans.p.pools.b]
        limit = 1
        reset = "month"
        anchor = 31
        [plans.p.buckets.c]
        limit = 1
        per = "1m"
        algorithm = "fixed"
        rates = { x = 1 }
        auto = 1
        on_error = "allow"
    """
    (plan,) = load_toml(text)
    assert plan.includes == (
        Pool(
            *("a", 1, "5h"),
            rollover=1,
            overage=1,
            carry_debt=True,
            rates={"x": 1},
            auto=1,
            warn_at=(),
            bill="use",
        ),
        Pool("b", 1, "month", anchor=31),
        Bucket("c", 1, "1m", algorithm="fixed", rates={"x": 1}, auto=1, on_error="allow"),
    )


BAD_TOML = [
    ("colour = 1", r"^colour: unknown key"),
    ("timeuot = 1", r"^timeuot: unknown key.*did you mean 'timeout'"),
    ("plans = 5", r"^plans: got 5; allowed: a table"),
    ("plans.pro = 5", r"^plans\.pro: got 5; allowed: a table"),
    ("[plans.pro]\npool = 1", r"^plans\.pro\.pool: unknown key.*mean 'pools'"),
    (
        "[plans.pro.slots.jobs]\nlimit = -5",
        r"^plans\.pro\.slots\.jobs: slots 'jobs': limit",
    ),
    ("[plans.pro.slots.jobs]\nper = '1m'", r"^plans\.pro\.slots\.jobs\.per: unknown key"),
    ("[plans.pro.pools]\nx = 5", r"^plans\.pro\.pools\.x: got 5; allowed: a table"),
    ("[plans.pro.pools.x]", r"^plans\.pro\.pools\.x\.limit is missing"),
    ("[plans.pro.pools.x]\nlimt = 5", r"^plans\.pro\.pools\.x\.limt: unknown.*mean 'limit'"),
    ("[plans.pro.pools.x]\nlimit = 5\nname = 'y'", r"^plans\.pro\.pools\.x\.name: unknown key"),
    ("[plans.pro.pools.x]\nlimit = 5.0", r"^plans\.pro\.pools\.x: pool 'x': limit: got 5\.0"),
    ("[plans.pro.pools.x]\nlimit = 'none'", r"pool 'x': limit: got 'none'"),
    ("[plans.pro.pools.'a b']\nlimit = 5", r'^plans\.pro\.pools\."a b": pool: name: got'),
    (
        "[plans.pro.pools.x]\nlimit = 5\nreset = 'day'\nanchor = 2024-01-31T00:00:00",
        "no time zone",
    ),
    ("[plans.pro.pools.x]\nlimit = 5\nreset = 'day'\nanchor = 2024-01-31", "aware datetime"),
    ("[plans.pro.pools.x]\nlimit = 5\nanchor = '2024-01-31T00:00:00Z'", "anchor: got"),
    ("[plans.pro.buckets.x]\nlimit = 5", r"^plans\.pro\.buckets\.x\.per is missing"),
    ("[plans.pro.buckets.x]\nlimit = 'unlimited'\nper = '1m'", r"bucket 'x': limit: got"),
    ("[plans.pro]\nflags = 'sso'", r"^plans\.pro\.flags: got 'sso'"),
    ("[plans.pro]\nflags = ['a b']", r"^plans\.pro\.flags: flag: name: got 'a b'"),
    ("[plans.pro]\nflags = [5]", r"^plans\.pro\.flags: flag: name: got 5"),
    ("[plans.pro]\nflags = ['x']\n[plans.pro.pools.x]\nlimit = 5", "'x' is given twice"),
    ("[plans.pro.price]", r"^plans\.pro\.price\.amount is missing"),
    ("[plans.pro.price]\namount = 5\nvat = 1", r"^plans\.pro\.price\.vat: unknown key"),
    ("[plans.pro.price]\namount = 5.5", r"^plans\.pro: price: amount: got 5\.5"),
    ("[plans.pro]\nprice = 5", r"^plans\.pro\.price: got 5"),
    ("[plans.pro]\nmeta = { at = 2024-01-31 }", r"plan 'pro': meta\['at'\]"),
    ("[plans.pro]\ndefault = 1", r"^plans\.pro: plan 'pro': default"),
    ("[plans.'a b']", r'^plans\."a b": plan: id'),
    ("[plans.pro", "^TOML text: not valid TOML"),
    ("[plans]", r"no plans; write them as \[plans\.ID\]"),
    ("[tool.meterd.plans.pro.pools.x]", r"^tool\.meterd\.plans\.pro\.pools\.x\.limit is missing"),
    ("[tool]\nmeterd = 5", r"^tool\.meterd: got 5"),
]


@pytest.mark.parametrize(("text", "says"), BAD_TOML)
def test_toml_refused(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        load_toml(text + "\n")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("timeout = 0", "timeout: got 0"),
        ("timeout = true", "timeout: got True"),
        ("max_connections = 0", "max_connections: got 0"),
        ("max_connections = 1.5", "max_connections: got 1.5"),
        ("op_retention = 60", "op_retention: got 60"),
        ("accept_eviction = 1", "accept_eviction: got 1"),
        ("url = 5", "url: got 5"),
        ("prefix = ''", "prefix: got ''"),
    ],
)
def test_settings_refused(line: str, says: str) -> None:
    with pytest.raises(PolicyError, match=f"^{says}"):
        load_settings(line + "\n")
    with pytest.raises(PolicyError, match=rf"^tool\.meterd\.{says}"):
        load_settings(f"[tool.meterd]\n{line}\n")


def test_settings_are_normalized() -> None:
    assert load_settings("timeout = '1m'\nmax_connections = 7\nprefix = 'x'\n") == {
        "timeout": 60.0,
        "max_connections": 7,
        "prefix": "x",
    }


@pytest.mark.parametrize("spec", ["nowhere.toml", "", "a\0b", "plans.py", "."])
def test_files_that_cannot_be_read(spec: str) -> None:
    with pytest.raises(PolicyError):
        load_plans(spec)


MODULE = """
from meterd.policy import Flag, Plan
PLANS = [Plan("pro", includes=[Flag("sso")])]
AS_TUPLE = tuple(PLANS)
ONE = PLANS[0]
MIXED = [*PLANS, "free"]
class Space:
    PLANS = PLANS
def make():
    return PLANS
def broken():
    raise RuntimeError("no network")
def bad_plan():
    return [Plan("a b", includes=[])]
async def later():
    return PLANS
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"plans_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_needs.py").write_text("import nothing_of_this_name")
    (tmp_path / f"{name}_bug.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("attribute", ["PLANS", "AS_TUPLE", "make", "Space.PLANS"])
def test_plans_of_a_module(module: str, attribute: str) -> None:
    assert load_plans(f"{module}:{attribute}") == [Plan("pro", includes=[Flag("sso")])]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{}:PLAN", "'PLAN' is not defined there; did you mean 'PLANS'"),
        ("{}:ONE", "got Plan.*allowed: a list of Plan"),
        ("{}:MIXED", "got 'free'; allowed: a list of Plan"),
        ("{}:broken", "RuntimeError: no network"),
        ("{}:bad_plan", "plan: id: got 'a b'"),
        ("{}:later", "coroutine"),
        ("{}_needs:PLANS", "nothing_of_this_name"),
        ("{}_bug:PLANS", "ZeroDivisionError"),
        ("{}_not:PLANS", "there is no module"),
        ("{}.sub:PLANS", "there is no module"),
    ],
)
def test_modules_refused(module: str, spec: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        load_plans(spec.format(module))
    assert str(caught.value).startswith(spec.format(module))


def test_loading_a_module_leaves_the_path_alone(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = list(sys.path)
    load_plans(f"{module}:PLANS")
    with pytest.raises(PolicyError):
        load_plans(f"{module}_bug:PLANS")
    assert sys.path == before
