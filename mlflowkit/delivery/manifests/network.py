"""Who may speak with whom: the Service, the NetworkPolicies, the ServiceMonitor."""

from __future__ import annotations

from typing import Any

from mlflowkit.delivery.delivery_plan import DeliveryPlan
from mlflowkit.delivery.manifests.cluster_names import labels, selector_labels, service_name
from mlflowkit.delivery.yaml_text import Commented

OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}


def service(plan: DeliveryPlan) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    if plan.recipe.grpc_port:
        ports.append({"name": "grpc", "port": plan.recipe.grpc_port, "targetPort": "grpc"})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service_name(plan), "labels": labels(plan, "gateway")},
        "spec": {"type": "ClusterIP", "selector": selector_labels(plan, "gateway"), "ports": ports},
    }


def network_policies(plan: DeliveryPlan) -> list[dict[str, Any]]:
    """Nothing by default; then what the service needs. Ray's own ports (6379, 8265, 10001) are open to no client: who
    reaches them runs code (CVE-2023-48022)."""
    name, ray = service_name(plan), plan.section.kubernetes.workload == "rayservice"
    policies = [
        _policy(plan, "default-deny", {}, {"policyTypes": ["Ingress", "Egress"]}),
        _policy(plan, f"{name}-clients", selector_labels(plan, "gateway"), {"ingress": _clients(plan)}),
        _policy(plan, f"{name}-outside", _all(plan), {"egress": _outside(plan)}),
    ]
    if ray:
        policies += [
            _policy(plan, f"{name}-ray", _all(plan), _within(plan)),
            _policy(plan, f"{name}-operator", selector_labels(plan, "head"), {"ingress": [_operator()]}),
        ]
    return policies


def _all(plan: DeliveryPlan) -> dict[str, str]:
    return {"app.kubernetes.io/name": service_name(plan)}


def _policy(plan: DeliveryPlan, name: str, selector: dict[str, str], rules: dict[str, Any]) -> dict[str, Any]:
    types = [kind for kind in ("Ingress", "Egress") if kind.lower() in rules]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels(plan, "network")},
        "spec": {"podSelector": {"matchLabels": selector} if selector else {}, "policyTypes": types, **rules},
    }


def _clients(plan: DeliveryPlan) -> list[dict[str, Any]]:
    """Those who may call: pods of the same namespace, and of the namespaces that the recipe names."""
    options = plan.section.kubernetes
    sources: list[dict[str, Any]] = [{"podSelector": {}}]
    if options.clients:
        sources.append({"namespaceSelector": {"matchLabels": dict(options.clients)}})
    ports = [{"protocol": "TCP", "port": plan.recipe.port}]
    if plan.recipe.grpc_port:
        ports.append({"protocol": "TCP", "port": plan.recipe.grpc_port})
    rules = [{"from": sources, "ports": ports}]
    if options.service_monitor:
        scraper = {"namespaceSelector": {}, "podSelector": {"matchLabels": PROMETHEUS}}
        rules.append({"from": [scraper], "ports": ports[:1]})
    return rules


def _outside(plan: DeliveryPlan) -> list[dict[str, Any]]:
    """Names, and servers by TLS (registry, tracking, webhooks): a NetworkPolicy cannot name a host."""
    dns = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    ports = list(dict.fromkeys((443, _registry_port(plan))))
    return [
        {"to": [dns], "ports": [{"protocol": kind, "port": 53} for kind in ("UDP", "TCP")]},
        {"ports": [{"protocol": "TCP", "port": port} for port in ports]},
    ]


def _registry_port(plan: DeliveryPlan) -> int:
    _, _, port = plan.registry.partition("/")[0].partition(":")
    return int(port) if port else 443


def _within(plan: DeliveryPlan) -> dict[str, Any]:
    """Ray's processes take any port of one another."""
    own = [{"podSelector": {"matchLabels": _all(plan)}}]
    return {"ingress": [{"from": own}], "egress": [{"to": own}]}


def _operator() -> dict[str, Any]:
    source = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR}}
    port = Commented(8265, "KubeRay deploys the application through the dashboard; nobody else reaches it")
    return {"from": [source], "ports": [{"protocol": "TCP", "port": port}]}


def service_monitor(plan: DeliveryPlan) -> dict[str, Any]:
    """A scrape with a key of the scope metrics, from the Secret SERVICE-metrics."""
    name = service_name(plan)
    credentials = {"name": f"{name}-metrics", "key": "api-key"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": name, "labels": labels(plan, "gateway")},
        "spec": {
            "selector": {"matchLabels": selector_labels(plan, "gateway")},
            "endpoints": [
                {
                    "port": "http",
                    "path": "/metrics",
                    "interval": "30s",
                    "authorization": {"type": "Bearer", "credentials": credentials},
                }
            ],
        },
    }
