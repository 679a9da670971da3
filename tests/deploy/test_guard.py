"""The guard in front of a daemon: attacks end at it, and whatever else the daemon offers passes unharmed."""

import concurrent.futures
import json
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2

import attacks
import tiny_model
from daemon import Client, Daemon, details
from guard import Guard, cpu_seconds, resident_bytes
from tls import tls_files

CANARY = dict(text="canary", sampling={"temperature": 0.0}, stopping={"max_tokens": 1500, "ignore_eos": True},
              output={"output_token_ids": True})
ENDLESS = dict(text="x", sampling={"seed": 1}, stopping={"ignore_eos": True})
LONGEST_GAP = 0.5  # seconds between two tokens of the canary, on two cores that an attacker shares; or, on a busy
TIMES_QUIET = 5  # machine, so many times the longest gap without an attack
MAX_REQUEST = 4 << 20


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "m", layers=4, hidden=256, heads=8, kv_heads=4,
                            intermediate=512, context=8192)


@pytest.fixture(scope="module")
def daemon(model):
    # A pool whose pages are all there when it is ready: what is spent later is spent on requests.
    with Daemon(f"m={model}", args=("--kv-memory=128MiB",)) as running:
        yield running


@pytest.fixture(scope="module")
def guard(daemon, tmp_path_factory):
    with Guard(tmp_path_factory.mktemp("guard"), daemon.address) as running:
        yield running


