"""Dockerfile, compose file and manifests agree with the code and with their schemas (read only; no image is built)."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import kubernetes_validate
import pytest
import typer
import yaml
from fastapi.routing import APIRoute
from jsonschema.validators import validator_for
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic_settings import BaseSettings
from qdrant_contract import Contract, operations
from sbom import bill_of_materials, needed
from starlette.routing import Route

from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.server.cli.main import app as cli
from refdiff.server.settings import ChatSettings, ServerSettings
from refdiff.server.web.app import ROUTERS
from refdiff.server.web.probes import create_probes
from refdiff.server.web.routes.health import readyz
from refdiff.server.web.serve import _STOP_S as HTTP_STOP_S

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = ROOT / "deploy" / "kubernetes"
MANIFESTS: list[dict[str, Any]] = [
    document
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
DRAIN_MARGIN_S = 15  # between the end of an inspection, or of the last request, and that of the process
OF_THE_BUCKET = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}  # boto3's own
_SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
OF_TRACES = set(re.findall(r"`(OTEL_\w+)`", _SETTINGS_PAGE))  # OpenTelemetry's own
SETTINGS: tuple[type[BaseSettings], ...] = (AgentSettings, ChatSettings, MemorySettings, ModelSettings, ServerSettings)


def _known_variables() -> set[str]:
    found = set()
    for settings in SETTINGS:
        for name, field in settings.model_fields.items():
            alias = field.validation_alias
            found.add(str(alias).upper() if isinstance(alias, str) else f"REFDIFF_{name.upper()}")
    return found | {"QDRANT_URL", "QDRANT_API_KEY"} | OF_TRACES | OF_THE_BUCKET


def _stage(name: str) -> str:
    return DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]


def test_dockerfile_copies_only_existing_files_that_are_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert Path(source).parts[0] in allowed, source


def test_both_images_contain_every_room() -> None:
    for stage in ("app", "vllm"):
        assert {"agent", "memory", "model", "server", "tools"} <= set(
            re.findall(r"^COPY (\w+) ", _stage(stage), re.MULTILINE)
        )


def test_compose_uses_only_settings_that_exist() -> None:
    ours = (COMPOSE["services"][name]["environment"] for name in ("server", "worker"))
    named = {variable for environment in ours for variable in environment} | set(
        re.findall(r"\b(REFDIFF_\w+)=", _stage("app"))
    )
    assert named <= _known_variables(), named - _known_variables()


@pytest.mark.parametrize("name", ["server", "worker"])
def test_every_setting_reaches_the_containers_of_compose(name: str) -> None:
    """From a file; but what `environment` names is taken from there, also where it is unset: then from nowhere else."""
    service = COMPOSE["services"][name]
    assert service["env_file"] == [{"path": "refdiff.env", "required": False}]
    assert "/refdiff.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines(), "it may hold secrets"
    given = service["environment"]
    fixed = {v for v, value in given.items() if value is not None and not str(value).startswith(f"${{{v}:")}
    assert fixed == {"REFDIFF_DATABASE_URL", "QDRANT_URL"}, "compose.yaml's own"
    of_its_servers = (
        OF_TRACES | OF_THE_BUCKET | set(re.findall(r"^\| `(REFDIFF_QDRANT_\w+)`", _SETTINGS_PAGE, re.MULTILINE))
    )
    assert len(OF_TRACES) >= 4
    assert of_its_servers <= given.keys()


def test_compose_services_call_the_ports_they_listen_on() -> None:
    server = COMPOSE["services"]["server"]
    assert "REFDIFF_LLM_BASE_URL=http://vllm:8001/v1" in (ROOT / "compose.yaml").read_text(encoding="utf-8")
    command = json.loads(re.findall(r"^ENTRYPOINT (.+)$", _stage("vllm"), re.MULTILINE)[0])
    assert command[command.index("--port") + 1] == "8001"
    assert server["ports"] == ["127.0.0.1:8000:8000"], "nothing is published beyond this machine"
    assert [s for s, about in COMPOSE["services"].items() if "ports" in about] == ["server"]


def test_compose_secrets_have_no_default_and_images_do_not_run_as_root() -> None:
    for about in COMPOSE["services"].values():
        for name, value in about["environment"].items():
            if name in OF_THE_BUCKET:  # passed on where they are set: boto3 takes an empty one for a value
                assert value is None, name
            elif re.search("KEY|PASSWORD|DATABASE_URL", name):
                wanted = r"\$\{\w+:-\}" if "LLM_API_KEY" in value else r"\$\{\w+:\?.+\}"  # vLLM need not run
                assert re.search(wanted, value), name
    for stage in ("app", "vllm"):
        assert "USER refdiff" in _stage(stage)


def test_images_are_pinned_by_digest() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    images = [i for i in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) if i not in stages]
    images += [s["image"] for s in COMPOSE["services"].values() if "image" in s and "build" not in s]
    images += [_container(name)["image"] for name in PODS if name not in (*OURS, "vllm")]
    assert len(images) == 5
    for image in images:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_dockerfile_and_makefile_uninstall_the_same_packages_from_vllm() -> None:
    removed = re.findall(r"pip uninstall .*?-y ([a-z ]+)", DOCKERFILE + (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(removed) == 2
    assert len({r.strip() for r in removed}) == 1


def test_compose_documents_making_the_first_key_before_the_server_runs() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert "docker compose run --rm --build server keys add" in text  # `exec` needs a server, which needs a key
    assert 'ENTRYPOINT ["refdiff"]' in (ROOT / "Dockerfile").read_text(encoding="utf-8")


# ---- compose.yaml ----


def test_compose_file_fits_the_specification() -> None:
    schema = json.loads(files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json").read_text())
    assert [e.message for e in validator_for(schema)(schema).iter_errors(COMPOSE)] == []
    wrong = COMPOSE | {"services": COMPOSE["services"] | {"worker": {"stop_grace": "1m"}}}
    assert not validator_for(schema)(schema).is_valid(wrong)


def test_compose_volumes_and_services_that_are_named_exist() -> None:
    named = {v.partition(":")[0] for s in COMPOSE["services"].values() for v in s.get("volumes", ())}
    assert named == set(COMPOSE["volumes"])
    assert {d for s in COMPOSE["services"].values() for d in s.get("depends_on", ())} <= set(COMPOSE["services"])


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of a command line, as `refdiff` reads it. Raises click's errors where it does not."""
    command: Any = typer.main.get_command(cli)
    with command.make_context("refdiff", list(arguments), resilient_parsing=True) as context:
        name, chosen, rest = command.resolve_command(context, list(arguments))
        return dict(chosen.make_context(name, rest, parent=context).params)


