"""The scripts travel in the wheel and in one built from the sdist; editable installs read ours."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = sorted(str(path.relative_to(ROOT / "bench")) for path in (ROOT / "bench").rglob("*.py"))
SCRIPTS = sorted(str(path.relative_to(ROOT / "lua")) for path in (ROOT / "lua").rglob("*.lua"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sdist/` holds the sdist and the wheel built from it, `wheel/` that of the checkout."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory / "sdist", ROOT)
    run(sys.executable, "-m", "build", "-nw", "--outdir", directory / "wheel", ROOT)
    return directory


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def one(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }


def installed(tmp_path: Path, *what: str | Path) -> Path:
    """The `lua_root()` that a fresh environment answers."""
    program = "from meterd.scripts import lua_root; print(lua_root())"
    return Path(run(environment(tmp_path, *what), "-c", program, cwd=tmp_path))


def environment(tmp_path: Path, *what: str | Path) -> Path:
    """The Python of a fresh environment, with dependencies lent by this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "lent.pth").write_text("\n".join(sorted(lent)) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "--quiet", "install")
    run(*pip, "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", *what)
    return python


def scripts_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.lua"))


def test_there_are_scripts_to_ship() -> None:
    assert "consume.lua" in SCRIPTS


def test_the_wheel_holds_package_scripts_prelude_and_marker(dist: Path) -> None:
    names = contents(one(dist / "wheel", "*.whl"))
    shipped = [name for name in names if name.startswith("meterd/lua/") and name.endswith(".lua")]
    assert sorted(name.removeprefix("meterd/lua/") for name in shipped) == SCRIPTS
    assert {"meterd/py.typed", "meterd/testing/prelude/struct.lua"} <= set(names)
    assert all(name.startswith("meterd/") for name in names)


def test_the_wheel_holds_the_benchmarks_without_results(dist: Path) -> None:
    names = contents(one(dist / "wheel", "*.whl"))
    shipped = [name for name in names if name.startswith("meterd/_bench/")]
    wanted = [name for name in HARNESS if name != "__main__.py"]
    assert sorted(name.removeprefix("meterd/_bench/") for name in shipped) == wanted


def test_the_wheel_runs_its_benchmarks(dist: Path, tmp_path: Path) -> None:
    python = environment(tmp_path, one(dist / "wheel", "*.whl"))
    program = "import sys; from meterd.cli import main; sys.argv[0] = 'meterd'; main()"
    assert "growth" in run(python, "-c", program, "bench", "--list", cwd=tmp_path)


def test_a_wheel_from_the_sdist_is_the_same_wheel(dist: Path) -> None:
    assert contents(one(dist / "sdist", "*.whl")) == contents(one(dist / "wheel", "*.whl"))


def test_the_wheel_finds_its_own_scripts(dist: Path, tmp_path: Path) -> None:
    root = installed(tmp_path, one(dist / "wheel", "*.whl"))
    assert root.is_relative_to(tmp_path)
    assert scripts_in(root) == SCRIPTS


def test_the_sdist_finds_its_own_scripts(dist: Path, tmp_path: Path) -> None:
    root = installed(tmp_path, one(dist / "sdist", "*.tar.gz"))
    assert root.is_relative_to(tmp_path)
    assert scripts_in(root) == SCRIPTS


def test_an_editable_install_reads_the_checkout(tmp_path: Path) -> None:
    assert installed(tmp_path, "--editable", ROOT) == ROOT / "lua"
