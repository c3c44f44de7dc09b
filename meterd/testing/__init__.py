"""Testing with meterd: a clock that moves when told, meters that need no server, pytest fixtures.

The fixtures are in `meterd.testing.plugin`, which pytest finds by itself.
"""

from typing import TYPE_CHECKING

from meterd.testing.clock import ManualClock

if TYPE_CHECKING:
    from meterd.testing.fakes import async_fake, fake

__all__ = ["ManualClock", "async_fake", "fake"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # The plugin's package is loaded in every test run; the client is not.
        if name not in __all__:
            raise AttributeError(f"module 'meterd.testing' has no attribute {name!r}")
        from meterd.testing import fakes

        return getattr(fakes, name)
