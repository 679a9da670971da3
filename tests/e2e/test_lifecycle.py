"""Start, drain, replace, refuse: no stream is lost."""

import concurrent.futures
import signal
import subprocess
import time

import grpc
import pytest

import tiny_model
from daemon import BIN, Client, Daemon, details

LONG = dict(text="tell me", sampling={"seed": 5}, stopping={"max_tokens": 400, "ignore_eos": True})


def test_sigterm_finishes_streams_and_refuses_new_ones(tiny_path):
    with Daemon(f"tiny={tiny_path}") as daemon:
        client = daemon.client()
        calls = [client.Generate(**LONG) for _ in range(20)]
        for call in calls:
            assert next(call).WhichOneof("event") == "started"
        daemon.terminate()
        time.sleep(0.05)
        with pytest.raises(grpc.RpcError) as caught:
            client.ask(text="late")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        for call in calls:
            assert [r for r in call][-1].WhichOneof("event") == "finished"
        assert daemon.wait() == 0


@pytest.fixture(scope="module")
def long_path(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "long", context=65536)


def start_endless(client, **fields):
    """An answer that takes any device seconds, of which nothing is sent before its end: no reader is too slow for it."""
    call = client.Generate(text="x", sampling={"seed": 1}, stopping={"ignore_eos": True}, output={"final_only": True},
                           **fields)
    assert next(call).WhichOneof("event") == "started"
    return call


def test_drain_deadline_ends_what_is_left(long_path):
    with Daemon(f"long={long_path}", args=["--kv-memory", "64MiB", "--drain-timeout", "300ms",
                                           "--log-format", "json"]) as daemon:
        call = start_endless(daemon.client(), request_id="left over")
        daemon.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert daemon.wait(10) == 0
        records = daemon.log_records()
        assert [(record["level"], record["reason"]) for record in records if record.get("request") == "left over"] \
            == [("warning", "DRAINING")], records


def test_second_signal_exits_now(long_path):
    with Daemon(f"long={long_path}", args=["--kv-memory", "64MiB"]) as daemon:
        call = start_endless(daemon.client())
        daemon.terminate()
        time.sleep(0.1)
        assert daemon.process.poll() is None
        begin = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait(5)
        assert time.monotonic() - begin < 1
        call.cancel()


@pytest.mark.parametrize("policy", ["REPLACE_POLICY_LOAD_THEN_DRAIN", "REPLACE_POLICY_DRAIN_THEN_LOAD"])
def test_replace_loses_no_stream(tmp_path, policy):
    """200 streams across a replace: each ends OK, from exactly one revision."""
    old = tiny_model.write(tmp_path / "old", seed=1)
    tiny_model.write(tmp_path / "new", seed=2)
    with Daemon(f"m={old}", args=["--admin-listen", "127.0.0.1:0", "--model-root", str(tmp_path),
                                  "--max-queue", "512"]) as daemon:
        client, admin = daemon.client(), Client(daemon.admin)
        revisions = []

        def stream(i):
            time.sleep(i * 0.01)
            while True:
                try:
                    answer = client.ask(text=f"stream {i}", sampling={"seed": i},
                                        stopping={"max_tokens": 60, "ignore_eos": True})
                    assert answer.finished[0].completion_tokens == 60
                    return answer.started.model_revision
                except grpc.RpcError as error:  # between unload and load there may be no model
                    if policy == "REPLACE_POLICY_DRAIN_THEN_LOAD" and error.code() == grpc.StatusCode.UNAVAILABLE \
                            and details(error)["retry"] is not None:
                        time.sleep(details(error)["retry"])
                        continue
                    raise
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            futures = [pool.submit(stream, i) for i in range(200)]
            time.sleep(0.6)
            events = list(admin.LoadModel(name="m", path=str(tmp_path / "new"), replace_policy=policy))
            revisions = [future.result() for future in futures]
        assert events[-1].WhichOneof("event") == "model"
        assert any(event.WhichOneof("event") == "progress" for event in events)
        assert len(set(revisions)) == 2
        assert client.GetModel(model="m").model.revision == events[-1].model.revision


