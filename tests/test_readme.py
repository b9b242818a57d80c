"""What the README shows works."""

from __future__ import annotations

import re
import shlex

import pytest

from gpubackprop import recipes
from tests.commands import PROJECT, check

README = (PROJECT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCED.findall(README)
INLINE = re.findall(r"`((?:gpubackprop|make) [^`]+)`", README)
PAGES = sorted((PROJECT / "docs").rglob("*.md"))
ALL = [*BLOCKS, *[b for page in PAGES for b in FENCED.findall(page.read_text(encoding="utf-8"))]]
LINES = [line for language, text in ALL if not language for line in text.splitlines()]


def test_the_tour_runs(capsys):
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert said[-4] == "12.0 12.0"
    assert float(said[-3].split()[-1]) > 0.85
    assert said[-2] == "(16, 1, 3, 3)"
    assert said[-1].startswith("compiled step: 1 recording(s)")


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


def test_every_recipe_has_a_page_and_a_row():
    names = set(recipes.names())
    assert {page.stem for page in (PROJECT / "docs" / "recipes").iterdir()} == names
    assert set(re.findall(r"^\| \[`([\w-]+)`\]\(docs/recipes/\1\.md\)", README, re.M)) == names


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert "://" in target or (PROJECT / target).exists(), target
