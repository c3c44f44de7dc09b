"""API keys for the tests."""

from __future__ import annotations

import hashlib

from meterd import Meter
from tests.http.routes import OWNERS


def give_keys(store: Meter) -> None:
    """The secrets of `OWNERS`, in the store of a meter."""
    for secret, owner in OWNERS.items():
        if any(key.name == secret for key in store.keys.list(owner)):
            continue
        digest = hashlib.sha256(secret.encode()).hexdigest()
        expires = "1s" if owner == "EXPIRED" else None
        key = store.keys.create(owner, sha256=digest, name=secret, expires=expires)
        if owner == "DISABLED":
            store.keys.update(key.id, enabled=False)
