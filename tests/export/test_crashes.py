"""Killed between any two steps and started again: the receiver, which knows identifiers, sees
exactly the use that there was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meterd import Meter
from meterd.export import Exporter, JsonLines, StripeMeter, Webhook
from meterd.keys import PARTITIONS, Keyspace
from meterd.testing import ManualClock
from tests.client.meter_tools import fresh_prefix
from tests.export.export_tools import AT, Elapsed, Killed, Killer, Streams, apart, together
from tests.export.receivers import KEY, SILENCE, Receiver, Stripe, refusal
from tests.support import servers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
USE = {"c0": [5, 7, -2], **{root: [3, 4] for root in together(2)[1:]}, apart(2)[1]: [11]}


class World:
    """One store with use in it, and processes that die on the way to deliver it."""

    def __init__(
        self, server: servers.Server, *sinks: str, manual: bool = True, **times: Any
    ) -> None:
        """`sinks`: those known before there is any use."""
        self.server = server
        self.prefix = fresh_prefix()
        self.clock = ManualClock(AT + 60_000) if manual else None
        self.streams = Streams(server.admin, self.prefix)
        self.elapsed = Elapsed()
        if sinks:
            server.admin.sadd(Keyspace(self.prefix).sinks, *sinks)
        for root, deltas in USE.items():
            for seq, delta in enumerate(deltas):
                self.streams.use(root, delta, seq=seq, birth=f"{root}-0", **times)

    def meter(self) -> Meter:
        return Meter(self.server.url, prefix=self.prefix, clock=self.clock, timeout=5)

    def live(self, sink: Any, work: Callable[[Exporter], Any], killer: Killer | None) -> bool:
        """Whether it came to its end."""
        with self.meter() as meter:
            exporter = Exporter(meter, sink)
            exporter._turn.monotonic = self.elapsed
            exporter._sleep = self.elapsed.sleep
            if killer is not None:
                killer.watch(meter, sink)
            try:
                work(exporter)
            except Killed:
                return False
            finally:
                sink.close()
                if exporter._delivery._lanes is not None:
                    exporter._delivery._lanes.close()
        return True

    def pass_lease(self) -> None:
        """As if the leases of the dead had run out."""
        keys = Keyspace(self.prefix)
        names = (b"lease:stripe", b"lease:webhook", b"lease:jsonl")
        self.server.admin.delete(
            *(keys.partition_key(at, n) for at in range(PARTITIONS) for n in names)
        )

    def nothing_is_left(self) -> None:
        prefix = f"{self.prefix}:"
        # Without the prefix, which is made by chance and may hold any word of hexadecimal digits.
        keys = [
            str(key).removeprefix(prefix) for key in self.server.admin.scan_iter(f"{prefix}*", 5000)
        ]
        assert not [key for key in keys if "lease" in key or "tries" in key or "dead" in key]
        assert all(self.streams.length(root) == 0 for root in USE)


def run(exporter: Exporter) -> None:
    exporter.run()


@pytest.fixture
def provider() -> Iterator[Stripe]:
    with Stripe() as made:
        yield made


WANTED = {root: sum(deltas) for root, deltas in USE.items()}


def billed_in(file: Path) -> Counter[str]:
    """By customer, every identifier once."""
    seen = {line["id"]: line for line in map(json.loads, file.read_text().splitlines())}
    billed: Counter[str] = Counter()
    for line in seen.values():
        billed[line["customer"]] += line["delta"]
    return billed


def killed_everywhere(life: Callable[[Killer], bool]) -> int:
    """Lives that are killed at the first thing they do, at the second, ...; how many those were."""
    for after in (False, True):
        at = 0
        while True:
            if life(Killer(at, after=after)):
                break
            at += 1
            assert at < 500
    return at


def test_stripe(server: servers.Server, provider: Stripe) -> None:
    def life(killer: Killer) -> bool:
        world = World(server)
        provider.billed.clear()
        provider.seen.clear()
        with world.meter() as meter:
            for root in USE:
                meter.set_meta(root, {"stripe_customer": root})

        def sink() -> StripeMeter:
            return StripeMeter(KEY, api_base=provider.url, workers=2)

        ended = world.live(sink(), run, killer)
        world.pass_lease()
        assert world.live(sink(), run, None)
        assert provider.billed == {(root, "credits"): use for root, use in WANTED.items()}
        world.nothing_is_left()
        return ended

    assert killed_everywhere(life) > 15


def test_a_letter_on_its_way_to_the_dead_and_back(server: servers.Server, provider: Stripe) -> None:
    """Refused, buried, sent again: killed anywhere in that, it is billed once, and never lost."""

    def life(killer: Killer) -> bool:
        world = World(server)
        provider.billed.clear()
        provider.seen.clear()
        provider.check = lambda event: (
            refusal(400, "no such meter") if event["customer"] == "c0" else None
        )
        with world.meter() as meter:
            for root in USE:
                meter.set_meta(root, {"stripe_customer": root})

        def sink() -> StripeMeter:
            return StripeMeter(KEY, api_base=provider.url, workers=1)

        def work(exporter: Exporter) -> None:
            exporter.run()
            provider.check = lambda event: None
            exporter.resend()

        ended = world.live(sink(), work, killer)
        provider.check = lambda event: None
        world.pass_lease()
        assert world.live(sink(), work, None)
        assert provider.billed == {(root, "credits"): use for root, use in WANTED.items()}
        world.nothing_is_left()
        return ended

    assert killed_everywhere(life) > 25


def test_json_lines(server: servers.Server, tmp_path: Path) -> None:
    def life(killer: Killer) -> bool:
        world = World(server)
        file = tmp_path / f"{world.prefix}.jsonl"
        ended = world.live(JsonLines(file), run, killer)
        world.pass_lease()
        assert world.live(JsonLines(file), run, None)
        assert billed_in(file) == WANTED
        world.nothing_is_left()
        return ended

    assert killed_everywhere(life) > 8


def test_webhooks(server: servers.Server) -> None:
    with Receiver() as receiver:

        def life(killer: Killer) -> bool:
            world = World(server)
            receiver.got.clear()
            ended = world.live(Webhook(receiver.url, SECRET), run, killer)
            world.pass_lease()
            assert world.live(Webhook(receiver.url, SECRET), run, None)
            seen = {got.headers["webhook-id"]: got.json()["data"] for got in receiver.got}
            billed: Counter[str] = Counter()
            for data in seen.values():
                billed[data["customer"]] += data["delta"]
            assert billed == WANTED
            world.nothing_is_left()
            return ended

        assert killed_everywhere(life) > 10


@pytest.mark.parametrize("seed", range(12))
def test_one_life_after_another(
    server: servers.Server, provider: Stripe, tmp_path: Path, seed: int
) -> None:
    """Two sinks, lives cut short at random, answers that are lost, refused or late."""
    dice = random.Random(seed)
    world = World(server, "stripe", "jsonl")
    file = tmp_path / "use.jsonl"
    with world.meter() as meter:
        for root in USE:
            meter.set_meta(root, {"stripe_customer": root})
    for _ in range(8):
        provider.plan = [refusal(500, "oops") for _ in range(dice.randrange(3))]
        provider.after = [refusal(503, "lost") for _ in range(dice.randrange(3))]
        sink: Any = StripeMeter(KEY, api_base=provider.url, workers=2)
        if dice.random() < 0.4:
            sink = JsonLines(file)
        killer = Killer(dice.randrange(40), after=dice.random() < 0.5)
        world.live(sink, run, killer)
        world.pass_lease()
        world.elapsed.now += 700
    provider.plan, provider.after = [], []
    for sink in (JsonLines(file), StripeMeter(KEY, api_base=provider.url), JsonLines(file)):
        assert world.live(sink, run, None)
    assert provider.billed == {(root, "credits"): use for root, use in WANTED.items()}
    assert billed_in(file) == WANTED
    world.nothing_is_left()


def test_a_process_that_is_killed_for_good(server: servers.Server, provider: Stripe) -> None:
    """By the kernel, in the middle of a call that arrives."""
    now_ms = int(server.admin.time()[0]) * 1000
    provider.now_s = now_ms / 1000
    world = World(server, manual=False, start=now_ms - 60_000, end=None, at=now_ms)
    script = f"""
from meterd import Meter
from meterd.export import Exporter, StripeMeter
with Meter({server.url!r}, prefix={world.prefix!r}, timeout=5) as meter:
    Exporter(meter, StripeMeter({KEY!r}, api_base={provider.url!r})).run()
"""
    with world.meter() as meter:
        for root in USE:
            meter.set_meta(root, {"stripe_customer": root})
    provider.after = [SILENCE] * 3
    child = subprocess.Popen([sys.executable, "-c", script])
    try:
        servers.wait_until("three calls", lambda: not provider.after)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    provider.release.set()
    world.pass_lease()
    assert world.live(StripeMeter(KEY, api_base=provider.url), run, None)
    assert provider.billed == {(root, "credits"): use for root, use in WANTED.items()}
    world.nothing_is_left()
