"""What stands in the files of cluster/ for clouds and in docs/cluster.md: node types, pods, commands, variables."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
LAUNCHED = ("aws", "gcp", "local")  # by `ray up`
KUBERNETES = sorted(path for path in (FOLDER / "kuberay").glob("*.yaml") if path.name != "kustomization.yaml")
SLURM, DOCKERFILE, PAGE = FOLDER / "slurm.sh", FOLDER / "Dockerfile", ROOT / "docs" / "cluster.md"

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())

Manifest = dict[str, Any]


def launched(name: str) -> Manifest:
    settings: Manifest = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return settings


@cache
def manifests() -> tuple[Manifest, ...]:
    """All objects of Kubernetes."""
    return tuple(found for path in KUBERNETES for found in yaml.safe_load_all(path.read_text()))


def of_kind(*kinds: str) -> list[Manifest]:
    return [found for found in manifests() if found["kind"] in kinds]


def ray_cluster() -> Manifest:
    (found,) = of_kind("RayCluster")
    return found


def pod_templates() -> dict[str, Manifest]:
    """The pods that the manifests bring up, by name."""
    templates = {found["metadata"]["name"]: found["spec"]["template"] for found in of_kind("StatefulSet", "Deployment")}
    spec = ray_cluster()["spec"]
    templates["ray-head"] = spec["headGroupSpec"]["template"]
    templates |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    (job,) = of_kind("RayJob")
    return templates | {"submitter": job["spec"]["submitterPodTemplate"]}


def containers() -> Iterator[Manifest]:
    for template in pod_templates().values():
        yield from template["spec"]["containers"]


def code(text: str) -> str:
    """What a page of prose shows as code: indented and fenced blocks, and words between backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"^ {4}(.*)$", text, re.M)
    return "\n".join([*fenced, *indented, *re.findall(r"`([^`\n]+)`", text)])


def scripts() -> dict[str, str]:
    """File -> its shell commands, a line each. Comments that show a command between backticks count."""
    found = {}
    for name in LAUNCHED:
        settings, text = launched(name), (FOLDER / f"{name}.yaml").read_text()
        lists = [value for key, value in settings.items() if key.endswith("commands")]
        found[f"{name}.yaml"] = "\n".join(
            [*(line for lines in lists for line in lines), *re.findall("`([^`]+)`", text)]
        )
    found["slurm.sh"] = SLURM.read_text().replace("\\\n", " ")
    found["Dockerfile"] = DOCKERFILE.read_text().replace("\\\n", " ")
    found["kuberay"] = "\n".join(
        [
            *(shlex.join([*pod.get("command", []), *pod.get("args", [])]) for pod in containers()),
            *(job["spec"]["entrypoint"] for job in of_kind("RayJob")),
            *re.findall("`([^`]+)`", "".join(path.read_text() for path in (FOLDER / "kuberay").glob("*.yaml"))),
        ]
    )
    found["docs/cluster.md"] = code(PAGE.read_text()).replace("\\\n", " ")
    return found


def calls(program: str, script: str) -> list[list[str]]:
    """The words after each call of a program in shell commands, up to a pipe, a redirection or another command."""
    ends = re.findall(rf"(?<![\w/.$'-])(?:\S*/bin/)?{program} +([^&|;\n`>#]*)", script)
    return [_words(words) for words in ends]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quote that another command closes
        return text.split()


def misused(command: click.Command, words: list[str]) -> str:
    """What the command line says against these words: an unknown subcommand or option; empty when it takes them."""
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0]) if words else None
        if found is None:
            return f"{command.name} has no subcommand {' '.join(words[:1])!r}"
        command, words = found, words[1:]
    try:
        command.make_parser(click.Context(command)).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    return ""


def variables() -> dict[str, set[str]]:
    """File -> the environment variables that it sets."""
    found = {f"{name}.yaml": _assigned(launched(name)["metadata"]["environment"]) for name in LAUNCHED}
    script = SLURM.read_text()
    exported = re.findall(r"^export (.*)$", script, re.M)
    found["slurm.sh"] = {name.split("=")[0] for names in exported for name in names.split()}
    found["kuberay"] = {variable["name"] for pod in containers() for variable in pod.get("env", [])}
    return found


def _assigned(command: str) -> set[str]:
    return set(re.findall(r"[' ]([A-Z_]+)=", command))
