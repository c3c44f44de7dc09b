"""doctor: each check as a pure reading, and the whole against real servers."""

from __future__ import annotations

import pytest

from meterd.cli import checks
from meterd.cli.checks import FAIL, OK, WARN
from tests.cli.helpers import Run, data_of
from tests.support import servers
from tests.support.servers import Server


@pytest.mark.parametrize(
    ("info", "state"),
    [
        ({"valkey_version": "9.1.2", "redis_version": "7.2.4"}, OK),
        ({"valkey_version": "8.0.1"}, OK),
        ({"valkey_version": "7.2.5"}, FAIL),
        ({"valkey_version": "10.0.0"}, WARN),
        ({"redis_version": "6.2.14"}, OK),
        ({"redis_version": "8.2.3"}, OK),
        ({"redis_version": "6.0.16"}, FAIL),
        ({"redis_version": "9.0.0"}, WARN),
        ({}, WARN),
        ({"redis_version": "unstable"}, WARN),
    ],
)
def test_versions(info: dict[str, str], state: str) -> None:
    assert checks.server(info).state == state


@pytest.mark.parametrize(
    ("info", "config", "state"),
    [
        ({"aof_enabled": "1"}, {}, OK),
        ({"aof_enabled": "1"}, {"appendfsync": "everysec", "save": ""}, OK),
        ({"aof_enabled": "1"}, {"appendfsync": "no"}, WARN),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, {}, FAIL),
        ({"aof_enabled": "0"}, {"save": "3600 1"}, WARN),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, {"save": "3600 1"}, FAIL),
        ({"aof_enabled": "0"}, {"save": ""}, WARN),
        ({}, {}, WARN),
    ],
)
def test_persistence(info: dict[str, str], config: dict[str, str], state: str) -> None:
    check = checks.persistence(info, config)
    assert check.state == state
    assert bool(check.advice) == (state != OK)


def test_eviction() -> None:
    assert checks.eviction({"maxmemory_policy": "noeviction"}, accepted=False).state == OK
    lru = {"maxmemory_policy": "allkeys-lru"}
    assert checks.eviction(lru, accepted=False).state == FAIL
    assert checks.eviction(lru, accepted=True).state == WARN
    full = {"maxmemory_policy": "noeviction", "maxmemory": "100", "used_memory": "95"}
    assert checks.eviction(full, accepted=False).state == WARN
    assert checks.eviction({}, accepted=False).state == WARN


def test_role_cluster_clock_and_time() -> None:
    assert checks.role({"role": "slave"}).state == FAIL
    assert checks.role({"role": "master", "connected_slaves": "2"}).state == OK
    assert checks.cluster(None).state == OK
    whole = {"cluster_state": "ok", "cluster_slots_ok": "16384", "cluster_size": "3"}
    assert checks.cluster(whole).state == OK
    assert checks.cluster({**whole, "cluster_slots_ok": "16000"}).state == FAIL
    assert checks.store_clock("manual").state == WARN
    assert checks.store_clock("server").state == OK
    assert checks.skew(1_000, 2_000, 50).state == OK
    assert "behind" in checks.skew(1_000, 9_000, 50).found
    assert checks.catalog(3, 1).found == "revision 3, 1 plan"


def test_doctor_on_a_server_without_persistence(stocked: Run) -> None:
    stocked("consume", "acme", "credits")
    result = stocked("doctor")
    assert result.exit_code == 0, result.stdout
    assert "Valkey 9" in result.stdout
    assert "is loaded" in result.stdout
    assert "revision 1, 2 plans" in result.stdout
    assert "none: a restart forgets everything" in result.stdout
    assert "→ set appendonly yes" in result.stdout


def test_doctor_changes_nothing(run: Run, server: Server) -> None:
    before = server.admin.dbsize()
    assert run("doctor").exit_code == 0
    assert server.admin.dbsize() == before


def test_doctor_fails_on_a_server_that_evicts(bare: Run) -> None:
    with servers.start(servers.DEFAULT, "--maxmemory-policy", "allkeys-lru") as evicting:
        result = bare("doctor", "--url", evicting.url)
        assert result.exit_code == 1
        assert "fail" in result.stdout
        assert "set it to noeviction" in result.stdout


@pytest.mark.matrix
def test_doctor_on_every_server(bare: Run, matrix_server: Server) -> None:
    result = bare("doctor", "--url", matrix_server.url, "--json")
    assert result.exit_code == 0, result.stdout
    found = {check["name"]: check for check in data_of(result)["checks"]}
    version = matrix_server.name.partition("-")[2]
    assert version in found["server"]["found"]
    assert found["time"]["state"] == "ok"
