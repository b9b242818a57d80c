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
    assert of(name, "FROM") == ["${BASE}"]
    assert of(name, "ARG") == ["BASE=python:3.12-slim-bookworm"]
    assert instructions(name)[0][0] == "ARG"  # only before FROM it is known there
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
    [
        ("Dockerfile.cpu", "plot,download,fast,bf16"),
        ("Dockerfile.cuda", "plot,download,cuda13,cudnn13"),
    ],
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
    health = json.loads(of(name, "HEALTHCHECK")[0].partition("CMD ")[2])
    assert health[:2] == ["gpubackprop", "devices"]
    check(health)


def test_the_cuda_image_is_not_well_without_its_gpu():
    """`auto` would fall back to the CPU, and the container would count as healthy."""
    health = json.loads(of("Dockerfile.cuda", "HEALTHCHECK")[0].partition("CMD ")[2])
    assert health[2:] == ["--device", "cuda"] == json.loads(of("Dockerfile.cuda", "CMD")[0])[2:]


@pytest.mark.parametrize("name", [*IMAGES, "compose.yaml"])
def test_commands_in_comments_exist(name):
    text = (DOCKER / name).read_text(encoding="utf-8")
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#   ")]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(re.sub(r"^[A-Z]+=\S+ ", "", line))
        match words:
            case ["docker", "build", "-f", file, "-t", tag, "."]:
                assert (PROJECT / file).is_file() and tag == f"gpubackprop:{name.split('.')[1]}"
            case ["docker", "run", "--rm", *rest]:
                place = next(i for i, word in enumerate(rest) if word.startswith("gpubackprop:"))
                mounted = [rest[i + 1].partition(":")[2] for i, w in enumerate(rest) if w == "-v"]
                assert mounted == json.loads(of(name, "VOLUME")[0])
                check(["gpubackprop", *rest[place + 1 :]])
            case ["docker", "compose", "-f", file, "run", "--rm", service, *command]:
                assert (PROJECT / file).is_file() and service in COMPOSE["services"]
                check(["gpubackprop", *command])
            case _:
                pytest.fail(f"a comment of {name} shows a command that is not known: {line}")


@pytest.mark.parametrize("name", IMAGES)
def test_caches_lie_on_a_volume(name):
    folders = {
        k: v for k, v in environment(name).items() if "CACHE_DIR" in k or k.endswith("CACHE")
    }
    folders.pop("PIP_NO_CACHE_DIR")
    assert len(folders) == 2
    volumes = list(map(PurePosixPath, json.loads(of(name, "VOLUME")[0])))
    for variable, folder in folders.items():
        assert any(v in PurePosixPath(folder).parents for v in volumes), variable


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
    # Every volume of the image is mounted, and nothing else but the data.
    mounted = [volume.rpartition(":")[2] for volume in said["volumes"]]
    image = PurePosixPath(build["dockerfile"]).name
    assert set(mounted) == {*json.loads(of(image, "VOLUME")[0]), "/data"}
    assert said["stop_grace_period"] == "1m"
    for volume in said["volumes"]:
        source = volume.rpartition(":")[0]
        assert source.removeprefix("${DATA:-").rstrip("}") in COMPOSE["volumes"], volume


def test_only_the_cuda_service_asks_for_a_gpu():
    assert "deploy" not in COMPOSE["services"]["cpu"]
    (device,) = COMPOSE["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