@pytest.fixture(scope="module")
def client(guard):
    client = Client(guard.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def watch(client):
    """A stream that is idle for as long as the module runs."""
    call = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(call).status == health_pb2.HealthCheckResponse.SERVING
    yield call, time.monotonic()
    call.cancel()


@pytest.fixture(autouse=True)
def _watched_throughout(watch):
    yield
    assert watch[0].is_active(), "a stream that only waits has ended"


# --- attacks ---

def longest_gap(answer):
    return max(later - earlier for earlier, later in zip(answer.times, answer.times[1:]))


class CanaryLoop:
    """Asks the same thing again and again, beside an attack: `check` demands that nobody noticed."""

    def __init__(self, client):
        self.client, self.answers, self.stop = client, [], threading.Event()
        quiet = client.ask(**CANARY)
        self.expected, self.longest = list(quiet.ids[0]), max(LONGEST_GAP, TIMES_QUIET * longest_gap(quiet))
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.stop.is_set() or not self.answers:
            try:
                self.answers.append(self.client.ask(**CANARY))
            except grpc.RpcError as error:
                self.answers.append(error)
                return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def check(self):
        failed = [answer for answer in self.answers if isinstance(answer, grpc.RpcError)]
        assert not failed, failed
        assert all(list(answer.ids[0]) == self.expected for answer in self.answers)
        assert max(map(longest_gap, self.answers)) < self.longest


def attack(name, address, amount, times):
    """The outcomes of an attack from another process, whose work is not the canary's client's."""
    done = subprocess.run([sys.executable, attacks.__file__, name, address, str(amount), str(times)],
                          capture_output=True, text=True, timeout=60, check=True)
    return [attacks.Outcome(**json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name,amount,counter", [
    ("huge_header", 16, "downstream_cx_protocol_error"),
    ("endless_headers", 64, "downstream_cx_protocol_error"),
    ("rapid_reset", 20_000, "downstream_rq_too_many_premature_resets"),
    ("ping_flood", 500_000, "outbound_control_flood"),
    ("empty_data", 10_000, "inbound_empty_frames_flood")])
def test_an_attack_ends_at_the_guard(daemon, guard, client, name, amount, counter):
    times = 2
    with CanaryLoop(client) as canary:
        before = guard.stat(counter)
        outcomes = attack(name, guard.address, amount, times)
    canary.check()
    assert len(outcomes) == times and all(outcome.cut for outcome in outcomes), outcomes
    assert guard.stat(counter) - before >= times, guard.stats("http")

    # Alone with the daemon, so that what it spends is spent on the attack.
    spent, resident = cpu_seconds(daemon.process), [resident_bytes(p.process) for p in (daemon, guard)]
    attack(name, guard.address, amount, 1)
    assert cpu_seconds(daemon.process) - spent < 0.1
    for process, held in zip((daemon, guard), resident):
        assert resident_bytes(process.process) < held + (16 << 20)
    assert client.serving()


def test_without_a_guard_they_cost(daemon):
    """The same, sent to the daemon itself: all of it is taken, and paid for."""
    for name, amount in (("huge_header", 8), ("rapid_reset", 10_000)):
        spent = cpu_seconds(daemon.process)
        outcome, = attack(name, daemon.address, amount, 1)
        until(lambda: running(daemon) == 0)
        assert not outcome.cut and cpu_seconds(daemon.process) - spent > 0.1, (name, outcome)


def test_without_the_limit_bad_base64_ends_the_streams_of_others(daemon, tmp_path):
    with Guard(tmp_path, daemon.address,
               edit=lambda text: text.replace('suffix: "-bin"', 'suffix: "-nothing"')) as open_guard:
        client = Client(open_guard.address)
        watch = client.health.Watch(health_pb2.HealthCheckRequest())
        next(watch)

        def ended():
            attacks.odd_headers(open_guard.address, [("x-bin", "not base64 !")], "headers")
            return not watch.is_active()
        until(ended)
        client.close()


@pytest.mark.parametrize("extra", [
    [("te", "x")], [(":scheme", "x")], [("grpclb_client_stats", "x")], [("pad", "p" * 8150), ("te", "x")],
    [("x-bin", "not base64 !")], [("grpc-trace-bin", "?")], [("grpc-timeout", "never")],
    [("x", "y" * 9000)], [("x", "y" * 15_000)], [(f"x{i}", "y" * 200) for i in range(50)],
    [("x", "y" * 100_000)], [(f"x{i}", "y") for i in range(500)]],
    ids=lambda extra: f"{extra[-1][0]}-{sum(len(name + value) for name, value in extra)}")
@pytest.mark.parametrize("where", ["headers", "trailers"])
def test_odd_headers_harm_nobody(guard, client, where, extra):
    """Clients share a connection to the daemon: what would close it, or confuse it, would end the others' streams."""
    stream = client.Generate(**CANARY)
    next(stream)
    for _ in range(4):  # some for each of the guard's threads, of which each has its connection
        attacks.odd_headers(guard.address, extra, where)
    assert [response for response in stream][-1].WhichOneof("event") == "finished"


def test_idle_connections_are_bounded(daemon, tmp_path):
    most = 40
    with Guard(tmp_path, daemon.address, edit=lambda text: text.replace(
            "max_active_downstream_connections: 1024", f"max_active_downstream_connections: {most}")) as guard:
        client = Client(guard.address)
        sockets = attacks.idle_connections(guard.address, 3 * most)
        try:
            until(lambda: guard.stat(r"downstream_global_cx_overflow|rejected") >= 2 * most)
            assert client.ask(text="x", stopping={"max_tokens": 2}).finished, "who was there before stays"
        finally:
            for idle in sockets:
                idle.close()
        until(lambda: Client(guard.address).serving())
        client.close()


def test_http_1_and_what_is_not_grpc_go_no_further(daemon, guard):
    before = daemon.metrics()
    with socket.create_connection(guard.address.rsplit(":", 1)) as plain:
        plain.sendall(b"POST /nibble.v1.GenerationService/Generate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        plain.settimeout(5)
        while plain.recv(1 << 16):
            pass  # SETTINGS and GOAWAY, then the end
    refused = guard.stat("http.guard.downstream_rq_4xx")
    page = attacks.Connection(guard.address)
    page.send(attacks.frames_of(attacks.request_headers(content_type="text/html"), attacks.END_STREAM))
    until(lambda: guard.stat("http.guard.downstream_rq_4xx") > refused)
    page.end(1, settle=0)
    assert {k: v for k, v in daemon.metrics().items() if "requests_total" in k} == \
        {k: v for k, v in before.items() if "requests_total" in k}


# --- what passes ---

def running(daemon):
    return daemon.metric("nibble_requests_running") + daemon.metric("nibble_requests_waiting")


def used_blocks(daemon):
    return daemon.metric("nibble_kv_blocks", state="used")


def test_an_answer_is_the_same_and_streams(daemon, client):
    direct = daemon.client()
    answer = client.ask(**CANARY)
    assert answer.ids == direct.ask(**CANARY).ids
    assert len(answer.times) > 100 and answer.times[-1] - answer.times[0] > 0.05, "it came bit by bit"
    direct.close()


def test_a_cancel_reaches_the_daemon(daemon, client):
    calls = [client.Generate(**ENDLESS) for _ in range(3)]
    for call in calls:
        next(call)
    assert used_blocks(daemon) > 0
    for call in calls:
        call.cancel()
    until(lambda: used_blocks(daemon) == 0 and running(daemon) == 0, 5)


def test_a_refusal_keeps_its_details(client):
    with pytest.raises(grpc.RpcError) as caught:
        client.ask(text="x", sampling={"temperature": -1})
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)["fields"] == ["sampling.temperature"]
    with pytest.raises(grpc.RpcError) as caught:
        client.ask(text="x", sampling={"logit_bias": {1000 + i: 1.0 for i in range(200)}}, request_id="\x00" * 500)
    assert len(details(caught.value)["fields"]) >= 2, caught.value


def test_a_deadline_is_the_daemons(daemon, client):
    before = daemon.metric("nibble_requests_total", code="DEADLINE_EXCEEDED")
    with pytest.raises(grpc.RpcError) as caught:
        for _ in client.Generate(**ENDLESS, timeout=0.2):
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: daemon.metric("nibble_requests_total", code="DEADLINE_EXCEEDED") == before + 1)
    assert used_blocks(daemon) == 0


