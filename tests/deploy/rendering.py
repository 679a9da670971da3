"""The chart's renderings, by the real helm of both major versions, for the tests beside this file."""

import functools
import json
import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "deploy/chart"
GOLDEN = pathlib.Path(__file__).parent / "golden"
HELMS = sorted((ROOT / "build/tools").glob("helm-*"))

OPERATOR, KEDA = "monitoring.coreos.com/v1", "keda.sh/v1alpha1"
SETS = {  # values file in golden/: (further values files, APIs that the cluster has besides Kubernetes')
    "default": ((), ()),
    "h200": ((CHART / "values-h200.yaml",), ()),
    "mtls": ((), ()),
    "keda": ((), (OPERATOR, KEDA)),
    "claim": ((), (OPERATOR,)),
    "bare": ((), (OPERATOR,)),
}


def run(*command, check=True, **kwargs):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **kwargs)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def values_of(name):
    return [argument for file in (*SETS[name][0], GOLDEN / f"{name}.values.yaml") for argument in ("-f", file)]


@functools.cache
def rendered(name, helm=HELMS[-1] if HELMS else None, chart=CHART):
    """All objects of a set of values."""
    apis = [argument for api in SETS[name][1] for argument in ("--api-versions", api)]
    text = run(helm, "template", "nibble", chart, "--namespace", "ai", "--kube-version", "1.33", *values_of(name), *apis).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def objects(name, kind):
    return [document for document in rendered(name) if document["kind"] == kind]


def one(name, kind):
    found = objects(name, kind)
    assert len(found) == 1, f"{kind} of {name}: {len(found)}"
    return found[0]


def pod(name):
    return one(name, "Deployment")["spec"]["template"]["spec"]


def container(name, wanted):
    return next(c for c in pod(name).get("initContainers", []) + pod(name)["containers"] if c["name"] == wanted)


def config_file(name, file):
    """A file of the ConfigMap that the pod mounts."""
    volume = next(v for v in pod(name)["volumes"] if v["name"] == "config")
    return next(c for c in objects(name, "ConfigMap") if c["metadata"]["name"] == volume["configMap"]["name"])["data"][file]


def schema():
    return json.loads((CHART / "values.schema.json").read_text())
