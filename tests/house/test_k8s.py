"""k8s/: what a cluster would be sent. No cluster is needed for it, and none was had."""

from __future__ import annotations

import copy
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import emqx_acl
from scripts.prometheus_rule import ALERTS, RULES, rule
from scripts.services import adapters, services
from services import rooms
from services.broker_acl import acl
from shared import __version__
from shared.settings import Settings
from shared.site.checking import load
from tests.k8s import (
    K8S,
    NEWEST,
    OLDEST,
    ROOT,
    Object,
    against_kubernetes,
    against_operators,
    built,
    containers,
    is_service,
    kustomize,
    labels,
    of_kind,
    pod,
    workloads,
)
from tests.k8s import (
    RULES as HOUSE_RULES,
)
from tests.peers import program

# What is compared with comes from registries at first use.
pytestmark = pytest.mark.timeout(600)

SERVICES = {service.name for service in services()}
OVERLAYS = ("edge", "site", "fleet")
FILLED_IN = ("overlays/edge", "overlays/site", "overlays/fleet/sites/hq", "overlays/fleet/sites/depot")
COMPONENTS = ("mosquitto", "images", "reachable", "tls-cert-manager", "external-secrets", "monitoring")


@cache
def _everything(folder: Path) -> list[Object]:
    folder.mkdir(exist_ok=True)
    edge = K8S / "overlays" / "edge"
    for name in ("installation.yaml", "site.yaml", "acl"):
        shutil.copy(edge / name, folder)
    made = {
        "namespace": "tocsin",
        "resources": [os.path.relpath(K8S / "base", folder), "installation.yaml"],
        "components": [os.path.relpath(K8S / "components" / name, folder) for name in COMPONENTS],
        "configMapGenerator": [
            {"name": "site", "files": ["site.yaml"]},
            {"name": "mosquitto-acl", "files": ["acl"]},
        ],
        "generatorOptions": {"disableNameSuffixHash": True},
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return kustomize(folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """All services with all components: an overlay leaves out what its site has not."""
    return _everything(tmp_path_factory.getbasetemp() / "everything")


@pytest.fixture(params=["everything", *OVERLAYS])
def objects(request: pytest.FixtureRequest, everything: list[Object]) -> list[Object]:
    return everything if request.param == "everything" else built(f"overlays/{request.param}")


# ── Schemas ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_would_take_it(objects: list[Object], version: str) -> None:
    assert against_kubernetes(objects, version) == []


@pytest.mark.slow
def test_the_operators_would_take_it(everything: list[Object], tmp_path: Path) -> None:
    assert against_operators([*everything, *built("overlays/fleet")], tmp_path) == []


def test_a_wrong_field_is_seen() -> None:
    [one, *_] = of_kind(built("overlays/edge"), "StatefulSet")
    pod(one)["hostnetwork"] = True
    [said] = against_kubernetes([one], NEWEST)
    assert "hostnetwork" in said


@pytest.mark.slow
def test_a_wrong_field_of_a_custom_resource_is_seen(everything: list[Object], tmp_path: Path) -> None:
    unknown, wrong = copy.deepcopy(of_kind(everything, "Certificate")[:2])
    unknown["spec"]["durration"] = "1h"
    wrong["spec"]["usages"] = ["fly"]
    said = against_operators([unknown, wrong], tmp_path)
    assert any("durration" in line for line in said)
    assert any("usages" in line for line in said)


# ── Rules ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", HOUSE_RULES)
def test_the_rules_are_kept(objects: list[Object], name: str) -> None:
    assert list(HOUSE_RULES[name](objects)) == []


def first(objects: list[Object], kind: str, name: str = "") -> Object:
    return next(o for o in of_kind(objects, kind) if name in ("", o["metadata"]["name"]))


def container(objects: list[Object], name: str = "correlator") -> Object:
    found: Object = pod(first(objects, "StatefulSet", name))["containers"][0]
    return found


def volume(objects: list[Object], name: str, of: str = "correlator") -> Object:
    found: Object = next(v for v in pod(first(objects, "StatefulSet", of))["volumes"] if v["name"] == name)
    return found


Break = Callable[[list[Object]], Any]

BROKEN: list[tuple[str, str, Break]] = [
    ("only_stateful_sets_run", "Pod", lambda o: o.append({"kind": "Pod", "metadata": {"name": "x"}})),
    ("pods_are_restricted", "hostPath", lambda o: volume(o, "tmp").update(hostPath={"path": "/"})),
    ("pods_are_restricted", "hostPID", lambda o: pod(first(o, "StatefulSet")).update(hostPID=True)),
    ("pods_are_restricted", "seccomp", lambda o: pod(first(o, "StatefulSet"))["securityContext"].popitem()),
    (
        "pods_are_restricted",
        "may run as root",
        lambda o: pod(first(o, "StatefulSet"))["securityContext"].update(runAsUser=0),
    ),
    (
        "pods_are_restricted",
        "sysctls",
        lambda o: pod(first(o, "StatefulSet"))["securityContext"].update(sysctls=[{"name": "a"}]),
    ),
    (
        "pods_are_restricted",
        "capabilities",
        lambda o: container(o)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    (
        "pods_are_restricted",
        "allowPrivilegeEscalation",
        lambda o: container(o)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    (
        "pods_are_restricted",
        "writes to its root",
        lambda o: pod(first(o, "StatefulSet", "mosquitto"))["initContainers"][0]["securityContext"].update(
            readOnlyRootFilesystem=False
        ),
    ),
    (
        "pods_are_restricted",
        "privileged",
        lambda o: container(o)["securityContext"].update(privileged=True),
    ),
    ("pods_are_restricted", "hostPort", lambda o: container(o)["ports"][0].update(hostPort=80)),
    (
        "namespaces_enforce_it",
        "enforce",
        lambda o: first(o, "Namespace")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
    ),
    (
        "pods_have_no_token",
        "token",
        lambda o: pod(first(o, "StatefulSet")).pop("automountServiceAccountToken"),
    ),
    (
        "pods_have_no_token",
        "environment",
        lambda o: pod(first(o, "StatefulSet")).pop("enableServiceLinks"),
    ),
    (
        "pods_have_no_token",
        "volume config",
        lambda o: volume(o, "config", "mosquitto")["projected"]["sources"].append({"serviceAccountToken": 1}),
    ),
    (
        "pods_have_no_token",
        "cluster",
        lambda o: o.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}}),
    ),
    (
        "containers_are_limited",
        "no memory in limits",
        lambda o: container(o)["resources"]["limits"].pop("memory"),
    ),
    ("containers_are_limited", "no cpu in requests", lambda o: container(o)["resources"].pop("requests")),
    ("containers_are_limited", "volume tmp", lambda o: volume(o, "tmp")["emptyDir"].clear()),
    ("containers_are_probed", "no startupProbe", lambda o: container(o).pop("startupProbe")),
    (
        "containers_are_probed",
        "not /readyz",
        lambda o: container(o)["readinessProbe"]["httpGet"].update(path="/healthz"),
    ),
    (
        "stores_are_kept",
        "deleted",
        lambda o: first(o, "StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"].update(
            whenScaled="Delete"
        ),
    ),
    (
        "stores_are_kept",
        "no volume for its state",
        lambda o: first(o, "StatefulSet", "correlator")["spec"].pop("volumeClaimTemplates"),
    ),
    (
        "stores_are_kept",
        "no volume for its state",
        lambda o: container(o)["volumeMounts"][3].update(mountPath="/tmp/x"),
    ),
    (
        "stores_are_kept",
        "no larger",
        lambda o: first(o, "StatefulSet", "correlator")["spec"]["volumeClaimTemplates"][0]["spec"][
            "resources"
        ]["requests"].update(storage="4Gi"),
    ),
    (
        "stores_are_kept",
        "more than one",
        lambda o: first(o, "StatefulSet", "correlator")["spec"]["volumeClaimTemplates"][0]["spec"].update(
            accessModes=["ReadWriteMany"]
        ),
    ),
    (
        "services_have_their_own",
        "not its own certificate",
        lambda o: volume(o, "tls")["secret"].update(secretName="vms-publisher-tls"),
    ),
    (
        "services_have_their_own",
        "not its own secrets",
        lambda o: volume(o, "secrets")["secret"].update(secretName="vms-publisher-secrets"),
    ),
    ("services_have_their_own", "no site file", lambda o: volume(o, "site")["configMap"].update(name="x")),
    (
        "services_have_their_own",
        "mounts",
        lambda o: pod(first(o, "StatefulSet", "correlator"))["volumes"].append(
            {"name": "more", "secret": {"secretName": "vms-publisher-secrets"}}
        ),
    ),
    (
        "services_have_their_own",
        "in its environment",
        lambda o: container(o).update(envFrom=[{"secretRef": {"name": "x"}}]),
    ),
    (
        "services_have_their_own",
        "in its environment",
        lambda o: container(o)["env"].append({"name": "X", "valueFrom": {"secretKeyRef": {"name": "x"}}}),
    ),
    (
        "services_have_their_own",
        "site is not at /etc/tocsin, read-only",
        lambda o: container(o)["volumeMounts"][0].pop("readOnly"),
    ),
    (
        "services_have_their_own",
        "subPath",
        lambda o: container(o)["volumeMounts"][0].update(subPath="site.yaml"),
    ),
    (
        "variables_are_defined_before_use",
        "before",
        lambda o: container(o)["env"].insert(0, {"name": "X", "value": "$(TOCSIN_COPY)"}),
    ),
    (
        "copies_know_their_number",
        "vms-publisher: TOCSIN_COPY",
        lambda o: container(o, "vms-publisher").pop("env"),
    ),
    (
        "copies_know_their_number",
        "adapter-dc09: runs in copies",
        lambda o: first(o, "StatefulSet", "adapter-dc09")["spec"].update(replicas=2),
    ),
    (
        "what_is_selected_is_there",
        "selects nothing",
        lambda o: first(o, "NetworkPolicy", "vms-publisher")["spec"].update(
            podSelector={"matchLabels": {"app.kubernetes.io/name": "vms"}}
        ),
    ),
    (
        "what_is_selected_is_there",
        "nothing has its port",
        lambda o: first(o, "Service", "adapter-dc09")["spec"]["ports"][1].update(targetPort="dc09"),
    ),
    (
        "what_is_selected_is_there",
        "StatefulSet correlator: selects",
        lambda o: first(o, "StatefulSet", "correlator")["spec"].update(
            selector={"matchLabels": {"app.kubernetes.io/component": "service"}}
        ),
    ),
    (
        "what_is_selected_is_there",
        "PodDisruptionBudget correlator",
        lambda o: first(o, "PodDisruptionBudget", "correlator")["spec"].update(
            selector={"matchLabels": {"a": "b"}}
        ),
    ),
    (
        "everything_has_a_budget",
        "0 budgets",
        lambda o: o.remove(first(o, "PodDisruptionBudget", "correlator")),
    ),
    (
        "everything_has_a_budget",
        "drained",
        lambda o: first(o, "PodDisruptionBudget")["spec"].update(maxUnavailable=0),
    ),
    (
        "nothing_talks_by_default",
        "denies",
        lambda o: o.remove(first(o, "NetworkPolicy", "nothing-by-default")),
    ),
    (
        "nothing_talks_by_default",
        "without its type",
        lambda o: first(o, "NetworkPolicy", "vms-publisher")["spec"].update(policyTypes=["Ingress"]),
    ),
    (
        "nothing_talks_by_default",
        "all ports",
        lambda o: first(o, "NetworkPolicy", "vms-publisher")["spec"]["egress"][0].pop("ports"),
    ),
    (
        "nothing_talks_by_default",
        "anywhere",
        lambda o: first(o, "NetworkPolicy", "vms-publisher")["spec"]["egress"][0].pop("to"),
    ),
    (
        "nothing_talks_by_default",
        "metadata",
        lambda o: first(o, "NetworkPolicy", "vms-publisher")["spec"]["egress"][0]["to"][0]["ipBlock"].pop(
            "except"
        ),
    ),
    (
        "what_listens_can_be_reached",
        "no Service",
        lambda o: first(o, "Service", "adapter-dc09")["spec"]["ports"].pop(),
    ),
    (
        "what_listens_can_be_reached",
        "anybody come to dc09-udp",
        lambda o: first(o, "NetworkPolicy", "adapter-dc09")["spec"]["ingress"][0]["ports"].pop(),
    ),
    (
        "what_listens_can_be_reached",
        "nothing listens",
        lambda o: container(o, "adapter-webhook")["ports"].pop(),
    ),
    (
        "devices_reach_services_that_are_not_ready",
        "turned away",
        lambda o: first(o, "Service", "adapter-dc09")["spec"].pop("publishNotReadyAddresses"),
    ),
    (
        "devices_reach_services_that_are_not_ready",
        "hides",
        lambda o: first(o, "Service", "adapter-dc09")["spec"].pop("externalTrafficPolicy"),
    ),
    (
        "certificates_name_their_holder",
        "no certificate",
        lambda o: o.remove(first(o, "Certificate", "correlator")),
    ),
    (
        "certificates_name_their_holder",
        "goes to",
        lambda o: first(o, "Certificate", "correlator")["spec"].update(secretName="x"),
    ),
    (
        "certificates_name_their_holder",
        "is for adapter-dc09",
        lambda o: first(o, "Certificate", "correlator")["spec"].update(commonName="adapter-dc09"),
    ),
    (
        "certificates_name_their_holder",
        "sign",
        lambda o: first(o, "Certificate", "correlator")["spec"].update(isCA=True),
    ),
    (
        "secrets_come_from_entries_of_their_own",
        "reads",
        lambda o: first(o, "ExternalSecret", "correlator")["spec"].update(
            dataFrom=[{"extract": {"key": "vms-publisher"}}]
        ),
    ),
    (
        "secrets_come_from_entries_of_their_own",
        "writes",
        lambda o: first(o, "ExternalSecret", "correlator")["spec"]["target"].update(name="x"),
    ),
    (
        "secrets_come_from_entries_of_their_own",
        "no secrets",
        lambda o: o.remove(first(o, "ExternalSecret", "correlator")),
    ),
    (
        "ways_out_are_narrow",
        "adapter-osdp: egress to 0.0.0.0/0",
        lambda o: first(o, "NetworkPolicy", "adapter-osdp")["spec"]["egress"][0]["to"].append(
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}
        ),
    ),
    (
        "ways_out_are_narrow",
        "adapter-pos: egress to kubelet (10250)",
        lambda o: first(o, "NetworkPolicy", "adapter-pos")["spec"]["egress"][0]["ports"].append(
            {"port": 10000, "endPort": 11000, "protocol": "TCP"}
        ),
    ),
    ("images_are_of_a_version", "tocsin/x", lambda o: container(o).update(image="tocsin/x")),
    ("images_are_of_a_version", "latest", lambda o: container(o).update(image="tocsin/x:latest")),
    ("images_are_of_a_version", "a:1/b", lambda o: container(o).update(image="a:1/b")),
]


