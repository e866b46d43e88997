"""Rendered manifests: built by kustomize, accepted by the schemas of Kubernetes and KubeRay, and by the policies that a
platform team has."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflowkit.delivery.manifests.image_digests import NOT_BUILT, image_digests, not_built, with_digests
from mlflowkit.delivery.targets import target
from mlflowkit.errors import UsageError
from mlflowkit.serving.http.routes import FIXED_ROUTES
from tests.support.cluster_manifests import (
    DESIRED,
    FACTS,
    built,
    cluster_plan,
    kustomize,
    resource_faults,
    resource_schema,
    schema_faults,
    write,
)

pytestmark = pytest.mark.delivery
TARGET = target("kubernetes")
SECTIONS: dict[str, dict[str, Any]] = {
    "deployment": {"environments": {"staging": {"replicas": 1}, "prod": {"after": "staging"}}},
    "rayservice": {
        "kubernetes": {"workload": "rayservice", "clients": {"team": "fraud"}, "storage_class": "nfs"},
        "runner": {"gpus": 1},
    },
    "scraped": {
        "secrets": {"DB_URL": {"kubernetes": {"name": "lending", "key": "url"}}},
        "registry": {"image": "r.acme.io:5000/lending", "credentials": {"kubernetes": {"name": "pull", "key": "a"}}},
        "kubernetes": {"state": "volume", "service_monitor": True},
    },
}


@pytest.fixture(scope="module", params=sorted(SECTIONS))
def overlays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The objects of each environment of a section."""
    plan = cluster_plan(**SECTIONS[request.param])
    folder = write(tmp_path_factory.mktemp("cluster"), TARGET.render(plan))
    return {environment.name: built(folder / environment.path) for environment in plan.environments}


