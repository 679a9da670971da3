"""A device that fails takes its streams with it, says so, and ends the process for its supervisor."""

import grpc
import pytest

from daemon import Client, Daemon, details

ENDLESS = dict(text="tell me", sampling={"seed": 5}, stopping={"max_tokens": 2000, "ignore_eos": True})


def test_streams_end_internal_and_the_daemon_exits_4(tiny_path):
    with Daemon(f"tiny={tiny_path}", args=["--drain-timeout", "30s"],
                env={"NIBBLE_FAULT_AT_STEP": "60"}) as daemon:
        client = daemon.client()
        assert client.serving() and client.serving("tiny")
        call = client.Generate(**ENDLESS)
        seen = []
        with pytest.raises(grpc.RpcError) as caught:
            for response in call:
                seen.append(response.WhichOneof("event"))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert details(caught.value)["reason"] == "DEVICE_FAULT"
        assert "chunk" in seen and "finished" not in seen
        assert daemon.wait(20) == 4
    assert any("the device failed" in line and "step 60" in line for line in daemon.log), daemon.log


def test_a_fault_before_any_output_is_unavailable(tiny_path):
    # At step 1000 both have come, and one waits for the other's end.
    with Daemon(f"tiny={tiny_path}", args=["--max-batch", "1"], env={"NIBBLE_FAULT_AT_STEP": "1000"}) as daemon:
        client, other = daemon.client(), Client(daemon.address)
        calls = [each.Generate(**ENDLESS) for each in (client, other)]
        codes = set()
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                for _ in call:
                    pass
            codes.add(caught.value.code())
            assert details(caught.value)["reason"] == "DEVICE_FAULT"
        assert codes == {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
        assert daemon.wait(20) == 4
