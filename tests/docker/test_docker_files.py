"""The container files name files, extras, versions and commands that exist. No container engine is
needed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import PurePosixPath

import pytest
from packaging.requirements import Requirement

from tests.commands import PROJECT, check

yaml = pytest.importorskip("yaml", reason="the test extra is not installed")

DOCKER = PROJECT / "docker"
IMAGES = ("Dockerfile.cpu", "Dockerfile.cuda")
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = METADATA["optional-dependencies"]
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with its arguments, continuation lines joined."""
    lines = [
        line for line in (DOCKER / name).read_text(encoding="utf-8").splitlines() if line[:1] != "#"
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def of(name: str, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == keyword]


def environment(name: str) -> dict[str, str]:
    return dict(word.split("=", 1) for rest in of(name, "ENV") for word in shlex.split(rest))


def in_context(path: str) -> bool:
    """Whether .dockerignore lets the path into the build: it shuts out everything and names what
    may come in."""
    rules = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in rules
    let_in = {PurePosixPath(rule[1:]) for rule in rules if rule.startswith("!")}
    wanted = PurePosixPath(path)
    return any(part in let_in for part in (wanted, *wanted.parents))


@pytest.mark.parametrize("name", IMAGES)
def test_the_first_and_the_last_user(name):
    assert of(name, "FROM") == ["python:3.12-slim-bookworm"]
    (user,) = of(name, "USER")
    assert f"--uid 1000 {user}" in of(name, "RUN")[0]
    order = [word for word, _ in instructions(name)]
    assert order.index("USER") > max(i for i, word in enumerate(order) if word == "RUN")


@pytest.mark.parametrize("name", IMAGES)
def test_every_copied_path_exists_and_reaches_the_build(name):
    copied = []
    for rest in of(name, "COPY"):
        *sources, target = rest.split()
        assert target.startswith("/src/")
        copied += sources
    assert copied
    for source in copied:
        assert (PROJECT / source).exists(), source
        assert in_context(source), source
    # What building the wheel reads.
    assert {"pyproject.toml", METADATA["readme"], "LICENSE", "gpubackprop"} <= set(copied)


@pytest.mark.parametrize(
    ("name", "extras"),
    [("Dockerfile.cpu", "plot,download"), ("Dockerfile.cuda", "plot,download,cuda13")],
)
def test_every_installed_version_is_held(name, extras):
    install = of(name, "RUN")[-1]
    assert f'"/src[{extras}]"' in install
    assert "--constraint /src/docker/constraints.txt" in install
    held = [Requirement(line) for line in constraint_lines()]
    versions = {canonical(r.name): next(iter(r.specifier)).version for r in held}
    wanted = METADATA["dependencies"] + [
        line for extra in extras.split(",") for line in EXTRAS[extra]
    ]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonical(requirement.name)]), requirement


def constraint_lines() -> list[str]:
    lines = (DOCKER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and line[0] != "#"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_constraint_is_one_version():
    for line in constraint_lines():
        assert re.fullmatch(r"[\w-]+==[\w.]+", line), line


@pytest.mark.parametrize("name", IMAGES)
def test_commands_exist(name):
    assert of(name, "ENTRYPOINT") == ['["gpubackprop"]']
    check(["gpubackprop", *json.loads(of(name, "CMD")[0])])
    health = of(name, "HEALTHCHECK")[0].partition("CMD ")[2]
    check(json.loads(health))


def test_the_cuda_image_is_given_a_gpu_and_keeps_its_kernels():
    names = environment("Dockerfile.cuda")
    assert names["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(names["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    (volumes,) = map(json.loads, of("Dockerfile.cuda", "VOLUME"))
    assert any(PurePosixPath(v) in PurePosixPath(names["CUPY_CACHE_DIR"]).parents for v in volumes)


@pytest.mark.parametrize("name", IMAGES)
def test_volumes_belong_to_the_user(name):
    first = of(name, "RUN")[0]
    for volume in json.loads(of(name, "VOLUME")[0]):
        assert re.search(rf"mkdir .*{volume}\b", first)
        assert re.search(rf"chown trainer:trainer .*{volume}\b", first)


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_builds_and_runs_what_is_there(service):
    said = COMPOSE["services"][service]
    build = said["build"]
    assert (DOCKER / build["context"]).resolve() == PROJECT
    assert (PROJECT / build["dockerfile"]).is_file()
    check(["gpubackprop", *said["command"]])
    for volume in said["volumes"]:
        source = volume.rpartition(":")[0]
        assert source.removeprefix("${DATA:-").rstrip("}") in COMPOSE["volumes"], volume


def test_only_the_cuda_service_asks_for_a_gpu():
    assert "deploy" not in COMPOSE["services"]["cpu"]
    (device,) = COMPOSE["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
