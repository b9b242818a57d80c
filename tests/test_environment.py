"""tools/venv.sh, which `make` calls: it finds a Python that will do, or says in one line what is
missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "venv.sh"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the script is for a POSIX shell")


class Machine:
    """A folder to work in and a PATH that holds the Pythons that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "project"
        self.commands = folder / "bin"
        self.home.mkdir()
        self.commands.mkdir()
        for tool in ("cat", "sh"):
            (self.commands / tool).symlink_to(shutil.which(tool))

    def python(self, name: str, version: str, without: str = "none") -> None:
        """A stand-in that answers like a Python of that version, and lacks one module."""
        major, minor, micro = version.split(".")
        self.command(
            name,
            f"""
case "$*" in
    "-m venv"*) for last; do :; done
        /bin/mkdir -p "$last/bin" && /bin/cp "$0" "$last/bin/python"; echo made by {name} ;;
    *{without}*) exit 1 ;;
    *"version_info[:3]"*) echo {version} ;;
    *"version_info < (3, 11)"*) [ {major}{minor.zfill(2)} -ge 311 ] ;;
esac
""",
        )

    def command(self, name: str, body: str) -> None:
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{body}")
        path.chmod(0o755)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT), ".venv"],
            cwd=self.home,
            env={"PATH": str(self.commands)} | environment,
            text=True,
            capture_output=True,
            timeout=60,
        )

    def error(self, **environment: str) -> str:
        """The one line that the script ends with."""
        done = self.run(**environment)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_environment_is_made_once(machine):
    (machine.commands / "python3").symlink_to(sys.executable)
    first = machine.run()
    assert first.returncode == 0, first.stderr
    made = machine.home / ".venv" / "pyvenv.cfg"
    assert made.is_file()
    stamp = made.stat().st_mtime_ns
    again = machine.run()
    assert (again.returncode, again.stderr) == (0, "")
    assert made.stat().st_mtime_ns == stamp
    moved = machine.home.rename(machine.home.with_name("moved"))
    machine.home = moved
    assert "Making .venv" in machine.run().stderr


def test_the_first_python_that_is_new_enough_is_taken(machine):
    machine.python("python3", "3.9.2")
    machine.python("python3.12", "3.12.7")
    machine.python("python3.11", "3.11.9")
    done = machine.run()
    assert done.returncode == 0
    assert "made by python3.12" in done.stdout


def test_a_python_that_was_named_comes_first(machine):
    machine.python("python3", "3.13.0")
    machine.python("special", "3.11.0")
    assert "made by special" in machine.run(PYTHON="special").stdout


def test_an_old_python_is_named(machine):
    machine.python("python3", "3.9.2")
    assert "Python 3.11 or newer is needed, but python3 is 3.9.2" in machine.error()


def test_a_missing_python_is_named(machine):
    assert "none was found" in machine.error()
    assert "looked for special" in machine.error(PYTHON="special")


def test_a_missing_venv_module_comes_with_the_command_that_mends_it(machine):
    machine.python("python3", "3.11.2", without="ensurepip")
    assert machine.error().endswith("sudo apt install python3.11-venv")


def test_a_command_that_only_looks_like_python_is_passed_over(machine):
    machine.command("python3", "exit 127")
    machine.python("python3.13", "3.13.1")
    assert "made by python3.13" in machine.run().stdout


def test_an_environment_made_by_somebody_else_is_kept(machine):
    machine.python("python3", "3.12.0")
    folder = machine.home / ".venv" / "bin"
    folder.mkdir(parents=True)
    shutil.copy(machine.commands / "python3", folder / "python")
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
