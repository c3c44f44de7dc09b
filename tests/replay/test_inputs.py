"""Reading traffic: every format, every way of writing a time, and no line lost without a word."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from meterd.replay import Cost, InputError, Row, Selection, Source, Traffic, read_rows
from meterd.replay.times import parse_time_ms

NOON = 1_700_136_000_000  # 2023-11-16T12:00:00Z
ONE = Selection(subject=("user",), default_costs=("requests",))


def read(tmp_path: Path, text: str | bytes, selection: Selection, name: str = "t.csv") -> Traffic:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with Source(path) as source:
        return read_rows(source, selection)


# --- times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-16T12:00:00Z", NOON),
        ("2023-11-16 12:00:00", NOON),
        ("2023-11-16 12:00", NOON),
        ("2023-11-16", NOON - 12 * 3_600_000),
        ("2023-11-16 12:00:00.6805900", NOON + 680),
        ("2023-11-16T12:00:00.9999999999+00:00", NOON + 999),
        ("2023-11-16T12:00:00,5", NOON + 500),
        ("2023-11-16T17:30:00+05:30", NOON),
        ("2023-11-16T04:00:00-0800", NOON),
        ("2023-11-16T13:00:00+01", NOON),
        ("2023-11-16 12:00:00 UTC", NOON),
        (" 16/Nov/2023:12:00:00 +0000 ", NOON),
        ("16/Nov/2023:14:00:00 +0200", NOON),
        ("16/Nov/2023:09:30:00 -0230", NOON),
        ("16/Nov/2023:12:00:00", NOON),
        ("1700136000", NOON),
        ("1700136000.25", NOON + 250),
        ("1700136000.0009", NOON),
        ("1700136000250", NOON + 250),
        ("1700136000250999", NOON + 250),
        ("1700136000250999999", NOON + 250),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert parse_time_ms(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "2023-13-01", "2023-02-30", "2023-11-16T25:00:00Z", "16/Foo/2023:12:00:00",
        "1969-12-31T23:59:59Z", "-5", "NaN", "2023-11-16T12:00:00+99:99", "12:00", "0",
    ],
)  # fmt: skip
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|years|month|day|zone|range"):
        parse_time_ms(text)


# --- access logs

COMMON = '10.0.0.1 - ana [16/Nov/2023:12:00:0{n} +0000] "GET /a?b=1 HTTP/1.1" 200 512'
COMBINED = COMMON + ' "http://ref/" "Agent \\"7\\" (x)"'


def test_common_and_combined_logs_default_to_the_client_address(tmp_path: Path) -> None:
    log = "\n".join([COMMON.format(n=1), COMBINED.format(n=0), ""])
    traffic = read(tmp_path, log, Selection(default_costs=("a", "b")), "access.log")
    assert traffic.unreadable == 0
    assert traffic.rows == [
        Row(NOON, ("10.0.0.1",), {"a": 1, "b": 1}),
        Row(NOON + 1000, ("10.0.0.1",), {"a": 1, "b": 1}),
    ]
    assert traffic.reordered == 1


def test_a_log_is_known_by_its_lines_whatever_its_name(tmp_path: Path) -> None:
    traffic = read(tmp_path, COMBINED.format(n=0), Selection(default_costs=("a",)), "x.txt")
    assert len(traffic.rows) == 1


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("address", "10.0.0.1"), ("host", "10.0.0.1"), ("user", "ana"), ("method", "GET"),
        ("path", "/a"), ("url", "/a?b=1"), ("status", "200"), ("bytes", "512"),
        ("referer", "http://ref/"), ("agent", 'Agent \\"7\\" (x)'), ("protocol", "HTTP/1.1"),
    ],
)  # fmt: skip
def test_any_log_field_can_be_the_subject(tmp_path: Path, field: str, expected: str) -> None:
    chosen = Selection(subject=("=site", field), default_costs=("a",))
    traffic = read(tmp_path, COMBINED.format(n=0), chosen, "access.log")
    assert traffic.rows[0].subject == ("site", expected)


@pytest.mark.parametrize(
    "line",
    [
        '2001:db8::1 - - [16/Nov/2023:12:00:00 +0000] "GET / HTTP/1.1" 200 -',
        '1.2.3.4 - first last [16/Nov/2023:12:00:00 +0000] "-" 408 0',
        '1.2.3.4 - - [16/Nov/2023:12:00:00 +0000] "\\x16\\x03\\x01" 400 226 "-" "-"',
        '1.2.3.4 - - [16/Nov/2023:12:00:00 +0000] "GET / HTTP/1.1" 200 5 "-" "cut off (here',
        '1.2.3.4 - - [16/Nov/2023:12:00:00 +0000] "GET / HTTP/1.1" 200 5 "r" "a" 0.001 "more"',
        'example.com:443 1.2.3.4 - - [16/Nov/2023:12:00:00 +0000] "GET / HTTP/1.1" 200 5',
    ],
)
def test_log_lines_of_every_kind(tmp_path: Path, line: str) -> None:
    traffic = read(tmp_path, line, Selection(default_costs=("a",)), "access.log")
    assert [row.time_ms for row in traffic.rows] == [NOON]
    assert traffic.rows[0].subject in [("1.2.3.4",), ("2001:db8::1",)]


def test_bytes_can_be_a_cost_and_a_dash_is_zero(tmp_path: Path) -> None:
    log = COMMON.format(n=0) + "\n" + COMMON.format(n=1).replace("512", "-")
    traffic = read(tmp_path, log, Selection(costs=(Cost.parse("traffic=size+1"),)), "a.log")
    assert [row.costs for row in traffic.rows] == [{"traffic": 513}, {"traffic": 1}]


def test_bad_log_lines_are_counted_with_their_numbers(tmp_path: Path) -> None:
    good = COMMON.format(n=0)
    bad_time = good.replace("Nov", "Nob")
    log = "\n".join([good, "garbage", "", bad_time, good, *["x"] * 10])
    traffic = read(tmp_path, log, Selection(default_costs=("a",)), "access.log")
    assert len(traffic.rows) == 2
    assert traffic.unreadable == 12
    assert [problem.line for problem in traffic.problems] == [2, 4, 6, 7, 8]
    assert "garbage" in traffic.problems[0].reason
    assert "Nob" in traffic.problems[1].reason


# --- CSV


def test_csv_with_sums_of_columns(tmp_path: Path) -> None:
    text = "TIMESTAMP,In,Out\n2023-11-16 12:00:01.6805900,374,44\n2023-11-16 12:00:00,1, 2.0 \n"
    chosen = Selection(subject=("=all",), costs=(Cost.parse("credits=In+out+10"),))
    traffic = read(tmp_path, text, chosen)
    assert traffic.rows == [
        Row(NOON, ("all",), {"credits": 13}),
        Row(NOON + 1680, ("all",), {"credits": 428}),
    ]
    assert (traffic.time, traffic.costs) == ("TIMESTAMP", {"credits": "In+Out+10"})


def test_without_a_subject_csv_rows_share_one(tmp_path: Path) -> None:
    traffic = read(tmp_path, "time,n\n1700136000,1\n", Selection(costs=(Cost.parse("n"),)))
    assert traffic.rows == [Row(NOON, ("all",), {"n": 1})]
    assert traffic.subject == ("=all",)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_csv_delimiters_quotes_and_byte_order_mark(tmp_path: Path, mark: str) -> None:
    text = f'\ufefftime{mark}user\r\n"1700136000"{mark}"a {mark} ""b"""\r\n'
    traffic = read(tmp_path, text, ONE)
    assert traffic.rows == [Row(NOON, (f'a {mark} "b"',), {"requests": 1})]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2023-11-16,ana", "2 fields where the header has 3"),
        ("2023-11-16,ana,1,2", "4 fields where the header has 3"),
        ("later,ana,1", "'later' is not a time"),
        ("2023-11-16,,1", "the subject is empty"),
        ("2023-11-16," + "a" * 129 + ",1", "129 bytes"),
        ("2023-11-16,ana,", "n is empty"),
        ("2023-11-16,ana,1.5", "'1.5', not a whole number"),
        ("2023-11-16,ana,-1", "'-1', not a whole number"),
        ("2023-11-16,ana,nan", "'nan', not a whole number"),
        ("2023-11-16,ana,1000000000000001", "at most 1000000000000000"),
        ("2023-11-16,ana," + "9" * 400, "not a whole number"),
    ],
)
def test_bad_csv_rows_say_why(tmp_path: Path, row: str, reason: str) -> None:
    text = f"time,user,n\n{row}\n2023-11-16,ana,7\n"
    traffic = read(tmp_path, text, Selection(subject=("user",), costs=(Cost.parse("n"),)))
    assert [row.costs for row in traffic.rows] == [{"n": 7}]
    assert traffic.unreadable == 1
    assert traffic.problems[0].line == 2
    assert reason in traffic.problems[0].reason


