"""Many calls in few round trips, each with an answer of its own.

The flows of a batch go on side by side: what they want sent in one round is written together, and
each is given what came of its own request. So every call means what it means by itself, and one
that fails takes no other with it.

Calls on one subject are sent in their order, in one write, and applied in it. What the server wants
brought along depends on their records and on what they join, so it asks all of them, or none, to
come again; only the partition's keys it wants just of those that have something to tell, so calls
that share a root with others name them unasked. A call that joins something else waits for the
earlier ones, and one that has to prepare something first holds up the later ones of its root. One
case is left: a call for which a policy or a longer calendar has to be brought, while a later one
can do without. Between subjects nothing is promised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from meterd.errors import BatchError, MeterdError, PolicyError, Unavailable
from meterd.flow import Flow, Send, Sleep, Step
from meterd.result import Decision
from meterd.scripts import READ_ONLY
from meterd.shapes import Shape, Shapes
from meterd.timespec import shown
from meterd.transport import MaybeSent, NotSent

if TYPE_CHECKING:
    from meterd.operations import Operations

T = TypeVar("T")
PIECE = 1000  # calls that are written together; each piece has a timeout of its own
Outcome = Decision | MeterdError
Item = tuple[Any, ...] | Mapping[str, Any]
# Yields what is to be carried out together, and is sent what came of each: a reply, `NotSent` or
# `MaybeSent`.
Rounds = Generator[list[Step], list[Any], T]
_ITEM = "(subject, costs), (subject, costs, amount) or a mapping of consume's keyword arguments"
_NAMES = frozenset(("subject", "costs", "amount", "op", "join", "wait"))


class Call:
    """One call of a batch. `problem`: what is wrong with it as far as can be said at once."""

    __slots__ = ("amount", "costs", "join", "make", "op", "problem", "subject", "verb")

    def __init__(
        self,
        verb: str,
        subject: Any,
        costs: Any = None,
        amount: Any = 1,
        *,
        op: Any = None,
        join: Any = None,
        wait: Any = 0,
        make: Callable[[], Flow[Decision]] | None = None,
        problem: PolicyError | None = None,
    ) -> None:
        self.verb = verb
        self.subject = subject
        self.costs = costs
        self.amount = amount
        self.op = op
        self.join = join
        self.make = make
        self.problem = problem
        if problem is None and not (wait.__class__ is int and wait == 0):
            self.problem = PolicyError(
                f"wait: got {shown(wait)}; calls of a batch cannot wait: make the call by itself, "
                "or look at retry_after"
            )

    def root(self) -> object:
        subject = self.subject
        if isinstance(subject, str):
            return subject.partition("/")[0]
        first = subject[0] if isinstance(subject, (tuple, list)) and subject else None
        return first if isinstance(first, str) else None

    def whom(self) -> object:
        """The subject, the same however it is written; None if it is none."""
        subject = self.subject
        if isinstance(subject, (tuple, list)) and all(isinstance(part, str) for part in subject):
            return tuple(subject) if any("/" in part for part in subject) else "/".join(subject)
        return subject if isinstance(subject, str) else None


def calls_of(items: Iterable[Item]) -> list[Call]:
    """The consume calls of `consume_many`; an item that is none becomes a call with a problem."""
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise PolicyError(f"consume_many: got {shown(items)}; allowed: an iterable of {_ITEM}")
    return [_call_of(at, item) for at, item in enumerate(items)]


def _call_of(at: int, item: Any) -> Call:
    if isinstance(item, (tuple, list)) and 2 <= len(item) <= 3:
        return Call("consume", *item)
    if isinstance(item, Mapping) and {"subject", "costs"} <= set(item) <= _NAMES:
        return Call("consume", **item)
    problem = PolicyError(f"consume_many: item {at}: got {shown(item)}; allowed: {_ITEM}")
    return Call("consume", None, problem=problem)


class Batch:
    """Calls on their way to their outcomes. `watch(call, outcome, started)`."""

    def __init__(
        self,
        shapes: Shapes,
        operations: Operations,
        calls: Sequence[Call],
        watch: Callable[[Call, Outcome, float], None] | None = None,
    ) -> None:
        self._shapes = shapes
        self._operations = operations
        self._calls = calls
        self._watch = watch
        self._started = 0.0
        self._down: NotSent | None = None  # the store could not be opened for this piece
        self._several: set[object] = set()  # roots that more than one call of the piece is about
        self.outcomes: list[Outcome | None] = [None] * len(calls)

    def rounds(self) -> Rounds[list[Outcome | None]]:
        """Until every call has its outcome."""
        for start in range(0, len(self._calls), PIECE):
            self._started = perf_counter()
            yield from self._prepare()
            yield from self._piece(list(range(start, min(start + PIECE, len(self._calls)))))
        return self.outcomes

    def _prepare(self) -> Rounds[None]:
        """What every flow would do first by itself is done once."""
        store = self._operations.store
        self._down = None
        if store.deadline() is not None:
            return
        flow = store.prepare()
        try:
            step = next(flow)
            while True:
                (result,) = yield [step]
                step = _advance(flow, result)
        except StopIteration:
            return
        except Unavailable as error:
            self._down = NotSent(str(error))  # nobody waits for that again
        except MeterdError:
            return  # every call finds it out, and says so

    def _piece(self, waiting: list[int]) -> Rounds[None]:
        running: dict[int, tuple[Flow[Decision], Step]] = {}
        roots = Counter([self._calls[at].root() for at in waiting])
        self._several = {root for root, count in roots.items() if count > 1}
        while waiting or running:
            now = monotonic()
            steps: list[Step] = []
            owners: list[tuple[int, Shape | Flow[Decision]]] = []
            held: set[object] = set()  # roots
            joins: dict[object, object] = {}  # by subject
            for at, (flow, step) in sorted(running.items()):
                if held and self._charges(step) and self._calls[at].root() in held:
                    continue
                del running[at]
                steps.append(step)
                owners.append((at, flow))
                self._note(self._calls[at], step, held, joins)
            held.update([self._calls[at].root() for at in running])
            left = []
            for at in waiting:
                call = self._calls[at]
                whom = call.whom()
                if (held and call.root() in held) or joins.get(whom, call.join) != call.join:
                    held.add(call.root())
                    left.append(at)
                    continue
                begun = self._begin(at, now)
                if begun is not None:
                    steps.append(begun[1])
                    owners.append((at, begun[0]))
                    self._note(call, begun[1], held, joins)
            waiting = left
            if steps:
                order = self._by_root([at for at, _ in owners])
                results = yield [steps[place] for place in order]
                for place, result in zip(order, results, strict=True):
                    at, owner = owners[place]
                    self._go_on(at, owner, result, now, running)

    def _by_root(self, calls: list[int]) -> list[int]:
        """The places of the calls, those of one root side by side.

        Between two of them, a call of another root could bring the server the policy for want of
        which it has just sent back the first; the second would overtake it.
        """
        first: dict[object, int] = {}
        ranks = [first.setdefault(self._calls[at].root(), place) for place, at in enumerate(calls)]
        return sorted(range(len(calls)), key=ranks.__getitem__)

    def _begin(self, at: int, now: float) -> tuple[Shape | Flow[Decision], Step] | None:
        """The first step of a call; None if it ended without one."""
        call, operations = self._calls[at], self._operations
        try:
            if call.problem is not None:
                raise call.problem
            if call.make is not None:
                flow = call.make()
            else:
                shared = call.verb not in READ_ONLY and call.root() in self._several
                if call.op is None:
                    shape = self._shapes.find(
                        call.verb, call.subject, call.costs, call.amount, call.join, now, shared
                    )
                    if shape is not None:
                        request = shape.at(operations.now_argument())
                        return shape, Send(request, shape.seconds)
                flow = operations.charge(
                    call.verb, call.subject, call.costs, call.amount, call.op, call.join, 0,
                    shared=shared,
                )  # fmt: skip
            step = next(flow)
            while self._down is not None and type(step) is not Sleep:
                step = flow.throw(self._down)
            return flow, step
        except StopIteration as stop:
            self._end(at, stop.value)
        except MeterdError as error:
            self._end(at, error)
        return None

    def _go_on(
        self,
        at: int,
        owner: Shape | Flow[Decision],
        result: Any,
        now: float,
        running: dict[int, tuple[Flow[Decision], Step]],
    ) -> None:
        try:
            if isinstance(owner, Shape):
                decision = owner.answer(result)
                if decision is not None:
                    self._end(at, decision)
                    return
                self._shapes.forget(owner)
                deadline = now + self._operations.session.timeout
                flow = self._operations.resume(owner, result, deadline)
                running[at] = (flow, next(flow))
            else:
                running[at] = (owner, _advance(owner, result))
        except StopIteration as stop:
            self._end(at, stop.value)
        except MeterdError as error:
            self._end(at, error)

    def _note(self, call: Call, step: Step, held: set[object], joins: dict[object, object]) -> None:
        """What a step of this round means for the calls after it."""
        joins[call.whom()] = call.join
        if not self._charges(step):
            held.add(call.root())

    def _charges(self, step: Step) -> bool:
        """Whether a step is the call itself, and not something before it."""
        if type(step) is not Send:
            return False
        key = step.request.key
        return key is not None and not self._operations.keys.is_of_store(key)

    def _end(self, at: int, outcome: Outcome) -> None:
        self.outcomes[at] = outcome
        if self._watch is not None:
            self._watch(self._calls[at], outcome, self._started)


def _advance(flow: Flow[Any], result: Any) -> Step:
    if isinstance(result, (NotSent, MaybeSent)):
        return flow.throw(result)
    return flow.send(result)


def together(flows: Sequence[Flow[T]]) -> Rounds[list[T | MeterdError]]:
    """Flows side by side: what came of each, its value or its error."""
    results: list[Any] = [None] * len(flows)
    # None: it has not begun.
    waiting: list[tuple[int, Any]] = [(at, None) for at in range(len(flows))]
    while waiting:
        owners: list[int] = []
        steps: list[Step] = []
        for at, result in waiting:
            try:
                steps.append(_advance(flows[at], result))
                owners.append(at)
            except StopIteration as stop:
                results[at] = stop.value
            except MeterdError as error:
                results[at] = error
        waiting = list(zip(owners, (yield steps), strict=True)) if steps else []
    return results


def all_or_error(calls: Sequence[Call], outcomes: Sequence[Any]) -> list[Decision]:
    """The decisions; raises `BatchError` with all outcomes if one of them is an error."""
    failed = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, MeterdError)]
    if failed:
        first = failed[0]
        raise BatchError(
            f"{len(failed)} of {len(outcomes)} calls failed; the first of them, "
            f"{calls[first].verb} of {shown(calls[first].subject)} (number {first}): "
            f"{outcomes[first]}",
            outcomes,
        ) from outcomes[first]
    return list(outcomes)
