"""What operators and orchestrators see: health, reflection, models, HTTP, metrics, tokenizer RPCs."""

import threading
import time

import grpc
from grpc_health.v1 import health_pb2

from daemon import Daemon

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_of_everything(tiny_client):
    for service in ("", "live", "tiny", "nibble.v1.GenerationService", "nibble.v1.ModelService"):
        assert tiny_client.serving(service), service
    try:
        tiny_client.serving("nobody")
        raise AssertionError("an unknown service has a health")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND


def test_watch_tells_the_truth_through_a_drain(tiny_path):
    with Daemon(f"tiny={tiny_path}") as daemon:
        client = daemon.client()
        seen = []

        def watch():
            try:
                for response in client.health.Watch(health_pb2.HealthCheckRequest(service="tiny"), timeout=30):
                    seen.append(response.status)
            except grpc.RpcError:
                pass
        thread = threading.Thread(target=watch)
        thread.start()
        while not seen:
            time.sleep(0.01)
        daemon.terminate()
        assert daemon.wait() == 0
        thread.join()
        assert seen[0] == SERVING and seen[-1] == NOT_SERVING


def test_reflection_describes_every_service(tiny_client):
    services = set(tiny_client.database.get_services())
    assert {"nibble.v1.GenerationService", "nibble.v1.ModelService", "grpc.health.v1.Health"} <= services
    for service in services - {"grpc.reflection.v1alpha.ServerReflection"}:
        assert tiny_client.pool.FindServiceByName(service).methods


def test_models_are_listed(smollm2_client):
    model = smollm2_client.GetModel(model="smollm2").model
    assert (model.name, model.architecture, model.context) == ("smollm2", "llama", 8192)
    assert "Q4_1" in model.format and model.has_chat_template
    assert 130e6 < model.parameters < 140e6
    assert model.compute in ("f32", "int16 in blocks of 32 or 64; 16-bit weights in 12 bits")
    assert model.memory.total_bytes == sum(
        getattr(model.memory, f"{kind}_bytes") for kind in ("weights", "expanded", "kv", "workspace", "graphs", "other"))
    assert [m.name for m in smollm2_client.ListModels().models] == ["smollm2"]


def test_http(tiny):
    assert tiny.get("/livez")[0] == 200 and tiny.get("/readyz")[0] == 200
    assert tiny.get("/nothing")[0] == 404
    status, text = tiny.get("/metrics")
    assert status == 200 and "# HELP nibble_requests_total" in text and "process_" in text


def test_every_family_is_there_at_zero(tiny_path):
    with Daemon(f"tiny={tiny_path}") as daemon:
        metrics = daemon.metrics()
        names = {series.split("{")[0] for series in metrics}
        for family in ("nibble_requests_total", "nibble_requests_running", "nibble_requests_waiting",
                       "nibble_prompt_tokens_total", "nibble_output_tokens_total", "nibble_kv_blocks",
                       "nibble_memory_bytes", "nibble_preemptions_total", "nibble_recomputed_tokens_total",
                       "nibble_model_state", "nibble_build_info", "vllm:num_requests_running",
                       "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total",
                       "vllm:generation_tokens_total", "vllm:cache_config_info", "vllm:num_preemptions_total"):
            assert family in names, family
        for family in ("time_to_first_token", "inter_token", "queue", "prefill", "decode", "request"):
            assert f"nibble_{family}_seconds_count" in names
        for family in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                       "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens"):
            assert f"vllm:{family}_count" in names, family
        assert all(value == 0 for series, value in metrics.items()
                   if series.startswith("nibble_requests_total") or series.endswith("_count"))


def test_counters_equal_what_the_client_counted(tiny_path):
    with Daemon(f"tiny={tiny_path}") as daemon:
        client = daemon.client()
        ok = tokens = prompts = 0
        for i in range(10):
            answer = client.ask(tokens={"ids": [100 + i] * (10 + i)}, sampling={"seed": i},
                                stopping={"max_tokens": 5 + i, "ignore_eos": True},
                                output={"num_outputs": 1 + i % 3, "output_token_ids": True})
            ok += 1
            prompts += answer.started.prompt_tokens
            tokens += sum(len(ids) for ids in answer.ids.values())
            assert tokens and sum(f.completion_tokens for f in answer.finished.values()) == sum(
                len(ids) for ids in answer.ids.values())
        for _ in range(3):
            call = client.Generate(text="x", stopping={"ignore_eos": True}, output={"output_token_ids": True})
            next(call)
            call.cancel()
        refused = 0
        for fields in ({"text": ""}, {"model": "nobody", "text": "x"}, {"text": "x", "sampling": {"top_p": 7.0}}):
            try:
                client.ask(**fields)
            except grpc.RpcError:
                refused += 1
        deadline = time.monotonic() + 10
        while daemon.metric("nibble_requests_running") or daemon.metric("nibble_kv_blocks", state="used"):
            assert time.monotonic() < deadline, "requests or KV blocks are left over"
            time.sleep(0.02)
        assert daemon.metric("nibble_requests_total", model="tiny", code="OK") == ok
        assert daemon.metric("nibble_requests_total", code="CANCELLED") == 3
        assert daemon.metric("nibble_requests_total", code="INVALID_ARGUMENT") == 2
        assert daemon.metric("nibble_requests_total", code="NOT_FOUND") == 1
        assert daemon.metric("nibble_output_tokens_total", model="tiny") >= tokens
        assert daemon.metric("nibble_prompt_tokens_total", model="tiny") >= prompts
        assert daemon.metric("nibble_request_seconds_count") >= ok


def test_plan_agrees_with_resident_memory(smollm2_path):
    with Daemon(f"smollm2={smollm2_path}", args=["--kv-memory", "512MiB"]) as daemon:
        client = daemon.client()
        client.ask(text="warm up", stopping={"max_tokens": 4})
        planned = client.GetModel(model="smollm2").model.memory.total_bytes
        actual = daemon.metric("nibble_memory_bytes", source="actual")
        assert abs(actual - planned) <= 0.05 * planned
        deadline = time.monotonic() + 30  # the pool's pages are taken behind
        while (resident := daemon.rss()["anon"]) < 0.95 * planned and time.monotonic() < deadline:
            time.sleep(0.05)
        assert abs(resident - planned) <= 0.05 * planned, (resident, planned)
