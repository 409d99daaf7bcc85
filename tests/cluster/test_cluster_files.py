"""The files for clouds are what Ray, Kubernetes, the clouds and the shell take, and nothing that they name is missing.

Nothing here reaches a cloud. No package carries a schema of KubeRay's objects: Ray's own reader takes the cluster, and
both have no fields but those listed here. KubeRay's own schemas are asked, too, where KUBERAY_CRDS names the folder of
its definitions, see docs/cluster.md.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config

from study.run import VERBS
from tests.cluster.cluster_files import (
    DOCKERFILE,
    FOLDER,
    KUBERNETES,
    LAUNCHED,
    PAGE,
    PINNED,
    PROJECT,
    ROOT,
    SLURM,
    Manifest,
    calls,
    containers,
    launched,
    manifests,
    misused,
    of_kind,
    pod_templates,
    ray_cluster,
    scripts,
    variables,
)

CLOUDS = ("aws", "gcp")
BIN = Path(sys.executable).parent
KUBERNETES_VERSION = "1.34"


# The cluster launcher


def prepared(name: str) -> Manifest:
    """The settings as `ray up` has them after filling in its defaults."""
    settings: Manifest = prepare_config(launched(name))
    return settings


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_takes_the_file(name: str) -> None:
    settings = prepared(name)
    validate_config(settings)
    _get_node_provider_cls(settings["provider"])  # with the package of its cloud
    assert not set(settings) - set(
        json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())["properties"]
    )


@pytest.fixture
def ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """EC2 and IAM, simulated in this process, with the role that the launcher would make for the head."""
    for name, value in {
        "HOME": str(tmp_path),  # the launcher writes a key there
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    import boto3
    import moto

    with moto.mock_aws():
        iam, role = boto3.client("iam"), "ray-autoscaler-v1"
        iam.create_instance_profile(InstanceProfileName=role)
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        yield boto3.client("ec2")


def test_the_launcher_brings_up_every_node_type_of_the_aws_file(ec2: Any) -> None:
    settings = prepared("aws")
    image = ec2.register_image(Name="ubuntu", RootDeviceName="/dev/sda1")["ImageId"]
    for node_type in settings["available_node_types"].values():
        node_type["node_config"]["ImageId"] = image
    launcher = _get_node_provider_cls(settings["provider"])
    settings = launcher.bootstrap_config(settings)
    provider = launcher(settings["provider"], settings["cluster_name"])
    for name, node_type in settings["available_node_types"].items():
        provider.create_node(node_type["node_config"], {"ray-node-name": name, "ray-user-node-type": name}, 1)
    up = {tag["Value"]: node for node in nodes_of(ec2) for tag in node["Tags"] if tag["Key"] == "ray-user-node-type"}
    assert {name for name, node in up.items() if node.get("InstanceLifecycle") != "spot"} == {"head"}
    machines = {
        found["InstanceType"]: {
            "CPU": found["VCpuInfo"]["DefaultVCpus"],
            "GPU": sum(gpu["Count"] for gpu in found.get("GpuInfo", {}).get("Gpus", [])),
        }
        for found in ec2.describe_instance_types(InstanceTypes=[node["InstanceType"] for node in up.values()])[
            "InstanceTypes"
        ]
    }
    for name, node_type in launched("aws")["available_node_types"].items():
        if name != "head":
            assert {"GPU": 0, **node_type["resources"]} == machines[up[name]["InstanceType"]], name


def nodes_of(ec2: Any) -> list[Manifest]:
    return [node for reservation in ec2.describe_instances()["Reservations"] for node in reservation["Instances"]]


@pytest.fixture(scope="module")
def instance_schema() -> Manifest:
    """A machine in Google's description of its Compute Engine, with unknown fields refused."""
    import googleapiclient

    path = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(path.read_text())["schemas"]
    return {"$ref": "#/schemas/Instance", "schemas": {name: strict(named(schema)) for name, schema in schemas.items()}}


