"""Access logs in the common and combined formats, as Apache and nginx write them.

A line counts as readable when everything up to the byte count is there. What follows (referer,
agent, a server's own additions) may be cut short or absent: no charge depends on it.
"""

from __future__ import annotations

import re

_QUOTED = r'"([^"\\]*(?:\\.[^"\\]*)*)"'
_LINE = re.compile(
    r"(?:(?P<vhost>\S+:\d+) (?!- ))?"  # vhost_combined puts the server's name and port first
    r"(?P<host>\S+) (?P<ident>\S+) (?P<user>.+?) \[(?P<time>[^\]]+)\] "
    + _QUOTED.replace("(", "(?P<request>", 1)
    + r" (?P<status>\d{3}|-) (?P<bytes>\d+|-)(?=\s|\Z)"
)
_REST = re.compile(rf'\s+{_QUOTED}(?:\s+"([^"\\]*(?:\\.[^"\\]*)*)"?)?')

FIELDS = (
    "host", "ident", "user", "time", "request", "method", "url", "path", "protocol", "status",
    "bytes", "referer", "agent", "vhost",
)  # fmt: skip

ALIASES = {
    "address": "host", "addr": "host", "ip": "host", "client": "host", "remote_addr": "host",
    "remote_host": "host", "remote_user": "user", "timestamp": "time", "size": "bytes",
    "referrer": "referer", "user_agent": "agent", "verb": "method",
}  # fmt: skip


def matches(line: str) -> bool:
    return _LINE.match(line) is not None


def parse(line: str) -> dict[str, str] | None:
    """The line's fields by the names in `FIELDS`, or None when it is not an access-log line.

    `url` is the request's target as sent, `path` the same without its query. A field the line does
    not have is "-", as the formats themselves write it.
    """
    match = _LINE.match(line)
    if match is None:
        return None
    fields = {name: text or "-" for name, text in match.groupdict().items()}
    words = fields["request"].split(" ")
    fields["method"] = words[0] if len(words) > 1 else "-"
    fields["url"] = words[1] if len(words) > 1 else "-"
    fields["path"] = fields["url"].partition("?")[0] or "-"
    fields["protocol"] = words[-1] if len(words) > 2 else "-"
    rest = _REST.match(line, match.end())
    fields["referer"] = (rest and rest[1]) or "-"
    fields["agent"] = (rest and rest[2]) or "-"
    return fields
