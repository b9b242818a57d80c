"""What the README shows works."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.commands import PROJECT, check

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`((?:gpubackprop|make) [^`]+)`", README)
LINES = [line for language, text in BLOCKS if not language for line in text.splitlines()]


def test_the_tour_runs(capsys):
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "12.0 12.0"
    assert float(said[-1].split()[-1]) > 0.85


@pytest.mark.parametrize("line", [*LINES, *INLINE])
def test_commands_exist(line):
    for command in line.split(" && "):
        words = shlex.split(command.removeprefix(".venv/bin/"))
        match words:
            case ["gpubackprop", "COMMAND", "--help"]:
                continue
            case ["gpubackprop", *_] | ["make", *_]:
                check(words)
            case ["pip", "install", _] | ["python3", "-m", "venv", ".venv"]:
                continue
            case ["docker", "build", "-f", file, "-t", _, "."]:
                assert (PROJECT / file).is_file()
            case ["docker", "run", *rest]:
                image = next(i for i, word in enumerate(rest) if word.startswith("gpubackprop:"))
                check(["gpubackprop", *rest[image + 1 :]])
            case _:
                pytest.fail(f"the README shows a command that this test does not know: {command}")


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert "://" in target or (PROJECT / target).exists(), target
