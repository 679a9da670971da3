"""Dashboards, rules and alerts against a real Prometheus that scrapes real daemons.

Each alert is fired by its real cause and must end with it. To see that within seconds every duration of the rules, the
`for:` and the `[range]`s, is FACTOR times shorter; expressions and thresholds are those that operators deploy.
"""

import contextlib
import json
import math
import pathlib
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

import grpc
import pytest

import tiny_model
from daemon import Client, Daemon
from freeze import freeze, thaw
from ports import free_port

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: tests/run does")
from prometheus import MISSING, Prometheus, shorten  # noqa: E402

HERE = pathlib.Path(__file__).parent
DASHBOARDS = HERE.parents[1] / "deploy/dashboards"
GOLDEN = HERE / "golden"
FACTOR, INTERVAL = 100, "300ms"
NAMES = r"\b((?:nibble_|vllm:|process_|job_model:|instance_model:)[\w:]*|up\b)"
# What no test can cause without a broken device, plan or program; tests/deploy/promtool fires them.
ONLY_IN_UNIT_TESTS = {"NibbleDeviceFault", "NibbleMemoryBeyondPlan", "NibbleInternalErrors"}
# An endpoint picker takes the first series of each, so that a daemon may have one only.
PICKED = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:lora_requests_info",
          "vllm:cache_config_info")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; tests/run installs them")


def load_rules(name):
    return yaml.safe_load((DASHBOARDS / f"{name}.yaml").read_text())


def every_alert():
    return [rule for group in load_rules("alerts")["groups"] for rule in group["rules"]]


def run(*command, **kwargs):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- The files alone ----------------------------------------------------------------------------------------------------


def test_rules_are_well_formed():
    assert "SUCCESS" in run("promtool", "check", "rules", DASHBOARDS / "recording.yaml", DASHBOARDS / "alerts.yaml")


def test_alerts_fire_and_stay_quiet_on_recorded_series():
    assert "SUCCESS" in run("promtool", "test", "rules", HERE / "promtool/alerts.yaml")
    cases = yaml.safe_load((HERE / "promtool/alerts.yaml").read_text())["tests"]
    tested = {name for case in cases for name in case["name"].split(", ")}
    assert tested == {rule["alert"] for rule in every_alert()}


def test_every_alert_says_what_to_do():
    chapters = {line[4:].strip().lower() for line in (DASHBOARDS / "README.md").read_text().splitlines() if line.startswith("### ")}
    for rule in every_alert():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["runbook"] == f"deploy/dashboards/README.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"] and rule["annotations"]["description"].endswith(".")
    assert chapters == {rule["alert"].lower() for rule in every_alert()}