def named(schema: Any) -> Any:
    """A schema of Google's as a part of a JSON schema, whose references are paths."""
    if isinstance(schema, list):
        return [named(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: named(value) for key, value in schema.items() if key not in ("id", "format", "required")}
    if "$ref" in changed:
        changed["$ref"] = f"#/schemas/{changed['$ref']}"
    return changed


def strict(schema: Any) -> Any:
    """The schema, and no fields but those it tells of (where it does not say that unknown ones stay)."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if "properties" in changed and not changed.get("x-kubernetes-preserve-unknown-fields"):
        changed.setdefault("additionalProperties", False)
    return changed


def test_the_nodes_of_the_gcp_file_are_what_compute_engine_takes(instance_schema: Manifest) -> None:
    for name, node_type in launched("gcp")["available_node_types"].items():
        node = copy.deepcopy(node_type["node_config"])
        for disk in node["disks"]:
            disk["initializeParams"]["diskSizeGb"] = str(disk["initializeParams"]["diskSizeGb"])  # an int64 in JSON
        jsonschema.validate(node, instance_schema)
        assert (node.get("scheduling", {}).get("provisioningModel") == "SPOT") == (name != "head")


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_gets_this_package_whole(name: str) -> None:
    mounts = {
        remote: local for remote, local in launched(name)["file_mounts"].items() if remote.startswith("~/package/")
    }
    assert all(remote == f"~/package/{local}" and (ROOT / local).exists() for remote, local in mounts.items())
    found = ("study", "search_spaces", "trainables", "cluster")
    assert set(mounts.values()) == {"pyproject.toml", "constraints.txt", PROJECT["readme"], "LICENSE", *found}


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_file_of_variables_that_a_node_gets_sets_them(name: str, tmp_path: Path) -> None:
    script = f"{launched(name)['metadata']['environment']}\n. ~/study.env && env"
    set_by = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=set_by, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert variables()[f"{name}.yaml"] <= set(found)
    assert found["PATH"] == f"{tmp_path}/venv/bin:/usr/bin:/bin"
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["STUDY_LEDGER"] == "postgresql+psycopg://study@DATABASE_HOST/studies"


# Autoscaling


def autoscaling(name: str) -> Manifest:
    """The settings that Ray's autoscaler reads on the head of a cluster."""
    if name != "kuberay":
        return prepared(name)
    described = {**ray_cluster(), "metadata": {"name": "studies", "namespace": "default"}}
    settings: Manifest = _derive_autoscaling_config_from_ray_cr(described)
    return settings


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay"])
def test_the_head_has_no_cpus_and_idle_workers_go(name: str) -> None:
    settings = autoscaling(name)
    types = dict(settings["available_node_types"])
    head = types.pop(settings["head_node_type"])
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert {(type_["min_workers"], type_["max_workers"] > 0) for type_ in types.values()} == {(0, True)}
    assert settings["idle_timeout_minutes"] == 5
    assert {"cpu", "gpu-1", "gpu-8"} == set(types)
    assert [types[name]["resources"].get("GPU") for name in ("cpu", "gpu-1", "gpu-8")] == [None, 1, 8]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_head_is_started_without_cpus(name: str) -> None:
    (start,) = (line for line in launched(name)["head_start_ray_commands"] if "ray start" in line)
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= set(
        start.split()
    )


@pytest.mark.parametrize("name", CLOUDS)
def test_the_prices_that_a_file_shows_are_of_its_node_types(name: str) -> None:
    (shown,) = re.findall(r"node_prices.*?(\{.*?\})", (FOLDER / f"{name}.yaml").read_text())
    assert set(yaml.safe_load(shown)) == {*launched(name)["available_node_types"], "default"} - {"head"}


# Kubernetes


def test_the_manifests_are_what_kubernetes_takes() -> None:
    core = [found for found in manifests() if not found["apiVersion"].startswith("ray.io/")]
    assert len(core) == 8
    for found in core:
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("name", sorted(pod_templates()))
def test_a_pod_is_what_kubernetes_takes_and_has_no_privileges(name: str) -> None:
    template = pod_templates()[name]
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
    kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"requests", "limits"} == set(container["resources"])


