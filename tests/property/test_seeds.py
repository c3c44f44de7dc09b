"""The machine on seeds that stay the same, in every way to drive it."""

from __future__ import annotations

import random

import pytest

from meterd import KeyCode
from tests.property.billing import Billing
from tests.property.keyed import Keyed
from tests.property.runs import WAYS, run
from tests.property.variants import Remembering


@pytest.mark.timeout(600)  # a busy machine takes minutes
@pytest.mark.parametrize("way", WAYS)
def test_many_seeds(url: str, way: str) -> None:
    for seed in range(30 if way == "sync" else 14):
        run(random.Random(f"seed {seed}"), 150, url, way)
    if way == "billing":
        assert Billing.delivered_again > 100
    if "remembering" in way:
        assert Remembering.hits > 100
    if "keys" in way:
        assert all(Keyed.answered[str(code)] > 10 for code in KeyCode if code != "NO_PLAN")