@pytest.mark.parametrize("note", ['"unclosed', '"half" open'])
def test_an_unclosed_quote_costs_one_line_only(tmp_path: Path, note: str) -> None:
    lines = ["time,user,note", *[f"{1_700_136_000 + n},ana,ok" for n in range(5)]]
    lines[2] = f"1700136001,ana,{note}"
    traffic = read(tmp_path, "\n".join(lines) + "\n", ONE)
    assert [row.time_ms for row in traffic.rows] == [NOON + 1000 * n for n in (0, 2, 3, 4)]
    assert [problem.line for problem in traffic.problems] == [3]
    assert traffic.unreadable == 1


def test_line_numbers_count_lines_inside_quotes(tmp_path: Path) -> None:
    text = 'time,user,note\n1700136000,ana,"two\nlines"\nbad,ana,x\n'
    traffic = read(tmp_path, text, ONE)
    assert len(traffic.rows) == 1
    assert traffic.problems[0].line == 4


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(20)]
    text = "time,user\n" + "".join(f"1700136000,{user}\n" for user in users)
    assert [row.subject[0] for row in read(tmp_path, text, ONE).rows] == users


def test_invalid_bytes_keep_subjects_apart(tmp_path: Path) -> None:
    text = b"time,user\n1700136000,a\xff\n1700136000,a\xfe\n"
    assert len({row.subject for row in read(tmp_path, text, ONE).rows}) == 2