@pytest.mark.parametrize(("name", "said", "damage"), BROKEN, ids=[f"{n}-{s}" for n, s, _ in BROKEN])
def test_a_rule_sees_what_is_broken(name: str, said: str, damage: Break, everything: list[Object]) -> None:
    objects = copy.deepcopy(everything)
    damage(objects)
    assert any(said in line for line in HOUSE_RULES[name](objects))


def test_a_rule_sees_what_is_broken_in_the_fleet() -> None:
    objects = built("overlays/fleet")
    scaler = first(objects, "HorizontalPodAutoscaler", "correlator")
    scaler["spec"]["scaleTargetRef"]["name"] = "x"
    assert any("scales nothing" in line for line in HOUSE_RULES["what_is_selected_is_there"](objects))
    scaler["spec"]["behavior"].pop("scaleDown")
    assert list(HOUSE_RULES["nothing_shrinks_by_itself"](objects)) == ["correlator: takes copies away"]


def test_every_rule_is_seen_to_fail() -> None:
    assert {name for name, _, _ in BROKEN} | {"nothing_shrinks_by_itself"} == set(HOUSE_RULES)


def test_ways_out_are_narrowed_as_the_readme_says(tmp_path: Path) -> None:
    [patch] = re.findall(r"(?ms)^```yaml\n(patches:\n.+?)^```$", (K8S / "README.md").read_text())
    made = {"resources": [os.path.relpath(K8S / "base", tmp_path)], **yaml.safe_load(patch)}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(made))
    objects = kustomize(tmp_path)
    for name, policy in (
        (each["metadata"]["name"], each["spec"]) for each in of_kind(objects, "NetworkPolicy")
    ):
        if name in ("adapter-modbus", "adapter-osdp"):
            assert policy["egress"][0]["to"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
            assert policy["egress"][0]["ports"]
    assert not list(HOUSE_RULES["nothing_talks_by_default"](objects))


def test_the_pod_that_restores_a_store_has_what_the_service_has(everything: list[Object]) -> None:
    [block] = re.findall(
        r"(?ms)^```yaml\n# restore.yaml\n(.+?)^```$", (ROOT / "docs" / "operations.md").read_text()
    )
    restore = yaml.safe_load(block)
    for version in (OLDEST, NEWEST):
        assert against_kubernetes([restore], version) == []
    as_workload = {
        **first(everything, "StatefulSet", "vms-publisher"), "spec": {"template": {"spec": restore["spec"]}}
    }  # fmt: skip
    for name in ("pods_are_restricted", "pods_have_no_token", "containers_are_limited"):
        assert not list(HOUSE_RULES[name]([as_workload])), name
    service = first(everything, "StatefulSet", "vms-publisher")
    [own], [there] = restore["spec"]["containers"], containers(service)
    assert own["image"] == there["image"]
    for mount in own["volumeMounts"]:
        assert mount in there["volumeMounts"]
    [claim] = service["spec"]["volumeClaimTemplates"]
    volumes = {volume["name"]: volume for volume in restore["spec"]["volumes"]}
    bound = f"{claim['metadata']['name']}-vms-publisher-0"
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == bound
    assert volumes["site"] in pod(service)["volumes"]
    assert restore["spec"]["securityContext"].items() <= pod(service)["securityContext"].items()


# ── What there is ────────────────────────────────────────────────────────────────────────────────


def test_every_service_is_there_and_no_other(everything: list[Object]) -> None:
    names = {o["metadata"]["name"] for o in of_kind(everything, "StatefulSet")}
    assert names == SERVICES | {"mosquitto"}


def test_compose_and_k8s_have_the_same_services(everything: list[Object]) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    images = {str(each.get("image", "")).split(":")[0].removeprefix("tocsin/") for each in compose.values()}
    here = {o["metadata"]["name"] for o in of_kind(everything, "StatefulSet") if is_service(o)}
    assert images & SERVICES == here


def of_container(published: str | dict[str, Any]) -> tuple[int, str]:
    """Port and protocol in the container of an entry of `ports` in compose.yaml."""
    if isinstance(published, dict):
        return int(published["target"]), str(published.get("protocol", "tcp")).upper()
    number, _, protocol = published.rpartition(":")[2].partition("/")
    return int(number), (protocol or "tcp").upper()


def listening(workload: Object) -> set[tuple[int, str]]:
    return {
        (port["containerPort"], port["protocol"])
        for one in pod(workload)["containers"]
        for port in one["ports"]
        if port["name"] != "metrics"
    }


@pytest.mark.parametrize("service", adapters(), ids=lambda service: service.name)
def test_what_a_room_listens_on_is_open(service: Any, everything: list[Object]) -> None:
    """The ports that compose.yaml publishes, and those of the room's own settings."""
    here = listening(first(everything, "StatefulSet", service.name))
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service.name]
    assert {of_container(port) for port in compose.get("ports", [])} <= here
    fields = rooms.room(service.extra).Settings.model_fields
    said = [fields[name].default for name in ("listen", "port") if name in fields]
    ports = {int(str(each).rpartition(":")[2]) for each in said}
    assert ports <= {number for number, _ in here}


