"""The machine in other ways: many calls at once, changing plans, refusals that are remembered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from meterd import errors, refusals
from tests.property.fields import decision_fields, difference, model_fields, path_of
from tests.property.machine import AMOUNTS, SUBJECTS, Machine


class Batches(Machine):
    """The same, but the verbs that charge come several at once, one subject for each root."""

    def charge(self, subject: Any, now: int) -> None:
        rng = self.rng
        others = [other for other in SUBJECTS if path_of(other)[0] != path_of(subject)[0]]
        among = (subject, subject, rng.choice(others))
        pipeline = self.meter.raw.pipeline(raise_on_error=False)
        calls = [self.drawn(rng.choice(among)) for _ in range(rng.randint(1, 6))]
        queued = [
            getattr(pipeline, verb)(whom, costs, amount, **options)
            for verb, whom, costs, amount, options in calls
        ]
        ended = self.ends()
        self.meter._settled(pipeline.execute())
        assert sorted(ended) == list(range(len(calls)))
        for at in ended:
            (verb, whom, costs, amount, options), one = calls[at], queued[at]
            model = partial(getattr(self.oracle, verb), whom, costs, amount, now_ms=now, **options)
            self.both(f"batched {verb} {whom} {costs} {amount} {options}", model, one.result)

    def ends(self) -> list[int]:
        """The calls of the next batch, in the order in which they are decided.

        It is theirs, unless the server has to be brought something for an earlier one first.
        """
        ended: list[int] = []
        meter = self.meter.raw
        made = type(meter)._batch

        def watched(calls: Any) -> Any:
            batch = made(meter, calls)
            end = batch._end

            def note(at: int, outcome: Any) -> None:
                ended.append(at)
                end(at, outcome)

            batch._end = note
            return batch

        meter._batch = watched
        return ended


class Changing(Machine):
    """The same, but plans change all the time."""

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.5:
            super().step()
            return
        self.clock.now_ms += rng.choice((0, 1, 1000, 89_999, 86_400_000, 9 * 86_400_000))
        subject, now = rng.choice(("a", "a", "a/t")), self.clock.now_ms
        verb = rng.choice((self.subscribe, self.subscribe, self.unsubscribe, self.override))
        verb(subject, now)
        if rng.random() < 0.1:
            self.apply()
        self.listen()
        self.conserve()


def _raise(error: Exception) -> None:
    raise error


class Remembering(Machine):
    """The same on a meter that remembers refusals for ever, as far as its rule allows.

    Of an answer from memory everything has to be right but what the rule excepts: what has flowed
    back into sliding windows and token buckets, and when a larger amount fits.
    """

    hits = 0
    holding = False  # a reservation that ends gives back by itself, which the rule excepts
    timed = False  # and so does a grant that begins
    waits = False  # so does a change of plans that comes

    def step(self) -> None:
        """Calls are often repeated, a little later and with other amounts."""
        super().step()
        rng = self.rng
        while rng.random() < 0.6 and self.last is not None:
            self.clock.now_ms += rng.choice((0, 0, 1, 1, 50, 999, 60_000))
            subject, costs, amount, options = self.last
            if isinstance(costs, str) and rng.random() < 0.4:
                amount = rng.choice(AMOUNTS)
            verb = rng.choice(("consume", "consume", "check"))
            self.one(verb, subject, costs, amount, options)
        self.listen()
        self.conserve()

    last: Any = None

    def charge(self, subject: Any, now: int) -> None:
        verb, subject, costs, amount, options = self.drawn(subject)
        if verb in ("consume", "check") and "op" not in options:
            self.last = (subject, costs, amount, options)
        self.one(verb, subject, costs, amount, options)

    def one(self, verb: str, subject: Any, costs: Any, amount: int, options: Any) -> None:
        now = self.clock.now_ms
        asked = (amount,) if isinstance(costs, str) else tuple(costs.values())
        self.both(
            f"{verb} {subject} {costs} {amount} {options}",
            lambda: getattr(self.oracle, verb)(subject, costs, amount, now_ms=now, **options),
            lambda: getattr(self.meter, verb)(subject, costs, amount, **options),
            asked,
        )

    def override(self, subject: Any, now: int) -> None:
        """None that ends: that raises a limit which nobody gave back."""
        name = self.rng.choice(("credits", "tokens", "api", "burst", "login"))
        fields = {"limit": self.rng.choice((0, 2, 50, 10**6))}
        self.both(
            f"override {subject} {name} {fields}",
            lambda: self.oracle.override(subject, name, now_ms=now, **fields),
            lambda: self.meter.override(subject, name, **fields),
        )

    def both(
        self,
        what: str,
        model: Callable[[], Any],
        engine: Callable[[], Any],
        asked: tuple[int, ...] = (),
    ) -> None:
        """What came from memory is compared by the rule, everything else as ever."""
        try:
            found = engine()
        except errors.MeterdError as error:
            super().both(what, model, partial(_raise, error))
            return
        source = getattr(found, "_source", None)
        if source is None or source[0] is not refusals.head_of:
            super().both(what, model, lambda: found)
            return
        Remembering.hits += 1
        self.log.append(f"@{self.clock.now_ms} {what} (remembered)")
        self.oracle.quiet = True
        left, right = model_fields(model()), decision_fields(found)
        self.oracle.quiet = False
        assert len(left["limits"]) == len(right["limits"]), f"{left}\n{right}\n{self.story()}"
        larger = asked != source[3].amounts
        drifting = False
        for mine, other in zip(left["limits"], right["limits"], strict=True):
            if self.drifts(mine["name"]):
                drifting = True
                for name in ("used", "remaining", "resets_at_ms"):
                    other[name] = mine[name]
            elif not mine["used"]:  # in a record that a refusal did not make, its period begins now
                other["resets_at_ms"] = mine["resets_at_ms"]
            if larger:
                other["allowed"], after = mine["allowed"], mine["retry_after_ms"]
                if other["retry_after_ms"] is not None:
                    assert after is None or after >= other["retry_after_ms"], self.story()
                other["retry_after_ms"] = after
        if larger:
            after = left["retry_after_ms"]
            assert after is None or after >= (right["retry_after_ms"] or 0), self.story()
            right["retry_after_ms"] = after
            assert set(right["refused"]) <= set(left["refused"]), self.story()
            right["refused"] = left["refused"]
        if drifting:
            right["balance"] = left["balance"]
        if left != right:
            raise AssertionError(f"remembered {what}:\n{difference(left, right)}\n{self.story()}")

    def drifts(self, name: str) -> bool:
        """Whether a limit of that name is, in some plan, no pool and no fixed window."""
        return name not in ("credits", "tokens", "addon", "shared", "sso")
