"""The floor: functions that do the least a charge could do, and nothing of what it is for.

`touch` is what every ratio refers to: read a record, read the clock, write most of the record back.
"""

from __future__ import annotations

from meterd.wire import command

from .raw import Raw

FLOOR = "GET+TIME+SETRANGE"
RECORD = b"x" * 116  # as long as a record of four limits

_LIBRARY = b"""#!lua name=bench_floor
local call
local data = ('y'):rep(96)
local function bind() call = redis.call end

redis.register_function('bench_touch', function(keys)
  if not call then bind() end
  call('GET', keys[1])
  call('TIME')
  call('SETRANGE', keys[1], 14, data)
  return 0
end)

redis.register_function('bench_rewrite', function(keys, args)
  if not call then bind() end
  call('GET', keys[1])
  call('SET', keys[1], args[1])
  return 0
end)

redis.register_function('bench_empty', function() return 0 end)
"""


def load(raw: Raw) -> None:
    raw.ask(b"FUNCTION", b"LOAD", b"REPLACE", _LIBRARY)


class Measured:
    """Packed commands of one kind, run over and over. `stat` is what the server counts them as."""

    def __init__(
        self, name: str, stat: str, commands: list[bytes], fresh: bytes = b"", per: int = 1
    ) -> None:
        """`fresh`: a letter and zeros; every decision puts that letter and a new number there.

        `per`: how many commands, one after another, make one decision.
        """
        self.name = name
        self.stat = stat
        self._commands = commands
        self._fresh = fresh
        self._per = per
        self._at = 0

    def batch(self, count: int) -> list[bytes]:
        """The commands of the next `count` decisions."""
        count *= self._per
        size = len(self._commands)
        batch = [self._commands[(self._at + i) % size] for i in range(count)]
        if self._fresh:
            letter, width = self._fresh[:1], len(self._fresh) - 1
            batch = [
                packed.replace(
                    self._fresh, b"%b%0*d" % (letter, width, (self._at + i) // self._per + 1)
                )
                for i, packed in enumerate(batch)
            ]
        self._at += count
        return batch

    def usec(self, raw: Raw, count: int) -> float:
        """Server time of a decision, in us, over the next `count` of them."""
        return self._per * raw.timed(self.batch(count), self.stat)


def prepare(raw: Raw, subjects: int) -> list[Measured]:
    """Loads the functions and makes their records. The first is the floor."""
    load(raw)
    keys = [b"floor:%024d" % i for i in range(subjects)]
    raw.run([command(b"SET", key, RECORD) for key in keys])
    counters = [b"count:%024d" % i for i in range(subjects)]
    return [
        Measured(FLOOR, "fcall", [command(b"FCALL", b"bench_touch", b"1", k) for k in keys]),
        Measured(
            "GET+SET", "fcall", [command(b"FCALL", b"bench_rewrite", b"1", k, RECORD) for k in keys]
        ),
        Measured(
            "empty function", "fcall", [command(b"FCALL", b"bench_empty", b"1", k) for k in keys]
        ),
        Measured("INCRBY", "incrby", [command(b"INCRBY", k, b"1") for k in counters]),
        Measured("PING", "ping", [command(b"PING")]),
    ]