def test_pos_leads_the_printers_port_past_the_metrics(everything: list[Object]) -> None:
    """Tills print to 9100, where a service's own metrics are."""
    ports = first(everything, "Service", "adapter-pos")["spec"]["ports"]
    assert {"name": "pos", "port": 9100, "targetPort": "pos", "protocol": "TCP"} in ports


def entries(component: str, template: str) -> tuple[list[Object], list[Object]]:
    """Those of services in a component, and what the template makes of all services' names."""
    have = yaml.safe_load_all((K8S / "components" / component / "services.yaml").read_text())
    text = (ROOT / "scripts" / "templates" / f"{template}.yaml.tmpl").read_text()
    made = [yaml.safe_load(text.replace("adapter-@NAME@", name)) for name in sorted(SERVICES)]
    return sorted(have, key=lambda each: str(each["metadata"]["name"])), made


@pytest.mark.parametrize(
    ("component", "template"),
    [("tls-cert-manager", "certificate"), ("external-secrets", "external-secret")],
)
def test_components_have_an_entry_for_each_service(component: str, template: str) -> None:
    have, wanted = entries(component, template)
    assert have == wanted


@pytest.mark.parametrize("folder", FILLED_IN)
def test_an_overlay_runs_what_its_site_needs(folder: str) -> None:
    """The correlator, a publisher for each target, and the devices' adapters unless a gateway has them."""
    site = yaml.safe_load((K8S / folder / "site.yaml").read_text())
    needed = {"correlator", *(f"{target}-publisher" for target in site["targets"])}
    if folder != "overlays/fleet/sites/depot":
        needed |= {f"adapter-{device['adapter']}" for device in site["devices"].values()}
    running = {o["metadata"]["name"] for o in of_kind(built(folder), "StatefulSet")} - {"mosquitto"}
    assert needed <= running


