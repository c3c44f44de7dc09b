"""What is measured. Importing this enters every scenario, in the order of the report."""

from . import (  # noqa: I001  # the order of the report
    server_time,
    decision,
    keys,
    money,
    storage,
    sync,
    asynchronous,
    connection,
    open_loop,
    subjects,
    refusals,
    local,
    cluster,
    export,
    imports,
)

__all__ = [
    "asynchronous",
    "cluster",
    "connection",
    "decision",
    "export",
    "imports",
    "keys",
    "local",
    "money",
    "open_loop",
    "refusals",
    "server_time",
    "storage",
    "subjects",
    "sync",
]
