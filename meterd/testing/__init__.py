"""Testing with meterd: a clock that moves when told, meters that need no server, pytest fixtures.

The fixtures are in `meterd.testing.plugin`, which pytest finds by itself.
"""

from meterd.testing.clock import ManualClock
from meterd.testing.fakes import async_fake, fake

__all__ = ["ManualClock", "async_fake", "fake"]