@pytest.mark.parametrize("folder", FILLED_IN)
def test_the_site_file_of_an_overlay_is_right(folder: str) -> None:
    path = K8S / folder / "site.yaml"
    assert load(path, rooms.rooms(), adapters=rooms.names())


@pytest.mark.parametrize("overlay", ["edge", "site"])
def test_the_acl_of_an_overlay_is_that_of_its_site(overlay: str) -> None:
    folder = K8S / "overlays" / overlay
    site = yaml.safe_load((folder / "site.yaml").read_text())["site"]
    text = (folder / "acl").read_text()
    users = set(re.findall(r"(?m)^user (.+)$", text)) - {"operator", "reader"}
    assert text == acl(site, users), f"python -m services.broker_acl {site} > {folder}/acl"
    running = {o["metadata"]["name"] for o in of_kind(built(f"overlays/{overlay}"), "StatefulSet")}
    assert running - {"mosquitto"} <= users


def test_an_overlay_has_the_version_of_this_tree() -> None:
    for path in K8S.rglob("installation.yaml"):
        assert yaml.safe_load(path.read_text())["data"]["version"] == __version__, path


def test_only_settings_that_exist_are_set(objects: list[Object]) -> None:
    known = {f"TOCSIN_{field.name.upper()}" for field in fields(Settings)}
    for name, workload in workloads(objects):
        variables = {v["name"] for c in containers(workload) for v in c.get("env", [])}
        assert {v for v in variables if v.startswith("TOCSIN_")} <= known, name