def _pods(objects: list[Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Kind, labels and spec of each pod template."""

    def walk(kind: str, value: Any) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        if isinstance(value, dict):
            if "template" in value and "containers" in value["template"].get("spec", {}):
                yield kind, value["template"]["metadata"]["labels"], value["template"]["spec"]
            for item in value.values():
                yield from walk(kind, item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(kind, item)

    for item in objects:
        yield from walk(item["kind"], item)


def _of(objects: list[Any], kind: str) -> list[Any]:
    return [item for item in objects if item["kind"] == kind]


def test_schemas_accept_all_objects(overlays: dict[str, list[Any]], tmp_path: Path) -> None:
    for objects in overlays.values():
        assert schema_faults(objects, tmp_path / "objects.yaml") == ""


@pytest.mark.parametrize("mutant", ["misspelt", "string"])
def test_schemas_refuse_mutants(overlays: dict[str, list[Any]], mutant: str, tmp_path: Path) -> None:
    objects = deepcopy(next(iter(overlays.values())))
    service = next(item for item in objects if item["kind"] == "PersistentVolumeClaim")
    if mutant == "misspelt":
        service["spec"]["acessModes"] = service["spec"].pop("accessModes")
    else:
        _of(objects, "Service")[0]["spec"]["ports"][0]["port"] = "80"
    assert schema_faults(objects, tmp_path / "objects.yaml")


@pytest.mark.parametrize("kind", ["RayService", "RayJob"])
def test_kuberay_accepts_its_resources(kind: str, tmp_path: Path) -> None:
    schema = resource_schema(kind)
    if schema is None:
        pytest.skip("the schemas of KubeRay are not at hand: ../shared/schemas")
    plan = cluster_plan(**SECTIONS["rayservice"])
    folder = write(tmp_path, TARGET.render(plan))
    path = "deploy/train" if kind == "RayJob" else "deploy/overlays/prod"
    (value,) = _of(built(folder / path), kind)
    assert resource_faults(value, schema) == []
    head = value["spec"]["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]["headGroupSpec"]
    head["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    assert resource_faults(value, schema)
    del head["template"]["spec"]["containers"][0]["imagePulPolicy"]
    head["template"]["spec"]["containers"][0]["securityContext"]["runAsUser"] = "65532"
    assert resource_faults(value, schema)


def test_pods_keep_pod_security_restricted(overlays: dict[str, list[Any]]) -> None:
    for objects in overlays.values():
        pods = list(_pods(objects))
        assert pods
        (namespace,) = _of(objects, "Namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        for _, _, pod in pods:
            assert pod["automountServiceAccountToken"] is False
            security = pod["securityContext"]
            assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 65532)
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            for container in pod["containers"]:
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False
                assert own["readOnlyRootFilesystem"] is True
                assert own["capabilities"] == {"drop": ["ALL"]}
                resources = container["resources"]
                assert resources["requests"]["memory"] == resources["limits"]["memory"]
                assert "cpu" in resources["requests"]
                assert "cpu" not in resources["limits"]
                mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
                assert {"/tmp", "/dev/shm", "/state"} <= mounted
                variables = {item["name"]: item for item in container["env"]}
                assert variables["RAY_AUTH_MODE"]["value"] == "token"
                assert variables["MLKIT_STATE"]["value"] == "/state"


def test_images_are_named_by_digest_only(overlays: dict[str, list[Any]]) -> None:
    for objects in overlays.values():
        for _, _, pod in _pods(objects):
            for container in pod["containers"]:
                name, _, digest = container["image"].partition("@")
                assert digest.startswith("sha256:")
                assert len(digest) == 71
                assert ":" not in name.rpartition("/")[2]


def test_probes_ask_what_the_gateway_answers_without_a_key(overlays: dict[str, list[Any]]) -> None:
    answered = {f"/{'/'.join(parts)}" for parts in FIXED_ROUTES}
    for objects in overlays.values():
        for _, labels, pod in _pods(objects):
            if labels["app.kubernetes.io/component"] != "gateway":
                continue
            (container,) = pod["containers"]
            ports = {port["name"] for port in container["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[kind]["httpGet"]["path"] in answered
                assert container[kind]["httpGet"]["port"] in ports
            assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
            sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["terminationGracePeriodSeconds"] >= sleep + FACTS.timeout_seconds + 10 + 20


def test_budgets_let_a_node_be_drained(overlays: dict[str, list[Any]]) -> None:
    for objects in overlays.values():
        for workload in _of(objects, "Deployment"):
            budgets = _of(objects, "PodDisruptionBudget")
            assert len(budgets) == (workload["spec"]["replicas"] >= 2)
            alone = {"type": "Recreate"}  # a state folder has one owner
            rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
            claims = [
                volume
                for volume in workload["spec"]["template"]["spec"]["volumes"]
                if "persistentVolumeClaim" in volume
            ]
            assert workload["spec"]["strategy"] == (alone if claims else rolling)
            assert workload["spec"]["replicas"] == 1 or not claims
            for budget in budgets:
                selected = budget["spec"]["selector"]["matchLabels"].items()
                assert selected <= workload["spec"]["template"]["metadata"]["labels"].items()


def test_pods_that_decide_nothing_may_be_several_and_update_one_after_the_other(tmp_path: Path) -> None:
    """A service without rollouts and without a state volume."""
    plan = cluster_plan(kubernetes={"state": "memory"}, facts=replace(FACTS, strategy="direct", replicas=2))
    assert [item.key for item in TARGET.unsupported(plan)] == []
    folder = write(tmp_path, TARGET.render(plan))
    (workload,) = _of(built(folder / plan.environments[0].path), "Deployment")
    assert workload["spec"]["replicas"] == 2
    assert workload["spec"]["strategy"]["type"] == "RollingUpdate"
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert [container["command"], container["args"][-2:]] == [["mlkit"], ["--replicas", "2"]]


def test_nothing_is_reachable_but_the_service(overlays: dict[str, list[Any]]) -> None:
    for objects in overlays.values():
        policies = _of(objects, "NetworkPolicy")
        (denied,) = [item["spec"] for item in policies if item["spec"]["podSelector"] == {}]
        assert sorted(denied["policyTypes"]) == ["Egress", "Ingress"]
        assert "ingress" not in denied
        assert "egress" not in denied
        pods = [labels for _, labels, _ in _pods(objects)]
        for policy in policies:
            selector = policy["spec"]["podSelector"].get("matchLabels", {})
            assert any(selector.items() <= labels.items() for labels in pods), policy["metadata"]["name"]
            for rule in policy["spec"].get("ingress", []):
                for port in rule.get("ports", []):
                    operator = [{"app.kubernetes.io/name": "kuberay-operator"}]
                    sources = [source.get("podSelector", {}).get("matchLabels") for source in rule["from"]]
                    assert port["port"] in (8080, 8081) or (port["port"] == 8265 and sources == operator)
                if "ports" not in rule:  # Ray's processes among themselves
                    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "lending"}}}]
        if not _of(objects, "RayService"):
            assert "8265" not in str(objects)


def test_a_scraper_and_a_registry_with_a_port_are_let_through(tmp_path: Path) -> None:
    plan = cluster_plan(**SECTIONS["scraped"])
    objects = built(write(tmp_path, TARGET.render(plan)) / "deploy/overlays/prod")
    (monitor,) = _of(objects, "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["authorization"]["credentials"]["key"] == "api-key"
    text = str([item["spec"] for item in _of(objects, "NetworkPolicy")])
    assert "prometheus" in text
    assert "5000" in text


@pytest.mark.parametrize("kind", ["deployment", "rayservice"])
def test_another_model_changes_no_pod(kind: str, tmp_path: Path) -> None:
    plan = cluster_plan(**SECTIONS[kind])
    overlay = write(tmp_path, TARGET.render(plan)) / "deploy/overlays/prod"
    before = built(overlay)
    (overlay / "delivery.yaml").write_text(DESIRED.replace("identity: a", "identity: another"))
    after = built(overlay)
    changed = [new["kind"] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["ConfigMap"]
    assert [item["metadata"]["name"] for item in _of(after, "ConfigMap")] == ["lending-delivery"]


def test_nothing_can_be_deployed_before_the_first_promotion(tmp_path: Path) -> None:
    files = TARGET.render(cluster_plan())
    process = kustomize(write(tmp_path, files, promoted=False) / "deploy/overlays/prod")
    assert process.returncode != 0
    assert "delivery.yaml" in process.stderr
    text = files["deploy/overlays/prod/images/kustomization.yaml"]
    assert not_built(text) == ("ghcr.io/acme/lending",)


def test_a_digest_is_one_line_and_comments_stay() -> None:
    text = TARGET.render(cluster_plan())["deploy/overlays/prod/images/kustomization.yaml"] + "# mine\n"
    digest = f"sha256:{'a' * 64}"
    edited = with_digests(text, {"ghcr.io/acme/lending": digest})
    assert [new for old, new in zip(text.splitlines(), edited.splitlines(), strict=True) if old != new] == [
        f"    digest: {digest}"
    ]
    assert not_built(edited) == ()
    for wrong in ("latest", NOT_BUILT, "sha256:abc"):
        with pytest.raises(UsageError):
            with_digests(text, {"ghcr.io/acme/lending": wrong})
    for mutant in (
        text.replace("digest:", "newTag:"),
        text.replace("    digest", "    newTag: v1\n    digest"),
        "a: [",
        "",
    ):
        with pytest.raises(UsageError):
            image_digests(mutant)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"environments": {}}, ("environments",)),
        ({"environments": {"a": {"path": "x/p"}, "b": {"path": "x/p"}}}, ("environments", "b", "path")),
        ({"environments": {"a": {"path": "x/base"}, "b": {"path": "x/y/z"}}}, ("environments", "a", "path")),
        (
            {"environments": {"a": {"namespace": "n"}, "b": {"namespace": "n"}}},
            ("environments", "b", "namespace"),
        ),
        ({"environments": {"prod": {"replicas": 2}}}, ("environments", "prod", "replicas")),
        (
            {"environments": {"prod": {"replicas": 2}}, "kubernetes": {"state": "memory"}},
            ("environments", "prod", "replicas"),
        ),
        ({"kubernetes": {"state": "memory", "workload": "rayservice"}}, ("environments", "prod", "replicas")),
        (
            {"environments": {"prod": {"replicas": 33}}, "kubernetes": {"workload": "rayservice"}},
            ("environments", "prod", "replicas"),
        ),
        ({"kubernetes": {"clients": {"team": "a b"}}}, ("kubernetes", "clients", "team")),
        ({"targets": ["kubernetes"], "triggers": [{"on": "merge"}]}, ("triggers", 0, "on")),
        (
            {"targets": ["kubernetes"], "triggers": [{"on": "schedule", "cron": "17 4 * * 1"}]},
            ("triggers", 0, "on"),
        ),
        ({"targets": ["kubernetes"], "triggers": [{"on": "data"}]}, ("triggers", 0, "on")),
    ],
)
def test_what_a_cluster_cannot_do_is_a_fault_at_its_key(section: dict[str, Any], key: tuple[Any, ...]) -> None:
    assert key in [item.key for item in TARGET.unsupported(cluster_plan(**section))]


def test_what_leaves_the_recipe_leaves_the_files() -> None:
    one = TARGET.render(cluster_plan(kubernetes={"workload": "rayservice"}))
    assert "deploy/overlays/prod/training.yaml" in one
    none = TARGET.render(cluster_plan())
    assert "deploy/overlays/prod/training.yaml" not in none
    assert "training.yaml" not in none["deploy/overlays/prod/kustomization.yaml"]
    both = TARGET.render(cluster_plan(environments={"staging": {}, "prod": {}}))
    assert {path for path in both if "staging" in path} == {
        path.replace("prod", "staging") for path in none if "prod" in path
    }


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
ENVIRONMENTS = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {},
        optional={
            "replicas": st.integers(1, 100),
            "path": st.sampled_from(["a/overlays/b", "prod", "a/base", "x/y", "x/y/images", "env-1"]),
            "namespace": NAMES,
            "cluster": st.sampled_from(["https://kubernetes.default.svc", "k8s"]),
        },
    ),
    max_size=3,
)
SECTION = st.fixed_dictionaries(
    {"environments": ENVIRONMENTS, "targets": st.sampled_from([["kubernetes"], ["github", "kubernetes"]])},
    optional={
        "kubernetes": st.fixed_dictionaries(
            {},
            optional={
                "workload": st.sampled_from(["deployment", "rayservice"]),
                "state": st.sampled_from(["volume", "memory"]),
                "storage": st.sampled_from(["1Gi", "500Mi", "3Ti"]),
                "clients": st.dictionaries(NAMES, st.text("abc. -_1", max_size=6), max_size=2),
                "service_monitor": st.booleans(),
            },
        ),
        "runner": st.fixed_dictionaries({"cpus": st.floats(0.1, 512), "gpus": st.integers(0, 64)}),
        "triggers": st.lists(
            st.sampled_from([{"on": "data"}, {"on": "merge"}, {"on": "schedule", "cron": "@ x * L 2#1"}]), max_size=3
        ),
        "secrets": st.dictionaries(
            st.sampled_from(["A", "DB_URL"]),
            st.sampled_from([{"env": "X"}, {"kubernetes": {"name": "a", "key": "b.c"}}, {"vault": "a/b#c"}]),
            max_size=2,
        ),
    },
)


def _faults(section: dict[str, Any]) -> list[Any]:
    """What cannot be expressed, whether or not this version has an application for KubeRay."""
    return [item for item in TARGET.unsupported(cluster_plan(**section)) if item.key != ("kubernetes", "workload")]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(SECTION.filter(lambda section: not _faults(section)))
def test_what_validates_renders_to_what_validates(
    tmp_path_factory: pytest.TempPathFactory, section: dict[str, Any]
) -> None:
    plan = cluster_plan(**section)
    folder = write(tmp_path_factory.mktemp("any"), TARGET.render(plan))
    objects = [item for environment in plan.environments for item in built(folder / environment.path)]
    assert schema_faults(objects, folder / "objects.yaml") == ""
    schema = resource_schema("RayService")
    for value in _of(objects, "RayService"):
        assert schema is None or resource_faults(value, schema) == []