def test_messages_up_to_the_limit(client):
    largest = client.ask(text="a" * (MAX_REQUEST - 64), truncate_prompt_tokens=8, stopping={"max_tokens": 2})
    assert largest.started.prompt_tokens <= 9
    with pytest.raises(grpc.RpcError) as caught:
        client.ask(text="a" * (MAX_REQUEST + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    whole = client.ask(text="b" * 7000, stopping={"max_tokens": 900, "ignore_eos": True}, output={"final_only": True})
    assert whole.finished[0].completion_tokens == 900 and len(whole.times) == 1


def test_many_streams_of_one_client(client):
    ask = dict(text="many", stopping={"max_tokens": 32, "ignore_eos": True}, output={"output_token_ids": True})
    with concurrent.futures.ThreadPoolExecutor(150) as pool:
        answers = list(pool.map(lambda i: client.ask(**ask, sampling={"seed": i % 5}), range(150)))
    for i, answer in enumerate(answers):
        assert answer.ids == answers[i % 5].ids


def test_readers_that_do_not_read_stop_nobody(daemon, client):
    fat = dict(text="fat", stopping={"max_tokens": 8000, "ignore_eos": True}, output={"top_logprobs": 20})
    slow = Client(client.address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0),
                                           ("grpc.http2.lookahead_bytes", 65536)])
    calls = [slow.Generate(**fat) for _ in range(3)]
    for call in calls:
        next(call)
    answer = client.ask(**{**CANARY, "stopping": {"max_tokens": 200, "ignore_eos": True}})
    assert answer.reason() == "FINISH_REASON_LENGTH"
    ends = []
    until(lambda: daemon.metric("nibble_requests_total", code="ABORTED") >= 1 or running(daemon) == 0, 30)
    for call in calls:
        try:
            ends.append([response for response in call][-1].WhichOneof("event"))
        except grpc.RpcError as error:
            ends.append(error.code())
    assert set(ends) <= {"finished", grpc.StatusCode.ABORTED}, ends
    assert grpc.StatusCode.ABORTED in ends, ends
    assert used_blocks(daemon) == 0
    slow.close()


