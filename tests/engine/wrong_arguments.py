"""Arguments that are wrong, by the name of the argument."""

from __future__ import annotations

import struct

import msgpack

from tests.engine.raw import NOW, amounts

NUMBERS: dict[str, float] = {
    "nan": float("nan"),
    "-nan": -float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "-5": -5,
    "one half": 0.5,
    "10**15 + 1": 10**15 + 1,
    "17 digits": 12345678901234567,
    "2**53": 2.0**53,
    "1e300": 1e300,
    "the smallest there is": 5e-324,
}
TEXTS = [
    b"nan", b"inf", b"-5", b"+5", b"1e3", b"0x10", b"1.5", b" 5", b"5 ", b"5\n", b"5\x00", b"\x005",
    b"12345678901234567", b"\xff" * 8, b"\x00", b"five", "٣".encode(), b"-0", b"1,5", b"!",
]  # fmt: skip
NAMES = [
    b"", b",", b"credits,", b",credits", b"a" * 65, b"a b", b"a/b", b"credits\x00", b"credits\n",
    "crédits".encode(), b"%w", b"a,b,,c", b",".join([b"a"] * 65), b"{x}", b"**", b"*,*",
]  # fmt: skip
SOME = b"a policy"
WRONG: dict[str, list[bytes]] = {
    "now": [*TEXTS, b"9" * 15],
    "amounts": [
        b"",
        *TEXTS,
        b"1" * 7,
        b"12345678",  # eight digits are a double, too: 6.8e-38
        amounts(*[1.0] * 65),
        *(amounts(v) for v in NUMBERS.values()),
        *(amounts(1, v) for v in NUMBERS.values()),
        amounts(1),
        amounts(1, 1, 1),
        amounts(2, 1)[:-1],
        amounts(2, 1) + b"\x00",
        struct.pack(">2d", 2, 1),
        struct.pack("<2q", 2, 1),
    ],
    "costs": [*NAMES, b"credits", b"credits,api,login", b"*"],
    "op": [b"1", b"x" * 21, b"x" * 23, b"x" * 44, bytes(22)],
    "context": [
        b"", b"x" * 11, bytes(12) + b"a b", bytes(12) + b"!!", bytes(12) + b"\x00", b"x" * 77,
        bytes(12) + b"!",
    ],
    "extra": [
        b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93\x01",
        *map(msgpack.packb, (5, None, "p", {"p": 1}, {"m": 1}, {"m": [1]})),
        *(
            msgpack.packb({"m": [move]}, use_bin_type=False)
            for move in (
                [], [1], [1, b"", b"", b""], [1, SOME, SOME], ["1", SOME, SOME, SOME],
                [1, SOME, SOME, 5], [1, SOME, SOME, SOME, 5], [[], [], [], []],
                *([level, SOME, SOME, SOME] for level in (*NUMBERS.values(), 0, 5, 1.5)),
            )
        ),
        *(msgpack.packb({"e": shared}) for shared in (0, 2, "1", [1], {}, 1.5, True)),
        *(
            msgpack.packb({"c": steps}, use_bin_type=False)
            for steps in (
                1, "1", [1], [[]], [[1]], [[1, SOME, "base", 5, SOME]],
                [[1, SOME, "base", 5, SOME, "", 1]],
                [[1, SOME, "a b", 5, SOME, ""]], [[1, SOME, "", 5, SOME, ""]],
                [[1, SOME[1:], "base", 5, SOME, ""]], [[1, SOME, "base", 5, SOME[1:], ""]],
                [[1, SOME, "base", "5", SOME, ""]], [[1, SOME, "base", 5, SOME, 5]],
                [[1, SOME, 5, 5, SOME, ""]], [[1, SOME, "base", 5, SOME, "a,,b"]],
                *([[level, SOME, "base", 5, SOME, ""]] for level in (*NUMBERS.values(), 0, 5, "1")),
            )
        ),
        *(
            msgpack.packb({"h": held})
            for held in (
                1, "1", [], {}, {"a": 1}, [0], [5], [1, 1], [2, 1], [1, 2, 3, 4, 4], ["1"], [[1]],
                *([number] for number in NUMBERS.values()),
            )
        ),
    ],
    "change": [b"", b"KEEP", b"resets", b"prorated", b"keep\x00"],
    "when": [*TEXTS, b"9" * 16, b"now", b"period end"],
    "group": [*NAMES[1:], b"a,b", b"*"],
    "plan": [*NAMES, b"a,b", b"*"],
    "definition": [b"x", b"x" * 7, b"x" * 9],
    "before": [b"x", b"x" * 7, b"x" * 9],
    "leaving": [
        b"\xc1", b"5", *map(msgpack.packb, (5, None, "p", [5], {"p": 1}, {1: "p"}, {"p": "a,,b"})),
    ],
    "anchor": [*TEXTS, b"9" * 16],
    "pools": [name for name in NAMES if name],
    "name": [*NAMES, b"credits,api", b"*"],
    "limit": TEXTS,
    "overage": [*TEXTS, b"1" + b"0" * 15 + b"1"],
    "burst": [*TEXTS, b"none", b"1000000000001"],
    "expires": [*TEXTS, b"9" * 16, b"1", b"%d" % NOW],
    "clear": [b"0", b"true", b"11", b"1\x00"],
    "known": [b"0", b"yes", b"11"],
    "used": [b"", *TEXTS, b"none", b"1000000000000001"],
    "amount": [b"", *TEXTS, b"none", b"0", b"1000000000000001"],
    "starts": [*TEXTS, b"9" * 16],
    "priority": [b"", *TEXTS, b"none", b"101"],
    "source": [b"x" * 129],
    "id": [b"", b"x" * 129],
    "field": [b""],
    "catalog": [b""],
    "sha": [b"", bytes(31), bytes(33), b"0" * 64],
    "until": [*TEXTS, b"9" * 16, b"never"],
    "about": [b"", b"x", *map(msgpack.packb, (5, [], {}, {"o": 5}, {"p": "mk"}))],
    "state": [b"on", b"ENABLED", b"1", b"enabled\x00"],
    "label": [b"=", b"name", b"--"],
    "notes": [b"=", b"{}", b"--"],
    "overlap": [b"", *TEXTS, b"9" * 15],
    "hold": [b"", b"x" * 129],
    "held": [b"1", bytes(2), b"\xff\xff", b"\x01\x00\x00", struct.pack("<4H", 1, 2, 3, 4)],
    "blind": [b"0", b"true", b"11"],
    "ttl": [b"", *TEXTS, b"0", b"00", b"31622400001", b"9" * 11, b"1" * 12],
}  # fmt: skip
FREE = {"value", "expected", "pointer"}  # any text is one