def test_admin_stays_inside_the_root(tmp_path):
    model = tiny_model.write(tmp_path / "root" / "m")
    tiny_model.write(tmp_path / "outside")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    with Daemon(f"m={model}", args=["--admin-listen", "127.0.0.1:0", "--model-root", str(tmp_path / "root")]) as daemon:
        admin = Client(daemon.admin)
        for path in (tmp_path / "outside", tmp_path / "root" / ".." / "outside", tmp_path / "root" / "link",
                     "/etc/passwd", "../outside"):
            with pytest.raises(grpc.RpcError) as caught:
                list(admin.LoadModel(name="other", path=str(path)))
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED, path
        with pytest.raises(grpc.RpcError) as caught:
            list(admin.LoadModel(name="m", path=str(model)))
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
        plan = admin.PlanLoad(path=str(model)).plan
        assert plan.total_bytes > 0
        assert list(admin.LoadModel(name="second", path=str(model)))[-1].model.name == "second"
        client = daemon.client()
        assert client.ask(model="second", text="x", stopping={"max_tokens": 2}).finished
        admin.UnloadModel(name="second")
        with pytest.raises(grpc.RpcError) as caught:
            client.ask(model="second", text="x")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            daemon.client().channel.unary_unary("/nibble.v1.AdminService/UnloadModel")(b"", timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_several_models(tmp_path):
    first, second = tiny_model.write(tmp_path / "a", seed=1), tiny_model.write(tmp_path / "b", seed=2)
    with Daemon(f"a={first}", f"b={second},max-context=512") as daemon:
        client = daemon.client()
        ask = dict(text="x", sampling={"temperature": 0.0}, stopping={"max_tokens": 16, "ignore_eos": True})
        a, b, default = (client.ask(model=name, **ask) for name in ("a", "b", ""))
        assert a.text == default.text != b.text
        assert client.GetModel(model="b").model.memory.max_context == 512


def test_queue_full_is_refused_with_a_retry(tiny_path):
    with Daemon(f"tiny={tiny_path}", args=["--max-queue", "4", "--max-batch", "2"]) as daemon:
        client = daemon.client()

        def ask(i):
            try:
                client.ask(text=f"{i}", stopping={"max_tokens": 300, "ignore_eos": True})
                return None
            except grpc.RpcError as error:
                return error
        with concurrent.futures.ThreadPoolExecutor(60) as pool:
            errors = [error for error in pool.map(ask, range(60)) if error]
        assert errors
        for error in errors:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details(error)["reason"] == "ERROR_REASON_QUEUE_FULL" or details(error)["reason"] == "QUEUE_FULL"
            assert details(error)["retry"] > 0


def test_what_can_never_fit_is_refused_with_numbers(tiny_path):
    with Daemon(f"tiny={tiny_path}", args=["--kv-memory", "256KiB"]) as daemon:
        with pytest.raises(grpc.RpcError) as caught:
            daemon.client().ask(tokens={"ids": [97] * 3000})
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "EXCEEDS_KV_POOL" in details(caught.value)["reason"]


def tls_files(directory):
    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=directory)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test ca",
            "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext",
                "subjectAltName=DNS:localhost", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (directory / "ext").write_text("subjectAltName=DNS:localhost\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")
    return {path.name: path for path in directory.iterdir()}


def test_tls_and_mutual_tls(tmp_path, tiny_path):
    files = tls_files(tmp_path)
    ca, key, cert = (files[name].read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    options = [("grpc.ssl_target_name_override", "localhost")]
    args = ["--tls-cert", str(files["server.pem"]), "--tls-key", str(files["server.key"])]
    with Daemon(f"tiny={tiny_path}", args=args) as daemon:
        client = daemon.client(credentials=grpc.ssl_channel_credentials(ca), options=options)
        assert client.ask(text="x", stopping={"max_tokens": 2}).finished
    with Daemon(f"tiny={tiny_path}", args=[*args, "--tls-client-ca", str(files["ca.pem"])]) as daemon:
        client = daemon.client(credentials=grpc.ssl_channel_credentials(ca, key, cert), options=options)
        assert client.ask(text="x", stopping={"max_tokens": 2}).finished
        stranger = grpc.secure_channel(daemon.address, grpc.ssl_channel_credentials(ca), options)
        with pytest.raises(grpc.RpcError):
            stranger.unary_unary("/nibble.v1.ModelService/ListModels")(b"", timeout=5)


def test_unix_socket(tmp_path, tiny_path):
    with Daemon(f"tiny={tiny_path}", grpc_listen=f"unix:{tmp_path}/nibble.sock") as daemon:
        assert Client(f"unix:{tmp_path}/nibble.sock").ask(text="x", stopping={"max_tokens": 2}).finished


@pytest.mark.parametrize("args,code,said", [
    (["--no-such-flag"], 2, "no-such-flag"), (["--max-quue", "3"], 2, "max-queue"), (["--max-queue", "-3"], 2, "max-queue"),
    (["--memory", "lots"], 2, "memory"), (["/no/such/model"], 3, "/no/such/model"), ([], 2, "MODEL")])
def test_exit_codes(args, code, said):
    result = subprocess.run([str(BIN), "serve", *args, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
                            capture_output=True, text=True, timeout=30)
    assert result.returncode == code, result.stderr
    assert said.lower() in (result.stderr + result.stdout).lower()
    assert len(result.stderr.splitlines()) < 20


def test_print_config_knows_sources(tmp_path, tiny_path):
    config = tmp_path / "nibble.yaml"
    config.write_text("max-queue: 7\nmax-itl: 20ms\n")
    result = subprocess.run([str(BIN), "serve", str(tiny_path), "--config", str(config), "--max-itl", "30ms",
                             "--print-config"], capture_output=True, text=True, timeout=30,
                            env={"NIBBLE_MAX_BATCH": "5", "PATH": "/usr/bin"})
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert any("max-queue" in line and "7" in line and "nibble.yaml" in line for line in text.splitlines())
    assert any("max-itl" in line and "30" in line and "command line" in line for line in text.splitlines()), text
    assert any("max-batch" in line and "5" in line and "NIBBLE_MAX_BATCH" in line for line in text.splitlines())