def test_a_client_that_vanished_is_noticed(daemon, tmp_path):
    """Its connection stays open, but nobody answers pings."""
    with Guard(tmp_path, daemon.address, edit=lambda text: text.replace(
            "{interval: 30s, timeout: 10s}", "{interval: 1s, timeout: 1s}")) as guard:
        template = Client(guard.address)
        message = template.requests["Generate"](**ENDLESS).SerializeToString()
        template.close()
        connection = attacks.Connection(guard.address)
        connection.send(attacks.frame(attacks.HEADERS, attacks.END_HEADERS, 1, attacks.request_headers())
                        + attacks.frame(attacks.DATA, attacks.END_STREAM, 1,
                                        b"\x00" + len(message).to_bytes(4, "big") + message))
        until(lambda: used_blocks(daemon) > 0)
        until(lambda: used_blocks(daemon) == 0)
        assert connection.end(1, settle=5).cut


def test_old_connections_go_gently(daemon, tmp_path):
    with Guard(tmp_path, daemon.address, CONNECTION_AGE="0.5s",
               edit=lambda text: text.replace("drain_timeout: 5s", "drain_timeout: 0.3s")) as guard:
        client = Client(guard.address)
        long = client.Generate(**{**CANARY, "stopping": {"max_tokens": 5000, "ignore_eos": True}}, timeout=60)
        first = next(long)
        begin = time.monotonic()
        while time.monotonic() < begin + 2:
            assert client.ask(text="x", stopping={"max_tokens": 2}).finished
        assert guard.stat("http.guard.downstream_cx_max_duration_reached") >= 1
        assert guard.stat("http.guard.downstream_cx_total") >= 2
        assert first.WhichOneof("event") == "started" and [r for r in long][-1].WhichOneof("event") == "finished"
        client.close()


def test_health_is_watched_through_it(model, tmp_path):
    with Daemon(f"m={model}") as daemon, Guard(tmp_path, daemon.address) as guard:
        client = Client(guard.address)
        watch = client.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stream = client.Generate(**CANARY)
        next(stream)
        daemon.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            client.ask(text="x")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert [r for r in stream][-1].WhichOneof("event") == "finished"
        assert daemon.wait(20) == 0
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            client.ask(text="nobody is there", timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() - begin < 2
        client.close()


def test_mutual_tls(daemon, tmp_path):
    files, others = tls_files(tmp_path / "ours"), tls_files(tmp_path / "theirs")
    ca = files["ca.pem"].read_bytes()
    options = [("grpc.ssl_target_name_override", "localhost")]

    def ask(guard, key=None, cert=None):
        keys = [path.read_bytes() for path in (key, cert) if path is not None]
        client = grpc.secure_channel(guard.address, grpc.ssl_channel_credentials(ca, *keys), options)
        with client:
            return client.unary_unary("/nibble.v1.ModelService/ListModels")(b"", timeout=5)
    tls = dict(CERT=files["server.pem"], KEY=files["server.key"])
    with Guard(tmp_path / "tls", daemon.address, **tls) as guard:
        assert ask(guard)
    with Guard(tmp_path / "mtls", daemon.address, **tls, CLIENT_CA=files["ca.pem"]) as guard:
        assert ask(guard, files["client.key"], files["client.pem"])
        client = Client(guard.address, options=options, credentials=grpc.ssl_channel_credentials(
            ca, files["client.key"].read_bytes(), files["client.pem"].read_bytes()))
        assert client.ask(text="x", stopping={"max_tokens": 2}).finished
        client.close()
        for key, cert in ((None, None), (others["client.key"], others["client.pem"])):
            with pytest.raises(grpc.RpcError) as caught:
                ask(guard, key, cert)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError):  # no TLS at all
            grpc.insecure_channel(guard.address).unary_unary("/nibble.v1.ModelService/ListModels")(b"", timeout=2)


def test_a_silent_stream_outlives_every_time_limit(guard, watch, nightly):
    """Envoy's own limits, unless switched off: 15 seconds a route, five minutes a silent stream."""
    call, since = watch
    text = guard.get("/config_dump")
    assert '"stream_idle_timeout": "0s"' in text and '"timeout": "0s"' in text
    wait = since + (330 if nightly else 17) - time.monotonic()
    if wait > 0:
        time.sleep(wait)
    assert call.is_active()
