"""What `nibble serve` is told, and what it then does."""

import concurrent.futures
import json
import threading

import grpc
import pytest

import tiny_model
from daemon import Daemon

ENDLESS = dict(text="x", sampling={"seed": 1}, stopping={"ignore_eos": True}, output={"final_only": True})


def test_default_max_tokens(tiny_path):
    with Daemon(f"tiny={tiny_path}", args=["--default-max-tokens", "7"]) as daemon:
        client = daemon.client()
        answer = client.ask(text="x", stopping={"ignore_eos": True})
        assert (answer.finished[0].completion_tokens, answer.reason()) == (7, "FINISH_REASON_LENGTH")
        assert client.ask(text="x", stopping={"ignore_eos": True, "max_tokens": 9}).finished[0].completion_tokens == 9


@pytest.mark.parametrize("mode", ["reserved", "optimistic"])
def test_admission(tiny_path, mode):
    """More streams than the pool holds: the optimistic preempt some, the reserved let them wait; all end."""
    with Daemon(f"tiny={tiny_path}", args=["--kv-memory", "384KiB", "--admission", mode]) as daemon:
        client = daemon.client()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = [pool.submit(client.ask, text=f"prompt {i}", sampling={"seed": i},
                                   stopping={"max_tokens": 300, "ignore_eos": True}) for i in range(12)]
        assert all(answer.result().finished[0].completion_tokens == 300 for answer in answers)
        assert (daemon.metric("nibble_preemptions_total") > 0) == (mode == "optimistic")


def test_connections_are_closed_gently(tmp_path):
    """A connection past its age takes no new call; what runs on it goes on, and the next call gets a new one."""
    model = tiny_model.write(tmp_path / "long", context=65536)
    with Daemon(f"long={model}", args=["--kv-memory", "64MiB", "--max-connection-age", "1s"]) as daemon:
        client, closed, seen = daemon.client(), threading.Event(), []

        def note(state):
            seen.append(state)
            if grpc.ChannelConnectivity.READY in seen[:-1] and state != grpc.ChannelConnectivity.READY:
                closed.set()
        call = client.Generate(**ENDLESS)
        assert next(call).WhichOneof("event") == "started"
        client.channel.subscribe(note)
        assert closed.wait(20), seen
        assert call.is_active()
        assert client.ask(text="y", stopping={"max_tokens": 3}).finished
        assert call.is_active()
        call.cancel()


@pytest.mark.parametrize("args,is_json", [([], True), (["--log-format", "json"], True), (["--log-format", "text"], False)],
                         ids=["unset and no terminal", "json", "text"])
def test_log_format(tiny_path, args, is_json):
    with Daemon(f"tiny={tiny_path}", args=args) as daemon:
        daemon.terminate()
        assert daemon.wait() == 0
        lines = daemon.log_lines()
    assert any("model loaded" in line for line in lines)
    for line in lines:
        assert line.startswith("{") == is_json, line
        if is_json:
            record = json.loads(line)
            assert {"time", "level", "message"} <= record.keys()


@pytest.mark.parametrize("args,wrong", [
    (["--listen", "127.0.0.1"], "--listen"), (["--listen", "127.0.0.1:99999"], "--listen"),
    (["--http", "127.0.0.1"], "--http"), (["--http", "nowhere.invalid:80"], "--http"),
    (["--admin-listen", "127.0.0.1"], "--admin-listen"), (["--model-root", "/no/such"], "--model-root"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_addresses_and_folders_are_bad_usage(tiny_path, args, wrong):
    with Daemon(f"tiny={tiny_path}", args=["--admin-listen", "127.0.0.1:0", *args], wait=False) as daemon:
        assert daemon.wait(30) == 2
        assert any(wrong in line for line in daemon.log_lines()), daemon.log
