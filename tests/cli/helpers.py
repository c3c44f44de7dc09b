"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import Result

Run = Callable[..., Result]

PLANS = """
[plans.free]
default = true
[plans.free.pools.credits]
limit = 100
[plans.free.buckets.api]
limit = 5
per = "1m"
algorithm = "token"

[plans.pro]
name = "Professional"
flags = ["sso"]
[plans.pro.price]
amount = 2900
[plans.pro.pools.credits]
limit = 1000
reset = "month"
overage = 50
[plans.pro.buckets.api]
limit = 60
per = "1m"
[plans.pro.slots.jobs]
limit = 10
"""


def data_of(result: Result) -> Any:
    """What a command printed under --json."""
    assert result.stdout, result.stderr
    return json.loads(result.stdout)
