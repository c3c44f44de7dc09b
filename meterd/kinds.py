"""Of a name all limits on a path are of one kind: what would break that is refused.

As far as is known at this moment: the levels above are looked at, those below are not looked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from meterd import wire
from meterd.administration import Administration
from meterd.errors import PolicyError
from meterd.flow import Flow
from meterd.keys import Path
from meterd.operations import Operations


class Kinds:
    """Built on the operations of one meter."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._administration = Administration(operations)

    def check(
        self, path: Path, kinds: Mapping[str, str], by: str, verb: str, op: str | None
    ) -> Flow[None]:
        """Raises PolicyError where a level above has a limit of one of these names, but of another
        kind; not where something is stored under the operation id: that is answered, come what
        may. `by`: what would bring the limits, as the error says it.
        """
        if len(path.keys) == 1:
            return
        above = yield from self._administration.usage(path.segments[:-1], None)
        for state in above.limits:
            kind = kinds.get(state.name, state.kind)
            if kind != state.kind:
                if op is not None and (yield from self._was_done(path, op)):
                    return
                raise PolicyError(
                    f"{verb}: {state.name!r} is a {kind} of {by}, and a {state.kind} of "
                    f"{state.subject!r}; allowed: one kind per name on a path"
                )

    def _was_done(self, path: Path, op: str) -> Flow[bool]:
        keys = self._operations.keys
        asked = (*path.keys, keys.op(path, op), keys.hold_end(path, op))
        now = self._operations.now_argument()
        reply = yield from self._operations.session.call("operation", asked, [now])
        return bool(reply != bytes([wire.UNKNOWN]))