def test_installation_is_not_made_in_the_cluster(objects: list[Object]) -> None:
    assert not [o for o in objects if o["metadata"]["name"] == "installation"]


def test_images_come_from_the_registry_that_is_named(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    shutil.copytree(ROOT / "mosquitto", tmp_path / "mosquitto")
    edge = tmp_path / "k8s" / "overlays" / "edge"
    text = (edge / "installation.yaml").read_text()
    text = re.sub(r"repository: \S+", "repository: registry.example:5000/security/tocsin", text)
    (edge / "installation.yaml").write_text(re.sub(r"version: \S+", "version: 1.2.3", text))
    images = {c["image"] for _, workload in workloads(kustomize(edge)) for c in containers(workload)}
    assert "registry.example:5000/security/tocsin/correlator:1.2.3" in images
    assert "eclipse-mosquitto:2" in images
    assert all(image.startswith("registry.example:5000/") for image in images - {"eclipse-mosquitto:2"})


@pytest.mark.parametrize("site", ["hq", "depot"])
def test_there_are_as_many_pods_as_copies(site: str) -> None:
    folder = f"overlays/fleet/sites/{site}"
    declared = yaml.safe_load((K8S / folder / "site.yaml").read_text())["copies"]
    scalers = {o["metadata"]["name"]: o["spec"] for o in of_kind(built(folder), "HorizontalPodAutoscaler")}
    for service, copies in declared.items():
        assert copies <= scalers[service]["minReplicas"]
    for stateful in of_kind(built(folder), "StatefulSet"):
        assert "replicas" not in stateful["spec"], "the autoscaler's number would be set back"


def test_sites_of_a_fleet_share_nothing() -> None:
    objects = [o for o in built("overlays/fleet") if o["kind"] != "Namespace"]
    own = {o["metadata"]["namespace"] for o in objects if o["kind"] != "PrometheusRule"}
    assert own == {"tocsin-hq", "tocsin-depot"}
    rules = [(o["metadata"]["namespace"], o["metadata"]["name"]) for o in of_kind(objects, "PrometheusRule")]
    assert sorted(rules) == [("monitoring", "copies"), ("monitoring", "tocsin")], "once, or alerts come twice"
    assert not [o for o in objects if o["metadata"]["name"].startswith("mosquitto")]
    for _, workload in workloads(objects):
        env = {v["name"]: v for v in pod(workload)["containers"][0]["env"]}
        assert env["TOCSIN_MQTT_USERNAME"]["value"] == "$(NAMESPACE).$(SERVICE)"
        assert env["TOCSIN_MQTT_URL"]["value"].startswith("mqtts://emqx")
        assert not {"TOCSIN_MQTT_CERT", "TOCSIN_MQTT_KEY"} & set(env)


def test_the_services_of_an_overlay_share_one_broker() -> None:
    """The service's address of the broker is a name of its certificate, and of its Service."""
    objects = built("overlays/site")
    host = "mosquitto"
    assert host in first(objects, "Certificate", host)["spec"]["dnsNames"]
    assert {p["port"] for p in first(objects, "Service", host)["spec"]["ports"]} == {8883, 8884}
    for _, workload in workloads(objects):
        if is_service(workload):
            env = {v["name"]: v.get("value") for v in pod(workload)["containers"][0]["env"]}
            assert env["TOCSIN_MQTT_URL"] == f"mqtts://{host}:8883"


def test_mosquittos_files_are_where_its_configuration_says(everything: list[Object]) -> None:
    conf = (ROOT / "mosquitto" / "mosquitto.conf").read_text()
    files = dict(re.findall(r"(?m)^(cafile|certfile|keyfile|password_file|acl_file) (\S+)", conf))
    mosquitto = first(everything, "StatefulSet", "mosquitto")
    mounts = {m["name"]: m["mountPath"] for m in pod(mosquitto)["containers"][0]["volumeMounts"]}
    certs = {
        f"{mounts['certs']}/{i['path']}" for i in volume(everything, "certs", "mosquitto")["secret"]["items"]
    }
    assert {files["cafile"], files["certfile"], files["keyfile"]} == certs
    assert {files["password_file"], files["acl_file"]} == {
        f"{mounts['config']}/passwords",
        f"{mounts['config']}/acl",
    }
    [generated] = [o for o in of_kind(everything, "ConfigMap") if "mosquitto.conf" in o["data"]]
    assert generated["data"]["mosquitto.conf"] == conf
    assert labels(mosquitto)["app.kubernetes.io/component"] == "broker"


def test_an_mqtt_cluster_has_the_rules_of_mosquitto() -> None:
    """As many, of the same users and topics, each with its site's namespace; and nothing is passed over."""
    grants = acl("hq", ["adapter-dc09", "correlator"]).splitlines()
    made = list(emqx_acl.rules(grants, "tocsin-hq"))
    assert len(made) == sum(line.startswith("topic ") for line in grants)
    assert '{allow, {username, "tocsin-hq.adapter-dc09"}, publish, ["tocsin/v1/hq/events/#"]}.' in made
    assert '{allow, {username, "tocsin-hq.correlator"}, subscribe, ["tocsin/v1/hq/events/#"]}.' in made
    with pytest.raises(ValueError, match=r"line 2 .*pattern"):
        list(emqx_acl.rules(["user a", "pattern read %u/#"], "tocsin-hq"))
    with pytest.raises(ValueError, match="line 1"):
        list(emqx_acl.rules(["topic read for/everybody"], "tocsin-hq"))


# ── Alerts ───────────────────────────────────────────────────────────────────────────────────────


def test_the_alerts_are_those_of_observability() -> None:
    assert RULES.read_text() == rule(ALERTS.read_text()), "python -m scripts.prometheus_rule"


def test_a_rule_file_becomes_an_object() -> None:
    made = yaml.safe_load(rule("# Why.\n\ngroups:\n  - name: a\n    rules: []\n"))
    assert made["kind"] == "PrometheusRule"
    assert made["spec"] == {"groups": [{"name": "a", "rules": []}]}


COPIES = """
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'tocsin_custody_outstanding{namespace="a",pod="vms-publisher-0",service="vms-publisher"}', values: '3000x20'}
      - {series: 'tocsin_custody_outstanding{namespace="a",pod="vms-publisher-1",service="vms-publisher-1"}', values: '500x20'}
      - {series: 'process_cpu_seconds_total{namespace="a",pod="vms-publisher-0"}', values: '0+54x20'}
      - {series: 'process_cpu_seconds_total{namespace="a",pod="vms-publisher-1"}', values: '0+6x20'}
      - {series: 'tocsin_custody_outstanding{namespace="b",pod="vms-publisher-0",service="vms-publisher"}', values: '9000x20'}
      - {series: 'process_cpu_seconds_total{namespace="b",pod="vms-publisher-0"}', values: '0+6x20'}
      - {series: 'tocsin_custody_outstanding{namespace="a",pod="adapter-dc09-0",service="adapter-dc09"}', values: '700x20'}
      - {series: 'process_cpu_seconds_total{namespace="a",pod="correlator-0"}', values: '0+57x20'}
      - {series: 'tocsin_copies{namespace="a",pod="correlator-0",service="correlator"}', values: '1x20'}
      - {series: 'tocsin_copies{namespace="a",pod="correlator-1",service="correlator"}', values: '1x20'}
      - {series: 'tocsin_copies{namespace="b",pod="correlator-0",service="correlator"}', values: '2x20'}
      - {series: 'tocsin_copies{namespace="c",pod="correlator-0",service="correlator"}', values: '1x20'}
    promql_expr_test:
      - expr: 'service:tocsin_backlog:sum'
        eval_time: 10m
        exp_samples:
          - {labels: 'service:tocsin_backlog:sum{namespace="a",service="vms-publisher"}', value: 3500}
          - {labels: 'service:tocsin_backlog:sum{namespace="b",service="vms-publisher"}', value: 0}
          - {labels: 'service:tocsin_backlog:sum{namespace="a",service="correlator"}', value: 700}
      - expr: 'ALERTS{alertstate="firing"}'
        eval_time: 18m
        exp_samples:
          - labels: 'ALERTS{alertname="TocsinCopiesToDeclare",alertstate="firing",namespace="a",service="correlator",severity="info"}'
            value: 1
          - labels: 'ALERTS{alertname="TocsinCopyMissing",alertstate="firing",namespace="b",service="correlator",severity="critical"}'
            value: 1
"""  # noqa: E501


def test_what_the_autoscalers_look_at(tmp_path: Path) -> None:
    """A backlog counts where a copy is at its processor's limit, not where a target holds it up."""
    promtool = program("promtool", "apt-get install prometheus")
    rules = yaml.safe_load((K8S / "overlays/fleet/rules/copies.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "tests.yaml").write_text(COPIES)
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    adapter = yaml.safe_load((K8S / "overlays/fleet/prometheus-adapter.yaml").read_text())
    [external] = adapter["rules"]["external"]
    [recorded] = {r["record"] for g in rules["groups"] for r in g["rules"] if "record" in r}
    assert external["seriesQuery"].startswith(recorded)
    wanted = {
        metric["external"]["metric"]["name"]
        for scaler in of_kind(built("overlays/fleet"), "HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
    }
    assert wanted == {external["name"]["as"]}


# ── The broker's files ───────────────────────────────────────────────────────────────────────────


def test_mosquitto_is_told_of_new_files(tmp_path: Path) -> None:
    """As a secret is mounted: what is read is a link to a folder that is replaced as a whole."""
    mounted, told = tmp_path / "certs", tmp_path / "told"
    for folder, text in (("..one", "old"), ("..two", "new")):
        (mounted / folder).mkdir(parents=True)
        (mounted / folder / "server.crt").write_text(text)
    (mounted / "..data").symlink_to("..one")
    (mounted / "server.crt").symlink_to("..data/server.crt")
    (tmp_path / "empty").mkdir()
    broker = tmp_path / "mosquitto"
    broker.write_text(
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGHUP, lambda *_: open({str(told)!r}, 'a').write('again\\n'))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    running = subprocess.Popen([sys.executable, broker], stdout=subprocess.PIPE, text=True)
    (tmp_path / "pidof").write_text(f"#!/bin/sh\necho {running.pid}\n")
    (tmp_path / "pidof").chmod(0o755)
    script = K8S / "components" / "mosquitto" / "reload.sh"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EVERY": "0.1"}
    watching = subprocess.Popen(
        ["sh", script, tmp_path / "empty", mounted], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        time.sleep(0.5)  # whatever it does at first, nothing has changed yet
        assert not told.exists()
        (mounted / "..next").symlink_to("..two")
        (mounted / "..next").rename(mounted / "..data")
        assert watching.stdout is not None
        assert "reads them again" in watching.stdout.readline()
        until = time.monotonic() + 20
        while not (told.exists() and told.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        assert told.read_text() == "again\n"
    finally:
        for process in (watching, running):
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_a_change_while_mosquitto_restarts_is_told_to_it_afterwards(tmp_path: Path) -> None:
    folder, tools = tmp_path / "folder", tmp_path / "tools"
    for each in (folder, tools):
        each.mkdir()
    (folder / "acl").write_text("one")
    (tools / "pidof").write_text(f"#!/bin/sh\ncat {tmp_path}/pid\n")
    (tools / "pidof").chmod(0o755)
    script = K8S / "components" / "mosquitto" / "reload.sh"
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "EVERY": "0.05"}
    running = subprocess.Popen(["sleep", "60"])
    watching = subprocess.Popen(
        ["sh", script, folder], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert watching.stderr is not None
        changes = 0
        while not select.select([watching.stderr], [], [], 0.2)[0]:  # until it has found none
            changes += 1
            (folder / "acl").write_text(str(changes))
        (tmp_path / "pid").write_text(str(running.pid))
        assert running.wait(20) == -signal.SIGHUP
    finally:
        for process in (watching, running):
            process.send_signal(signal.SIGKILL)
            process.wait()