# --- JSON


def test_json_lines_with_nested_fields_and_numbers(tmp_path: Path) -> None:
    text = (
        '{"ts": 1700136000.5, "user": {"id": 7}, "n": 3}\n'
        "\n"
        '{"ts": "2023-11-16T12:00:00Z", "user": {"id": "b"}, "n": "4", "extra": null}\n'
        '{"ts": 1700136000, "user": {"id": true}, "n": 3}\n'
        '{"ts": 1700136000, "user": {"id": 1}, "n": true}\n'
        '{"ts": 1700136000, "user": {"id": 1}}\n'
        '[1]\n{"ts"\n'
    )
    chosen = Selection(subject=("=t", "user.id"), costs=(Cost.parse("n"),))
    traffic = read(tmp_path, text, chosen, "t.jsonl")
    assert traffic.rows == [Row(NOON, ("t", "b"), {"n": 4}), Row(NOON + 500, ("t", "7"), {"n": 3})]
    assert traffic.unreadable == 5
    assert [problem.line for problem in traffic.problems] == [4, 5, 6, 7, 8]


def test_json_objects_may_have_different_fields(tmp_path: Path) -> None:
    text = '{"time": 1700136000}\n{"time": 1700136000, "user": "ana"}\n'
    traffic = read(tmp_path, text, ONE, "t.jsonl")
    assert (len(traffic.rows), traffic.unreadable) == (1, 1)
    with pytest.raises(InputError, match="no column 'user'; there are time"):
        read(tmp_path, '{"time": 1700136000}\n' * 3, ONE, "t.jsonl")


def test_a_json_array(tmp_path: Path) -> None:
    text = '[\n {"time": 1700136000, "user": "ana"},\n 5\n]'
    traffic = read(tmp_path, text, ONE, "t.json")
    assert (len(traffic.rows), traffic.problems[0].line) == (1, 2)
    with pytest.raises(InputError, match="not a JSON document"):
        read(tmp_path, "[{", ONE, "t.json")


# --- the source


def test_gzip_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    text = "time,user\n1700136000,ana\n"
    assert len(read(tmp_path, gzip.compress(text.encode()), ONE, "plain.csv").rows) == 1
    assert len(read(tmp_path, text, ONE, "not-really.csv.gz").rows) == 1


def test_a_cut_gzip_file_says_so_and_keeps_what_came_before(tmp_path: Path) -> None:
    # Stored blocks, so that the first lines come out of the first half of the file.
    text = "time,user\n" + "".join(f"{1_700_136_000 + n},u{n}\n" for n in range(20_000))
    data = gzip.compress(text.encode(), compresslevel=0)
    traffic = read(tmp_path, data[: len(data) // 2], ONE)
    assert 5_000 < len(traffic.rows) < 20_000
    assert "compressed data is damaged" in traffic.problems[-1].reason


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(b"time,user\n1700136000,ana\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    with Source("-") as source:
        assert source.name == "standard input"
        assert len(read_rows(source, ONE).rows) == 1


@pytest.mark.parametrize(
    ("text", "selection", "message"),
    [
        ("", ONE, "is empty"),
        ("just words\n", ONE, "neither an access log"),
        ("time,user\n1700136000,a\n", Selection(), "no cost"),
        ("when,user\n1700136000,a\n", ONE, "Give --time; there are when, user"),
        ("time,user\n1,a\n", Selection(time="x", default_costs=("a",)), "--time: .* 'x'"),
        ("time,user\n1,a\n", Selection(subject=("x",), default_costs=("a",)), "no column 'x'"),
        ("time,user\n1,a\n", Selection(costs=(Cost.parse("n=a+b"),)), "--cost: .* 'a'"),
        ("time,time\n1,a\n", ONE, "more than once"),
    ],
)
def test_what_cannot_be_read_at_all(
    tmp_path: Path, text: str, selection: Selection, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, selection, "t.txt")


def test_the_format_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "single"
    path.write_text("time\n1700136000\n")
    with Source(path, format="csv") as source:
        assert len(read_rows(source, Selection(default_costs=("a",))).rows) == 1


def test_costs() -> None:
    assert Cost.parse("credits=a + b+3+4") == Cost("credits", ("a", "b"), 7)
    assert Cost.parse("tokens") == Cost("tokens", ("tokens",), 0)
    assert Cost.parse("requests=1") == Cost("requests", (), 1)
    for bad in ("", "=a", "a=", "a=b++c", "a=+"):
        with pytest.raises(InputError, match="NAME=COLUMN"):
            Cost.parse(bad)