def test_command_lines_are_those_of_refdiff() -> None:
    server, worker = (COMPOSE["services"][name]["command"] for name in ("server", "worker"))
    assert _parsed(server)["no_inspections"] is True
    assert _parsed(json.loads(re.findall(r"^CMD (.+)$", _stage("app"), re.MULTILINE)[0]))["port"] == 8000
    assert server == _container("refdiff-server")["args"]
    assert worker == _container("refdiff-worker")["args"]
    with pytest.raises(Exception, match="No such option"):
        _parsed([*worker, "--slowly"])


def test_containers_are_left_time_to_drain() -> None:
    drain_s = _parsed(COMPOSE["services"]["worker"]["command"])["drain_s"]
    assert COMPOSE["services"]["worker"]["stop_grace_period"] == "2m"
    assert drain_s + DRAIN_MARGIN_S <= 120
    assert drain_s + DRAIN_MARGIN_S <= _pod("refdiff-worker")["terminationGracePeriodSeconds"]
    asleep = _container("refdiff-server")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert asleep + HTTP_STOP_S + DRAIN_MARGIN_S <= _pod("refdiff-server")["terminationGracePeriodSeconds"]


# ---- deploy/kubernetes ----


def _pod(name: str) -> dict[str, Any]:
    (found,) = (d for d in MANIFESTS if d["kind"] in WORKLOADS and d["metadata"]["name"] == name)
    return dict(found["spec"]["template"]["spec"])


def _container(name: str) -> dict[str, Any]:
    return dict(_pod(name)["containers"][0])


WORKLOADS = ("Deployment", "StatefulSet")
PODS = [d["metadata"]["name"] for d in MANIFESTS if d["kind"] in WORKLOADS]
OURS = ("refdiff-server", "refdiff-worker")