def test_alertmanager_example_pages_for_critical_alerts_only():
    example = DASHBOARDS / "alertmanager-example.yaml"
    assert "SUCCESS" in run("amtool", "check-config", example)
    for severity, receiver in (("critical", "on-call"), ("warning", "team")):
        routed = run("amtool", "config", "routes", "test", f"--config.file={example}", "alertname=NibbleDown", f"severity={severity}")
        assert routed.split() == [receiver]


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def test_dashboards_are_as_rendered_and_unlike_each_other():
    run(sys.executable, DASHBOARDS / "render.py", "--check")
    boards = dashboards()
    assert set(boards) == {"overview.json", "model.json", "slo.json"}
    for key in ("uid", "title"):
        assert len({board[key] for board in boards.values()}) == len(boards)
    for name, board in boards.items():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids) and board["schemaVersion"] >= 39
        assert board["templating"]["list"][0]["type"] == "datasource"
        cells = [(x, y) for panel in board["panels"] for at in [panel["gridPos"]]
                 for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
        assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24, f"panels of {name} overlap"
        for panel in board["panels"]:
            assert panel["type"] == "row" or panel["targets"] and panel["datasource"]["uid"] == "$datasource"


# ---- The scene: daemons in trouble, and one that is not -----------------------------------------------------------------


class Load:
    """Clients that ask one daemon again and again, until told to stop."""

    def __init__(self, daemon, *asks):
        self.client, self.stopping = daemon.client(), threading.Event()
        self.threads = [threading.Thread(target=self._loop, args=(ask,), daemon=True) for ask in asks]
        for thread in self.threads:
            thread.start()

    def _loop(self, ask):
        while not self.stopping.is_set():
            with contextlib.suppress(grpc.RpcError, ValueError):  # refusals are part of the load; closed channels of the end
                ask(self.client)
            self.stopping.wait(0.01)

    def stop(self):
        self.stopping.set()
        self.client.close()
        for thread in self.threads:
            thread.join(20)


def asking(pause=0.0, **fields):
    def ask(client):
        try:
            client.ask(**fields)
        finally:
            time.sleep(pause)
    return ask


def calm_load(daemon):
    """A little of everything, errors of clients too."""
    def cancel(client):
        call = client.Generate(text="stop me", stopping={"max_tokens": 4000, "ignore_eos": True})
        next(call)
        call.cancel()
        time.sleep(0.1)
    return Load(daemon, asking(0.02, text="again and again " * 20, stopping={"max_tokens": 50}),
                asking(0.1, text="two", stopping={"max_tokens": 20, "ignore_eos": True}, output={"num_outputs": 2}),
                asking(0.1, text="bad", sampling={"temperature": -1.0}), asking(0.1, model="nobody", text="x"), cancel)


def hungry_load(daemon):
    """Keeps the queue full."""
    return Load(daemon, *[asking(0.03, text="x", stopping={"max_tokens": 3000, "ignore_eos": True})] * 8)


def uneven_load(daemon):
    """Short answers among long ones make the scheduler expect short ones, so that it admits more long ones than fit."""
    return Load(daemon, *[asking(text="x", sampling={"seed": i}, stopping={"max_tokens": 1500, "ignore_eos": True})
                          for i in range(8)], *[asking(text="x", stopping={"max_tokens": 2}, priority=5)] * 2)


def heavy_load(daemon):
    """Far more than one thread can do in time: steps of 128 rows, and thrice as many sequences wait. Short answers, so that
    first tokens come in every range of the rules."""
    return Load(daemon, *[asking(text=f"Story {i}: once upon a time", sampling={"seed": i}, output={"num_outputs": 8},
                                 stopping={"max_tokens": 15 + i % 10, "ignore_eos": True}) for i in range(64)])


def nan_model(directory):
    """The tiny model with a last norm of NaN: it loads, and computes no number."""
    path = tiny_model.write(directory) / "model.safetensors"
    data = bytearray(path.read_bytes())
    size, = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8:8 + size])["model.norm.weight"]["data_offsets"]
    data[8 + size + begin:8 + size + end] = struct.pack("<f", math.nan) * ((end - begin) // 4)
    path.write_bytes(data)
    return path.parent


class Scene:
    def __init__(self, directory, tiny, smollm2):
        self.may_trace = True
        self.directory, self.tiny, self.fired, self.frozen, self.loads, self.daemons = directory, tiny, set(), [], {}, {}
        if smollm2:  # takes the longest to load
            self.daemons["slow"] = Daemon(f"slow={smollm2}", wait=False,
                                          args=["--threads", "1", "--compute", "f32", "--max-batch", "128", "--max-itl", "5s"])
        small = ("--threads", "1", "--kv-memory", "1MiB")
        models = directory / "models"
        self.crash_port = f"127.0.0.1:{free_port()}"
        self.daemons |= {
            "calm": Daemon(f"calm={tiny}"),
            "crashing": self.crashing(),
            "queue": Daemon(f"queue={tiny}", args=[*small, "--max-queue", "4", "--max-batch", "1"]),
            "kv": Daemon(f"kv={tiny}", args=[*small, "--max-batch", "32"]),
            "hanging": Daemon(f"hanging={tiny}"),
            "draining": Daemon(f"draining={tiny}", args=["--drain-timeout", "90s"]),
            "broken": Daemon(f"nan={nan_model(models / 'nan')}", f"lost={tiny_model.write(models / 'good')}",
                             args=["--admin-listen", "127.0.0.1:0", "--model-root", str(models)])}
        (models / "damaged").mkdir()
        (models / "damaged/config.json").write_text((models / "good/config.json").read_text())
        for daemon in self.daemons.values():
            daemon.wait_ready()
        targets = {name: (daemon.http, {"namespace": "ai", "pod": f"chat-{i}f-{name}"})
                   for i, (name, daemon) in enumerate(self.daemons.items())}
        self.prometheus = Prometheus(directory, targets, {
            f"{name}.yaml": shorten(load_rules(name), FACTOR) for name in ("recording", "alerts")}, INTERVAL)
        # All causes begin at once; the tests then wait for the alerts of each, end it, and wait for the alerts' ends.
        self.load("calm", calm_load)
        for name in ("hanging", "draining"):
            self.hang(name)
        if self.may_trace:
            self.daemons["draining"].terminate()
        self.load("broken", lambda daemon: Load(daemon, asking(0.1, model="nan", text="x", stopping={"max_tokens": 2})))
        self.replace_lost(models / "damaged")
        self.load("queue", hungry_load)
        self.load("kv", uneven_load)
        if smollm2:
            self.load("slow", heavy_load)
        self.prometheus.wait("the first scrapes", lambda: {labels["instance"] for labels, value in self.prometheus.query("up == 1")} >=
                             set(self.daemons))

    def crashing(self):
        return Daemon(f"crashing={self.tiny}", http_listen=self.crash_port)

    def load(self, name, make):
        self.loads[name] = make(self.daemons[name])

    def hang(self, name):
        """Stops the engine's thread within a request."""
        daemon = self.daemons[name]
        client = daemon.client()
        call = client.Generate(text="x", stopping={"max_tokens": 4000, "ignore_eos": True}, output={"num_outputs": 4}, timeout=120)

        def read():
            with contextlib.suppress(grpc.RpcError):  # it may be killed while it hangs
                for _ in call:
                    pass
        threading.Thread(target=read, daemon=True).start()
        while not daemon.metric("nibble_requests_running"):
            time.sleep(0.005)
        try:
            self.frozen.append((name, freeze(daemon.process.pid, "nibble-engine")))
        except PermissionError:
            self.may_trace = False
            return
        assert daemon.metric("nibble_requests_running") == 1

    def thaw(self, name):
        for frozen in [frozen for frozen in self.frozen if frozen[0] == name]:
            self.frozen.remove(frozen)
            thaw(frozen[1])

    def need_trace(self):
        if not self.may_trace:
            pytest.skip("this machine does not allow ptrace, so that no thread can be made to hang")

    def replace_lost(self, path):
        admin = Client(self.daemons["broken"].admin)
        with contextlib.suppress(grpc.RpcError):
            list(admin.LoadModel(name="lost", path=str(path), replace_policy="REPLACE_POLICY_DRAIN_THEN_LOAD"))
        admin.close()

    def expect(self, name, **labels):
        """Waits until the alert fires."""
        alert = self.prometheus.wait(f"{name} {labels}", lambda: self.prometheus.alerts(name, **labels))[0]
        for text in alert["annotations"].values():
            assert "<error" not in text and "{{" not in text and "no value" not in text, text
        self.fired.add(name)

    def expect_end(self, name, **labels):
        self.prometheus.wait(f"the end of {name} {labels}", lambda: not self.prometheus.alerts(name, **labels))

    def close(self):
        for name in list(self.daemons):
            self.thaw(name)  # a traced thread would keep its process from ending
        for daemon in self.daemons.values():
            daemon.stop()
        for load in self.loads.values():
            load.stop()
        if hasattr(self, "prometheus"):
            self.prometheus.stop()


@pytest.fixture(scope="module")
def scene(tmp_path_factory, tiny_path, request):
    try:
        smollm2 = request.getfixturevalue("smollm2_path")
    except pytest.skip.Exception:
        smollm2 = None
    made = Scene.__new__(Scene)
    try:
        made.__init__(tmp_path_factory.mktemp("monitoring"), tiny_path, smollm2)
        yield made
    finally:
        made.close()


# ---- What is scraped ----------------------------------------------------------------------------------------------------


def test_metrics_are_as_prometheus_likes_them(scene):
    _, text = scene.daemons["calm"].get("/metrics")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=20)
    complaints = [line for line in checked.stderr.splitlines() if not line.startswith("vllm:")]
    assert checked.returncode in (0, 3) and not complaints, complaints  # vLLM's names have colons


