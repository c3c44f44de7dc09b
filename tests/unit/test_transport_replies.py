"""What an error reply means for the request that got it: only what never ran may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.connection import DefaultParser

from meterd.transport import MaybeSent, Node, NotSent, Rejected, Request, pack
from meterd.transport.replies import Verdict, judge, judge_all, spoils, target
from meterd.transport.routing import Cluster, Exchange, Flow, settle

HERE, THERE = Node("here", 7000), Node("there", 7001)
parse: Callable[[str], Exception] = DefaultParser.parse_error

MEANINGS = {
    "MOVED 3999 there:7001": Verdict.MOVED,
    "ASK 3999 there:7001": Verdict.ASK,
    "TRYAGAIN Multiple keys request during rehashing of slot": Verdict.WAIT,
    "CLUSTERDOWN The cluster is down": Verdict.WAIT,
    "CLUSTERDOWN Hash slot not served": Verdict.WAIT,
    "LOADING Redis is loading the dataset in memory": Verdict.ELSEWHERE,
    "MASTERDOWN Link with MASTER is down": Verdict.ELSEWHERE,
    "READONLY You can't write against a read only replica.": Verdict.ELSEWHERE,
    "BUSY Redis is busy running a script.": Verdict.ELSEWHERE,
    "ERR max number of clients reached": Verdict.ELSEWHERE,
    "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a "
    "read only replica.": Verdict.ELSEWHERE,
    "NOAUTH Authentication required.": Verdict.REJECTED,
    "WRONGPASS invalid username-password pair or user is disabled.": Verdict.REJECTED,
    # From inside a script these may follow a write that stays: never repeated, only reported.
    "ERR Script attempted to access a non local key in a cluster node": Verdict.REPLY,
    "NOPERM No permissions to access a key": Verdict.REPLY,
    "OOM command not allowed when used memory > 'maxmemory'.": Verdict.REPLY,
    "NOSCRIPT No matching script.": Verdict.REPLY,
    "ERR Function not found": Verdict.REPLY,
    "BUSYGROUP Consumer Group name already exists": Verdict.REPLY,
    "CROSSSLOT Keys in request don't hash to the same slot": Verdict.REPLY,
}


@pytest.mark.parametrize("text", MEANINGS)
def test_every_error_has_one_meaning(text: str) -> None:
    reply = parse(text)
    assert judge(reply) is MEANINGS[text]
    assert spoils(reply) == (MEANINGS[text] in (Verdict.ELSEWHERE, Verdict.REJECTED))


@pytest.mark.parametrize("reply", [b"OK", 1, None, [b"x"], b"MOVED 1 there:1"])
def test_data_is_never_an_error(reply: Any) -> None:
    assert judge(reply) is Verdict.REPLY


def test_of_several_replies_all_must_have_been_turned_away() -> None:
    moved = parse("MOVED 1 there:7001")
    assert judge_all([moved, moved], 2)[0] is Verdict.MOVED
    assert judge_all([moved, 1], 2) == (Verdict.REPLY, [moved, 1])


@pytest.mark.parametrize(("host", "node"), [("there", THERE), ("", Node("here", 7001))])
def test_a_redirect_without_a_host_means_the_one_that_answered(host: str, node: Node) -> None:
    assert target(parse(f"MOVED 1 {host}:7001"), HERE) == node  # type: ignore[arg-type]


def test_a_server_alone() -> None:
    assert settle(5, 1, HERE) == 5
    with pytest.raises(Rejected, match=r"redis\+cluster://"):
        settle(parse("MOVED 1 there:7001"), 1, HERE)
    with pytest.raises(Rejected, match="check user and password"):
        settle(parse("NOAUTH Authentication required."), 1, HERE)
    with pytest.raises(NotSent, match="here:7000 cannot serve now: Redis is loading"):
        settle(parse("LOADING Redis is loading the dataset in memory"), 1, HERE)


def play(flow: Flow, *answers: Any) -> tuple[list[Any], Any]:
    """Drive a flow with scripted answers; what it asked for, and how it ended."""
    asked: list[Any] = []
    waiting = list(answers)
    step = next(flow)
    try:
        while True:
            asked.append(step)
            if isinstance(step, float):
                step = next(flow)
                continue
            answer = waiting.pop(0)
            throw = isinstance(answer, (NotSent, MaybeSent))
            step = flow.throw(answer) if throw else flow.send(answer)
    except StopIteration as end:
        return asked, end.value


def slots_of(*nodes: Node) -> list[Any]:
    size = 16384 // len(nodes)
    return [
        [index * size, (index + 1) * size - 1, [node.host.encode(), node.port, b"id"]]
        for index, node in enumerate(nodes)
    ]


def sent_to(asked: list[Any]) -> list[Node]:
    return [step.node for step in asked if isinstance(step, Exchange)]


FOREVER = float("inf")
REQUEST = Request(pack("INCR", "k"), b"k")


def test_moved_fetches_the_map_from_the_new_owner() -> None:
    cluster = Cluster((HERE,))
    play(cluster.send(REQUEST, FOREVER), slots_of(HERE), 1)
    cluster._refreshed_at = 0.0
    moved = parse("MOVED 7629 there:7001")
    asked, answer = play(cluster.send(REQUEST, FOREVER), moved, slots_of(HERE, THERE), 2)
    assert answer == 2
    assert sent_to(asked) == [HERE, THERE, THERE]
    assert asked[1].packed == pack("CLUSTER", "SLOTS")
    assert not [step for step in asked if isinstance(step, float)], "no pause"


def test_nodes_that_contradict_each_other_are_not_hammered() -> None:
    cluster = Cluster((HERE, THERE))
    there, here = parse("MOVED 7629 there:7001"), parse("MOVED 7629 here:7000")
    ping_pong = [there, here] * 4
    asked, answer = play(cluster.send(REQUEST, FOREVER), slots_of(HERE), *ping_pong, 1)
    assert answer == 1
    assert len([step for step in asked if isinstance(step, float)]) >= 5


def test_ask_is_one_write_and_leaves_the_map_alone() -> None:
    cluster = Cluster((HERE,))
    ask = parse("ASK 7629 there:7001")
    asked, answer = play(cluster.send(REQUEST, FOREVER), slots_of(HERE), ask, [b"OK", 3])
    assert answer == 3
    assert asked[-1] == Exchange(THERE, pack("ASKING") + REQUEST.packed, 2)
    assert cluster.owner(b"k") == HERE
    assert THERE in cluster.nodes(), "functions must be loaded there as well"


def test_a_refused_connection_is_repeated_but_a_lost_reply_never() -> None:
    cluster = Cluster((HERE, THERE))
    refused = NotSent("refused")
    asked, answer = play(cluster.send(REQUEST, FOREVER), slots_of(HERE), refused, 4)
    assert answer == 4
    assert sent_to(asked) == [HERE, HERE, HERE]
    with pytest.raises(MaybeSent):
        play(cluster.send(REQUEST, FOREVER), MaybeSent("lost"))
    assert cluster.stale, "the next call looks for a new owner first"


def test_the_map_comes_from_whoever_answers() -> None:
    cluster = Cluster((HERE, THERE))
    asked, _ = play(cluster.send(REQUEST, FOREVER), MaybeSent("late"), slots_of(THERE), 1)
    assert sent_to(asked) == [HERE, THERE, THERE]


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_map_without_hosts_means_the_host_that_answered(host: bytes | None) -> None:
    cluster = Cluster((HERE,))
    play(cluster.send(REQUEST, FOREVER), [[0, 16383, [host, 7005, b"id"]]], 1)
    assert cluster.nodes() == [Node("here", 7005)]