def fields(required: dict[str, Any], **optional: Any) -> Manifest:
    """A schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


STRING, OBJECT = {"type": "string"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
PARAMETERS = {"type": "object", "additionalProperties": STRING}
RAY_CLUSTER = fields(
    {
        "rayVersion": STRING,
        "headGroupSpec": fields({"rayStartParams": PARAMETERS, "template": OBJECT}),
        "workerGroupSpecs": {
            "type": "array",
            "items": fields(
                {
                    "groupName": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},  # in names of pods
                    "replicas": COUNT,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "rayStartParams": PARAMETERS,
                    "template": OBJECT,
                }
            ),
        },
        "authOptions": fields({"mode": {"enum": ["disabled", "token"]}}),
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": fields(
            {
                "version": {"enum": ["v1", "v2"]},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "idleTimeoutSeconds": COUNT,
                "resources": OBJECT,
                "securityContext": OBJECT,
            }
        ),
        "gcsFaultToleranceOptions": fields(
            {"redisAddress": STRING, "redisPassword": fields({"valueFrom": fields({"secretKeyRef": OBJECT})})}
        ),
    }
)
RAY_JOB = fields(
    {
        "clusterSelector": fields({"ray.io/cluster": STRING}),
        "entrypoint": STRING,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "submitterConfig": fields({"backoffLimit": COUNT}),
        "submitterPodTemplate": OBJECT,
    }
)


def test_the_ray_cluster_and_the_ray_job_have_fields_that_kuberay_reads() -> None:
    cluster, (job,) = ray_cluster(), of_kind("RayJob")
    jsonschema.validate(cluster["spec"], RAY_CLUSTER)
    jsonschema.validate(job["spec"], RAY_JOB)
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    assert job["spec"]["clusterSelector"]["ray.io/cluster"] == cluster["metadata"]["name"]
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["template"]["spec"]["nodeSelector"]
        assert any(toleration["key"] == "studies/spot" for toleration in group["template"]["spec"]["tolerations"])


def kuberay_schema(crds: Path, kind: str, version: str) -> Manifest:
    """The OpenAPI schema of a kind by KubeRay's own definition of it.

    Its `metadata` is left open: Kubernetes itself, not the definition, says what stands there.
    """
    definition = yaml.safe_load((crds / f"ray.io_{kind.lower()}s.yaml").read_text())
    (served,) = [each for each in definition["spec"]["versions"] if each["name"] == version]
    schema: Manifest = strict(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_takes_its_objects_by_its_own_schema(kind: str) -> None:
    if not (crds := os.environ.get("KUBERAY_CRDS")):
        pytest.skip("KUBERAY_CRDS does not name a folder with KubeRay's definitions, see docs/cluster.md")
    (found,) = of_kind(kind)
    _, version = found["apiVersion"].split("/")
    schema = kuberay_schema(Path(crds), kind, version)
    jsonschema.validate(found, schema)
    misspelt = copy.deepcopy(found)
    misspelt["spec"]["enableInTreeAutoscalling"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscalling"):
        jsonschema.validate(misspelt, schema)


def test_ray_pods_share_one_folder_and_have_their_shared_memory() -> None:
    claims = {found["metadata"]["name"] for found in of_kind("PersistentVolumeClaim")}
    for name in ("ray-head", "cpu", "gpu-1", "gpu-8"):
        spec = pod_templates()[name]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        places = {mount["mountPath"]: volumes[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}
        assert places["/shared"]["persistentVolumeClaim"]["claimName"] in claims
        assert places["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert spec["containers"][0]["env"] == pod_templates()["ray-head"]["spec"]["containers"][0]["env"]


def test_services_that_are_named_are_there() -> None:
    ports = {
        (found["metadata"]["name"], port["port"]) for found in of_kind("Service") for port in found["spec"]["ports"]
    }
    text = "\n".join(path.read_text() for path in KUBERNETES)
    named = {(host, int(port or 5432)) for host, port in re.findall(r"(?:@|http://)([a-z]+)(?::(\d+))?[/\"]", text)}
    named.add(("redis", int(ray_cluster()["spec"]["gcsFaultToleranceOptions"]["redisAddress"].split(":")[1])))
    assert named == ports
    for service in of_kind("Service"):
        (workload,) = (
            found
            for found in of_kind("StatefulSet", "Deployment")
            if found["metadata"]["name"] == service["metadata"]["name"]
        )
        assert workload["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]


def test_no_file_holds_a_password_and_the_page_makes_the_secret() -> None:
    (make,) = re.findall(r"kubectl create secret generic (\S+)((?:.|\n)*?)\n\n", PAGE.read_text())
    made = {(make[0], key) for key in re.findall(r"--from-literal=(\w+)=", make[1])}
    text = "\n".join(path.read_text() for path in KUBERNETES)
    used = set(re.findall(r"secretKeyRef: \{name: ([\w-]+), key: (\w+)\}", text))
    assert used == made
    for variable in (variable for container in containers() for variable in container.get("env", [])):
        assert "value" not in variable or "PASSWORD" not in variable["name"]
    for path in (*KUBERNETES, *(FOLDER / f"{name}.yaml" for name in LAUNCHED), SLURM):
        assert not re.search(r"://[^\s/@]*:[^\s/@]*@", path.read_text()), path


def test_kustomize_takes_every_manifest_but_the_job_and_names_the_image() -> None:
    settings = yaml.safe_load((FOLDER / "kuberay" / "kustomization.yaml").read_text())
    assert {*settings["resources"], "rayjob.yaml"} == {path.name for path in KUBERNETES}
    (image,) = settings["images"]
    ours = {container["image"] for container in containers()} - {"redis:7.2-bookworm", "postgres:17-bookworm"}
    assert ours == {image["name"], f"{image['newName']}:{image['newTag']}"}


# Shell, image


# $HOME is meant for the file that is written (2016), which is not here to be read (1090), Ray sets RAY_HEAD_IP, an
# address (2154, 2086), and `a && b || c` is meant (2015).
EXCLUDED = "--exclude=SC1090,SC2015,SC2016,SC2086,SC2154"


def test_shellcheck_finds_nothing() -> None:
    commands = [
        line for name in LAUNCHED for key, lines in launched(name).items() if key.endswith("commands") for line in lines
    ]
    check([BIN / "shellcheck", SLURM])
    check([BIN / "shellcheck", "--shell=bash", EXCLUDED, "-"], "\n".join(commands))


def test_hadolint_finds_nothing() -> None:
    check([BIN / "hadolint", DOCKERFILE])


def check(command: list[str | Path], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_installs_what_the_package_needs_at_the_pinned_versions(tmp_path: Path) -> None:
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    (line,) = (line for line in lines if line.startswith("RUN python -c"))
    program, install = line.removeprefix("RUN python -c ").split("> requirements.txt")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c {program}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    extras = PROJECT["optional-dependencies"]
    assert done.stdout.splitlines() == [*PROJECT["dependencies"], *extras["postgresql"], *extras["object-storage"]]
    assert "--constraint constraints.txt" in install
    names = {
        re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")
        for requirement in done.stdout.split("\n")
        if requirement
    }
    assert names <= {name.lower().replace("_", "-") for name in PINNED}


def test_the_image_gets_files_that_are_there_and_not_ignored() -> None:
    copied = {
        source
        for line in DOCKERFILE.read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    kept = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {keep.removesuffix("/*.py") for keep in kept} == copied
    assert "USER 1000" in DOCKERFILE.read_text().splitlines()


# What is named exists


@pytest.mark.parametrize("where", sorted(scripts()))
def test_commands_of_ray_and_mlflow_exist_with_their_options(where: str) -> None:
    import mlflow.cli
    from ray.scripts.scripts import cli

    script = scripts()[where]
    programs = {"ray": cli, "mlflow": mlflow.cli.cli}
    wrong = {
        " ".join([name, *words]): found
        for name, program in programs.items()
        for words in calls(name, script)
        if (found := misused(program, words))
    }
    assert not wrong


def test_the_options_that_slurm_gives_to_ray_start_exist() -> None:
    from ray.scripts.scripts import cli

    given = re.findall(r"^ +?ray_on .*? -- (.*)$|^ray_on .*? -- (.*)$", SLURM.read_text(), re.M)
    assert len(given) == 2
    for words in given:
        assert not misused(cli, ["start", *"".join(words).split()])


@pytest.mark.parametrize("where", sorted(scripts()))
def test_modules_verbs_and_extras_exist(where: str) -> None:
    script = scripts()[where]
    for words in [*calls("python", script), *calls("python3", script)]:
        if words[:1] == ["-m"]:
            assert importlib.util.find_spec(words[1]), words
    if where == "docs/cluster.md":
        assert {words[0] for words in calls("study", script) if words} <= set(VERBS)
    for names in re.findall(r"'\.\[([\w,-]+)\]'", script):
        assert set(names.split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("where", sorted(scripts()))
def test_files_of_this_repository_exist(where: str) -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    named = set(re.findall(rf"(?<![\w/~.-])(?:{folders})/[\w./-]*\w", scripts()[where]))
    assert not {path for path in named if not (ROOT / path).exists() and "*" not in path}


READ_BY_OTHERS = {
    "PATH": "the shell",
    "PGPASSWORD": "libpq",
    "PGDATA": "the image of PostgreSQL",
    "POSTGRES_USER": "the image of PostgreSQL",
    "POSTGRES_DB": "the image of PostgreSQL",
    "POSTGRES_PASSWORD": "the image of PostgreSQL",
    "REDIS_PASSWORD": "the arguments of Redis",
}


def test_environment_variables_are_read_by_somebody() -> None:
    mlflow = Path(importlib.util.find_spec("mlflow").origin).parent  # type: ignore[union-attr,arg-type]
    read_in = [
        *(path for folder in ("study", "trainables", "cluster") for path in (ROOT / folder).rglob("*.py")),
        *(Path(ray.__file__).parent / "_private").rglob("*.py"),
        *(mlflow / "cli").glob("*.py"),
        mlflow / "environment_variables.py",
    ]
    text = "\n".join(path.read_text() for path in read_in)
    for where, names in variables().items():
        assert names, where
        assert not {name for name in names - set(READ_BY_OTHERS) if not re.search(rf"\b{name}\b", text)}, where


def test_versions_are_those_that_are_pinned() -> None:
    assert ray_cluster()["spec"]["rayVersion"] == PINNED["ray"] == ray.__version__
    named = [path.read_text() for path in (FOLDER / "kuberay").glob("*.yaml")] + [
        DOCKERFILE.read_text(),
        PAGE.read_text(),
    ]
    tags = [tag for text in named for tag in re.findall(r"asr-scaling-studies(?::|\s+newTag: )([\w.]+)", text)]
    settings = yaml.safe_load((FOLDER / "kuberay" / "kustomization.yaml").read_text())
    assert {*tags, settings["images"][0]["newTag"]} == {PROJECT["version"]}


def test_the_page_tells_of_every_file_and_what_was_not_run() -> None:
    page = PAGE.read_text()
    for path in (*FOLDER.glob("*.yaml"), SLURM, DOCKERFILE):
        assert f"cluster/{path.name}" in page
    assert re.search(r"^\| file \| run here \| only validated \|", page, re.M)