def test_the_table_of_metrics_is_what_is_scraped(scene):
    _, text = scene.daemons["calm"].get("/metrics")
    written = run(sys.executable, DASHBOARDS / "metrics_table.py", input=text)
    assert written == (DASHBOARDS / "metrics.md").read_text(), "curl /metrics | deploy/dashboards/metrics_table.py"


def test_a_picker_finds_one_series_a_daemon(scene):
    assert len(scene.prometheus.query('count by (model) (nibble_requests_running{instance="broken"})')) == 2
    for name in PICKED:
        counts = scene.prometheus.query(f"count by (instance) ({name})")
        assert len(counts) >= len(scene.daemons) - 1 and all(count == 1 for _, count in counts), (name, counts)


def selectors_of(expression):
    return [name + (matchers or "") for name, matchers in re.findall(NAMES + r"(\{[^}]*\})?", expression)]


def substitute(expression):
    for variable, value in {"$__rate_interval": "3s", "$job": "(nibble)", "$instance": "(calm)", "$model": "(calm)"}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def queries_of(board):
    """(where, expression) of all targets of all panels."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", substitute(target["expr"])


@pytest.mark.parametrize("name", ["overview.json", "model.json", "slo.json"])
def test_every_panel_shows_something(scene, name):
    empty = {}
    queries = list(queries_of(dashboards()[name]))
    assert len(queries) > 10

    def missing():
        empty.clear()
        for where, expression in queries:
            if not any(math.isfinite(value) for _, value in scene.prometheus.query(expression)):
                empty[where] = expression
        return not empty
    try:
        scene.prometheus.wait("all panels", missing, timeout=15)
    except AssertionError:
        pytest.fail(f"no value: {json.dumps(empty, indent=1)}")


def test_variables_and_annotations_of_dashboards_find_series(scene):
    for board in dashboards().values():
        for variable in board["templating"]["list"][1:]:
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
            assert scene.prometheus.query(f"count by ({label}) ({substitute(selector)})")[0][0][label]
        for annotation in board["annotations"]["list"]:
            scene.prometheus.query(substitute(annotation["expr"]))  # parses
            for selector in selectors_of(substitute(annotation["expr"])):
                assert scene.prometheus.query(selector)


def test_every_rule_names_series_that_exist(scene):
    def unknown():
        return [selector for name in ("recording", "alerts") for group in load_rules(name)["groups"] for rule in group["rules"]
                for selector in selectors_of(rule["expr"]) if not scene.prometheus.query(selector)]
    scene.prometheus.wait("recorded series", lambda: not unknown(), timeout=10)
    assert {rule["health"] for rule in scene.prometheus.rules()} == {"ok"}


def test_autoscalers_of_the_chart_find_series(scene):
    rendered = [document for path in GOLDEN.glob("*.yaml") for document in yaml.safe_load_all(path.read_text()) if document]
    queries = [trigger["metadata"]["query"] for document in rendered if document.get("kind") == "ScaledObject"
               for trigger in document["spec"]["triggers"]]
    pods = [metric["pods"]["metric"]["name"] for document in rendered if document.get("kind") == "HorizontalPodAutoscaler"
            for metric in document["spec"]["metrics"]]
    if not queries and not pods:
        pytest.skip("the chart has no autoscaler in tests/deploy/golden")
    for query in queries + pods:
        found = scene.prometheus.query(query)
        assert found and all(math.isfinite(value) for _, value in found), query


# ---- Alerts and their causes --------------------------------------------------------------------------------------------


def need_slow(scene):
    if "slow" not in scene.daemons:
        pytest.skip("no SmolLM2 model: tests/run fetches it")


def test_answers_that_come_too_slowly(scene):
    need_slow(scene)
    scene.expect("NibbleFirstTokenBurn", model="slow", severity="critical")
    scene.expect("NibbleNextTokenBurn", model="slow", severity="critical")
    scene.loads["slow"].stop()  # the alerts' ends take longest: they are waited for below


def test_a_killed_daemon_is_down_and_one_that_crashes_again_and_again_is_told_apart(scene):
    for last in (False, False, True):
        scene.daemons["crashing"].stop()  # kill -9
        if last:
            scene.expect("NibbleDown", instance="crashing")
        scene.daemons["crashing"] = scene.crashing()
        started = scene.daemons["crashing"].metric("process_start_time_seconds")
        scene.prometheus.wait("a scrape of the new process", lambda: any(
            value == started for _, value in scene.prometheus.query('process_start_time_seconds{instance="crashing"}')))
    scene.expect("NibbleRestarting", instance="crashing")
    scene.expect_end("NibbleDown", instance="crashing")


def test_a_broken_checkpoint_and_a_load_that_fails(scene):
    scene.expect("NibbleBadLogits", instance="broken", model="nan")
    scene.expect("NibbleAvailabilityBurn", model="nan", severity="critical")
    scene.expect("NibbleModelFailed", instance="broken", model="lost")
    scene.expect("NibbleNotReady", instance="broken")
    scene.replace_lost(scene.directory / "models/good")
    scene.expect_end("NibbleModelFailed", instance="broken")
    scene.expect_end("NibbleNotReady", instance="broken")


def test_too_many_connections_for_the_descriptors_allowed(scene):
    daemon = scene.daemons["broken"]
    used = int(daemon.metric("process_open_fds"))
    _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (used + 50, hard))
    host, port = daemon.address.rsplit(":", 1)
    with contextlib.ExitStack() as connections:
        for _ in range(int(0.9 * (used + 50)) - used):
            connections.enter_context(socket.create_connection((host, int(port))))
        scene.expect("NibbleFileDescriptors", instance="broken")
    scene.expect_end("NibbleFileDescriptors", instance="broken")


def test_more_clients_than_the_queue_holds(scene):
    scene.expect("NibbleQueueNearlyFull", instance="queue", model="queue")
    scene.expect("NibbleRejecting", instance="queue", model="queue")
    scene.expect("NibbleAvailabilityBurn", model="queue", severity="critical")
    scene.loads["queue"].stop()
    for name in ("NibbleRejecting", "NibbleQueueNearlyFull"):
        scene.expect_end(name, model="queue")


def test_a_pool_too_small_for_what_is_admitted(scene):
    scene.expect("NibblePreempting", instance="kv", model="kv")
    scene.expect("NibbleKvFull", instance="kv", model="kv")
    scene.loads["kv"].stop()
    for name in ("NibblePreempting", "NibbleKvFull"):
        scene.expect_end(name, model="kv")


def test_an_engine_that_hangs(scene):
    scene.need_trace()
    scene.expect("NibbleNoProgress", instance="hanging", model="hanging")
    scene.expect("NibbleNotLive", instance="hanging")
    scene.thaw("hanging")
    scene.expect_end("NibbleNoProgress", instance="hanging")
    scene.expect_end("NibbleNotLive", instance="hanging")


def test_a_drain_that_does_not_end(scene):
    scene.need_trace()
    scene.expect("NibbleDrainTooLong", instance="draining", model="draining")
    scene.expect("NibbleNotReady", instance="draining")
    scene.thaw("draining")
    assert scene.daemons["draining"].wait(20) == 0
    scene.expect_end("NibbleDrainTooLong", instance="draining")


def test_answers_that_come_in_time_again(scene):
    need_slow(scene)
    for name in ("NibbleFirstTokenBurn", "NibbleNextTokenBurn"):
        scene.expect_end(name, model="slow", severity="critical")


def test_the_calm_daemon_caused_no_alert(scene):
    for matcher in ('instance="calm"', 'model="calm"'):
        assert not scene.prometheus.query(f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing",{matcher}}}[10m]))')


def test_nothing_is_left_and_every_alert_has_fired(scene):
    for load in scene.loads.values():
        load.stop()
    for daemon in scene.daemons.values():
        daemon.stop()
    scene.expect("NibbleAbsent")
    skipped = set() if "slow" in scene.daemons else {"NibbleFirstTokenBurn", "NibbleNextTokenBurn"}
    skipped |= set() if scene.may_trace else {"NibbleNoProgress", "NibbleNotLive", "NibbleDrainTooLong"}
    assert scene.fired == {rule["alert"] for rule in every_alert()} - ONLY_IN_UNIT_TESTS - skipped