def test_manifests_are_what_kubernetes_accepts() -> None:
    standard = [d for d in MANIFESTS if d["apiVersion"] != "keda.sh/v1alpha1"]
    assert len(standard) == len(MANIFESTS) - 1
    for document in standard:
        kubernetes_validate.validate(document, "1.32", strict=True)  # ResourceName.spec: unknown fields fail too
    broken = json.loads(json.dumps(standard[-1]).replace('"spec"', '"specs"'))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.32", strict=True)


def test_kustomization_takes_every_file_but_the_optional_ones() -> None:
    (kustomization,) = yaml.safe_load_all((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
    there = {p.name for p in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert there - set(kustomization["resources"]) == {"scaling.yaml", "vllm.yaml"}
    assert kustomization["images"][0]["name"] == _container("refdiff-server")["image"]
    assert {d["metadata"].get("namespace", "refdiff") for d in MANIFESTS} == {kustomization["namespace"]}


def test_manifests_use_only_settings_that_exist() -> None:
    (settings,) = (d["data"] for d in MANIFESTS if d["kind"] == "ConfigMap")
    optional = re.findall(r"^  # ([A-Z_]+): ", (KUBERNETES / "settings.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"REFDIFF_LLM_BASE_URL", "REFDIFF_OBJECTS_URL"} <= set(optional) <= _known_variables()
    for name in OURS:
        container = _container(name)
        assert container["envFrom"] == [{"configMapRef": {"name": "refdiff-settings"}}]
        assert {e["name"] for e in container["env"]} | set(settings) <= _known_variables()


def test_probes_ask_for_routes_that_answer() -> None:
    routes = {
        "refdiff-server": {r.path for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)},
        "refdiff-worker": {r.path for r in create_probes(cast(Any, None)).routes if isinstance(r, Route)},
    }
    for name in OURS:
        container = _container(name)
        (port,) = container["ports"]
        assert _parsed(container["args"])["port"] == port["containerPort"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = urlsplit(container[probe]["httpGet"]["path"])
            assert container[probe]["httpGet"]["port"] == port["name"]
            assert asked.path in routes[name]
            assert asked.path == ("/readyz" if probe == "readinessProbe" else "/healthz")
            assert set(parse_qs(asked.query)) <= set(inspect.signature(readyz).parameters)
    check = " ".join(COMPOSE["services"]["worker"]["healthcheck"]["test"])
    assert f":{_container('refdiff-worker')['ports'][0]['containerPort']}/healthz" in check


def test_probes_of_qdrant_are_operations_of_its_api() -> None:
    container = _container("qdrant")
    for probe, operation in (("livenessProbe", "livez"), ("readinessProbe", "readyz")):
        assert container[probe]["httpGet"] == {
            "path": operations()[operation].path,
            "port": container["ports"][0]["name"],
        }
    with Contract() as server:
        for operation in ("livez", "readyz"):
            with urlopen(server.url + operations()[operation].path, timeout=5) as answer:
                assert answer.status == 200
        assert server.problems == []


def test_services_select_pods_and_ports_that_exist() -> None:
    templates = [d["spec"]["template"] for d in MANIFESTS if d["kind"] in WORKLOADS]
    services = [d for d in MANIFESTS if d["kind"] == "Service"]
    assert len(services) == len(PODS)
    for service in services:
        (template,) = (t for t in templates if service["spec"]["selector"].items() <= t["metadata"]["labels"].items())
        named = {p["name"] for c in template["spec"]["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= named


@pytest.mark.parametrize("name", PODS, ids=[f"of {name}" for name in PODS])
def test_pods_run_without_rights_and_on_a_file_system_that_is_read_only(name: str) -> None:
    pod = _pod(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    volumes = {v["name"] for v in pod["volumes"]}
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        allowed = container["securityContext"]
        assert allowed["readOnlyRootFilesystem"] is True
        assert allowed["allowPrivilegeEscalation"] is False
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert mounted.keys() - volumes <= {"records", "goldens"}, "claims of stateful sets"
    if name in OURS:
        (settings,) = (d["data"] for d in MANIFESTS if d["kind"] == "ConfigMap")
        assert {settings["REFDIFF_HOME"], settings["REFDIFF_CACHE"], "/tmp"} == set(mounted.values())
        uid = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
        assert [str(pod["securityContext"]["runAsUser"])] == uid


def test_secrets_of_the_manifests_come_from_the_secret_that_the_guide_makes() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    made = set(re.findall(r"--from-literal=(\w+)=", guide))
    used = set()
    for name in PODS:
        for variable in _container(name)["env"]:
            if re.search("KEY|PASSWORD|DATABASE_URL|TOKEN|SECRET", variable["name"]):
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "refdiff"
                used.add(reference["key"])
    assert used == made


def test_postgres_has_a_connection_for_every_process() -> None:
    """20 for each: docs/operations.md."""
    (scaled,) = (d for d in MANIFESTS if d["kind"] == "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] in PODS
    (server,) = (d for d in MANIFESTS if d["kind"] == "Deployment" and d["metadata"]["name"] == "refdiff-server")
    processes = scaled["spec"]["maxReplicaCount"] + server["spec"]["replicas"] + 2  # two more while both roll
    for arguments in (_container("postgres")["args"], COMPOSE["services"]["postgres"]["command"]):
        (allowed,) = (int(a.partition("=")[2]) for a in arguments if a.startswith("max_connections="))
        assert processes * 20 <= allowed - 3  # kept for administrators


# ---- constraints: see constraints/README.md ----

UNHASHED = re.compile(r"torch|triton|cuda-.*|nvidia-.*")


def _pins(name: str) -> dict[str, tuple[str, int]]:
    """Package -> version and number of hashes."""
    found, package = {}, ""
    for line in (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            package = canonicalize_name(match[1])
            found[package] = (match[2], 0)
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            found[package] = (found[package][0], found[package][1] + 1)
    return found


@pytest.mark.parametrize("name", ["develop", "app"])
def test_hashed_pins_agree_with_the_versions(name: str) -> None:
    versions, hashed = _pins("cpu"), _pins(name)
    assert len(hashed) > 100
    assert {n: v for n, (v, _) in hashed.items()} == {n: versions[n][0] for n in hashed}, "run: make pins"
    assert [n for n, (_, hashes) in hashed.items() if not hashes] == []


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        (
            "develop",
            [
                "cloud",
                "demo",
                "ed25519",
                "mcp",
                "oidc",
                "onnx",
                "openvino",
                "postgres",
                "s3",
                "slack",
                "teams",
                "telemetry",
                "thermal",
                "train",
                "dev",
            ],
        ),
        (
            "app",
            ["cloud", "mcp", "oidc", "openvino", "postgres", "s3", "slack", "teams", "telemetry", "thermal", "train"],
        ),
    ],
)
def test_everything_that_is_installed_is_pinned_with_hashes(name: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e]), "setuptools"]
    missing = {n for n in needed(asked) if not UNHASHED.fullmatch(n)} - set(_pins(name))
    assert missing == set(), "add them to constraints/cpu.txt, and run: make pins"


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    pins = _pins("cpu")
    for requirement in map(Requirement, asked):
        if requirement.name != "refdiff":
            version, _ = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_makefile_and_dockerfile_install_by_hash_before_anything_else() -> None:
    for text, name in ((DOCKERFILE, "app"), ((ROOT / "Makefile").read_text(encoding="utf-8"), "develop")):
        hashed = text.index(f"--no-deps --require-hashes -r constraints/{name}.txt")
        assert hashed < text.index("-c constraints/cpu.txt torch") < text.index("--no-deps --no-build-isolation")


def test_bill_of_materials_lists_what_is_shipped_and_no_development_tools() -> None:
    document = bill_of_materials()
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "refdiff")
    listed = {canonicalize_name(c["name"]): c for c in document["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {canonicalize_name(Requirement(r).name) for r in project["dependencies"]}
    assert base <= listed.keys()
    assert all(c["version"] and c["purl"].startswith("pkg:pypi/") for c in listed.values())
    assert listed.keys() & {"pytest", "mypy", "hypothesis", "cyclonedx-bom"} == set()
    refs = {c["bom-ref"] for c in listed.values()} | {"root-component"}
    assert {ref for d in document["dependencies"] for ref in (d["ref"], *d["dependsOn"])} <= refs
