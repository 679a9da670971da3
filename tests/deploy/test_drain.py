"""Replacing and losing a daemon under load: what clients see through the guard, with mutual TLS.

The pool does what clients of a headless Service do: one channel an endpoint, ready endpoints by health's Watch, and
another try only for what was refused as UNAVAILABLE before any response.
"""

import itertools
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tiny_model
from daemon import Answer, Client, Daemon
from guard import Guard
from ports import free_port
from tls import tls_files

STREAMS = 50
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def asks():
    """Short and long prompts, short and long answers, each seeded: they decode, prefill and queue at the same time."""
    shapes = itertools.product((10, 400, 3000), (16, 120, 400))
    return [dict(text="abcdefghij"[i:] + "lorem ipsum "[i % 7:] * (prompt // 12),
                 sampling={"seed": i, "temperature": 0.8},
                 stopping={"max_tokens": tokens, "ignore_eos": True}, output={"output_token_ids": True})
            for i, (prompt, tokens) in enumerate(shapes)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "m", layers=4, hidden=256, heads=8, kv_heads=4,
                            intermediate=512, context=8192)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return tls_files(tmp_path_factory.mktemp("tls"))


class Pod:
    """A daemon on loopback behind its guard."""

    def __init__(self, model, tls, directory, wait=True):
        upstream = f"127.0.0.1:{free_port()}"
        self.daemon = Daemon(f"m={model}", grpc_listen=upstream, args=["--max-batch", "8"], wait=wait)
        try:
            self.guard = Guard(directory, upstream, CERT=tls["server.pem"], KEY=tls["server.key"],
                               CLIENT_CA=tls["ca.pem"])
        except BaseException:
            self.daemon.stop()
            raise
        self.address = self.guard.address

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.daemon.stop()
        self.guard.stop()


def credentials(tls):
    return grpc.ssl_channel_credentials(*(tls[name].read_bytes() for name in ("ca.pem", "client.key", "client.pem")))


class Watch:
    """Follows the health of one endpoint on a thread: `states` is what it said, None where nobody answered."""

    def __init__(self, health):
        self.health, self.states, self.ended = health, [], threading.Event()
        self.call = None
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self):
        while not self.ended.is_set():
            try:
                self.call = self.health.Watch(health_pb2.HealthCheckRequest())
                for response in self.call:
                    self._say(response.status)
            except grpc.RpcError:
                pass
            self._say(None)
            self.ended.wait(0.05)

    def _say(self, state):
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    @property
    def ready(self):
        return bool(self.states) and self.states[-1] == SERVING

    def end(self):
        self.ended.set()
        if self.call is not None:
            self.call.cancel()
        self.thread.join(5)


class Pool:
    """Clients of several endpoints: `ask` runs one stream to its end, wherever an endpoint is ready."""

    def __init__(self, *, credentials):
        self.credentials, self.endpoints, self.turn = credentials, {}, itertools.count()
        self.refused = 0
        self.stages = {}  # stream -> "queued", "prefilling" or "decoding"
        self.lock = threading.Lock()

    def add(self, address):
        client = Client(address, credentials=self.credentials)
        watch = Watch(client.health)
        with self.lock:
            self.endpoints[address] = (client, watch)

    def ready(self):
        with self.lock:
            return [(address, client) for address, (client, watch) in self.endpoints.items() if watch.ready]

    def ask(self, stream, fields):
        """(address, answer)."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ready = self.ready()
            if not ready:
                time.sleep(0.02)
                continue
            address, client = ready[next(self.turn) % len(ready)]
            self.stages[stream] = "queued"
            responses = []
            try:
                answer = Answer(self._staged(stream, client.Generate(**fields), responses))
                return address, answer
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or responses:
                    raise
                with self.lock:
                    self.refused += 1
                time.sleep(0.02)
            finally:
                self.stages.pop(stream, None)
        raise TimeoutError("no endpoint took the stream")

    def _staged(self, stream, call, responses):
        for response in call:
            responses.append(response.WhichOneof("event"))
            self.stages[stream] = "decoding" if responses[-1] == "chunk" else "prefilling"
            yield response

    def in_stage(self, stage):
        return [stream for stream, now in list(self.stages.items()) if now == stage]

    def close(self):
        for client, watch in self.endpoints.values():
            watch.end()
            client.close()


class Load:
    """STREAMS clients that ask without pause until told to stop."""

    def __init__(self, pool):
        self.pool, self.stop, self.done, self.failed = pool, threading.Event(), [], []
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(STREAMS)]

    def _run(self, stream):
        numbered = list(enumerate(asks()))
        for index, fields in itertools.islice(itertools.cycle(numbered), stream, None):
            if self.stop.is_set():
                return
            try:
                self.done.append((index, *self.pool.ask(stream, fields)))
            except Exception as error:  # every kind of failure is what this test is about
                self.failed.append(error)
                return

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (met := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return met


def test_a_replaced_daemon_loses_no_stream(model, tls, tmp_path):
    pool = Pool(credentials=credentials(tls))
    with Pod(model, tls, tmp_path / "old") as old:
        pool.add(old.address)
        until(pool.ready)
        undisturbed = [pool.ask(0, fields)[1].ids for fields in asks()]

        def busy_everywhere():
            stages = {stage: pool.in_stage(stage) for stage in ("queued", "prefilling", "decoding")}
            return stages if all(stages.values()) and sum(map(len, stages.values())) == STREAMS else None

        with Load(pool) as load:
            until(lambda: len(load.done) >= 20 or load.failed)
            with Pod(model, tls, tmp_path / "new") as new:
                pool.add(new.address)
                until(lambda: len(pool.ready()) == 2)
                until(lambda: any(address == new.address for _, address, _ in load.done) or load.failed)
                caught = until(busy_everywhere)
                old.daemon.terminate()
                assert old.daemon.wait(60) == 0
                until(lambda: old.guard.stat("http.guard.downstream_rq_active") <= 1)  # the pool's health watch
                old.guard.stop()
                finished_before = len(load.done)
                until(lambda: len(load.done) >= finished_before + 20 or load.failed)
                load.stop.set()
                for thread in load.threads:
                    thread.join()
                assert new.daemon.metric("nibble_requests_total", code="OK") == \
                    sum(address == new.address for _, address, _ in load.done), "each stream ran once"
    pool.close()
    assert not load.failed, load.failed[:3]
    for index, _, answer in load.done:
        assert answer.ids == undisturbed[index], f"request {index} lost, repeated or changed tokens"
    by_old = sum(address == old.address for _, address, _ in load.done)
    print(f"{len(load.done)} streams, {by_old} of the old daemon, none failed; {pool.refused} asked again; at SIGTERM "
          + ", ".join(f"{len(streams)} {stage}" for stage, streams in caught.items()))
    assert pool.refused <= STREAMS, "after the first refusal health has said it: nobody hammers a daemon that drains"


class Supervisor:
    """systemd's Restart=always, RestartSec=1, for one daemon on one address."""

    def __init__(self, model, address):
        self.model, self.address, self.ended = model, address, threading.Event()
        self.daemon, self.starts = None, 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.ended.is_set():
            self.daemon = Daemon(f"m={self.model}", grpc_listen=self.address, wait=False)
            self.starts += 1
            while self.daemon.process.poll() is None and not self.ended.wait(0.02):
                pass
            if self.ended.wait(1):
                break
        self.daemon.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "bare"])
def test_a_killed_daemon_is_back_in_seconds_and_health_says_so(model, tmp_path, guarded):
    address = f"127.0.0.1:{free_port()}"
    with Supervisor(model, address) as supervisor:
        guard = Guard(tmp_path, address) if guarded else None
        try:
            reach = guard.address if guarded else address
            channel = grpc.insecure_channel(reach, [("grpc.min_reconnect_backoff_ms", 100),
                                                    ("grpc.initial_reconnect_backoff_ms", 100),
                                                    ("grpc.max_reconnect_backoff_ms", 500)])
            watch = Watch(health_pb2_grpc.HealthStub(channel))
            until(lambda: watch.ready)
            client = Client(reach)
            expected = client.ask(**asks()[2]).ids
            stream = client.Generate(text="x", stopping={"ignore_eos": True}, timeout=30)
            next(stream)
            next(stream)

            said = len(watch.states)  # None among them, from before the daemon was up
            supervisor.daemon.process.kill()
            killed = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:  # cut, said at once, and not as a success
                for _ in stream:
                    pass
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
            with pytest.raises(grpc.RpcError) as caught:
                client.ask(text="nobody is there", timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - killed < 2, "a client waited for a daemon that is gone"

            until(lambda: None in watch.states[said:])
            until(lambda: watch.ready)
            back = time.monotonic() - killed
            # A connection of its own: channels share those to one address, and with them their waits to connect.
            answer = Client(reach, options=[("grpc.use_local_subchannel_pool", 1)]).ask(**asks()[2])
            assert answer.ids == expected and supervisor.starts == 2
            states = watch.states[watch.states.index(SERVING):]
            assert states[0] == SERVING and states[1] is None and states[-1] == SERVING, states
            assert states.count(SERVING) == 2, f"SERVING was said of a daemon that did not serve: {states}"
            assert back < 15
            print(f"back after {back:.1f} s: {states}")
            watch.end()
            client.close()
            channel.close()
        finally:
            if guard:
                guard.stop()
