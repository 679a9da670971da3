"""Bad input: the status the API promises, the field named, and a greedy stream beside it unchanged."""

import math
import threading

import grpc
import pytest

from daemon import details

NAN, INF = math.nan, math.inf
INVALID = grpc.StatusCode.INVALID_ARGUMENT
CANARY = dict(text="canary", sampling={"temperature": 0.0}, stopping={"max_tokens": 64, "ignore_eos": True},
              output={"output_token_ids": True})


def sampling(**fields):
    return {"text": "x", "sampling": fields}


def stopping(**fields):
    return {"text": "x", "stopping": fields}


def output(**fields):
    return {"text": "x", "output": fields}


BAD_FIELDS = [
    *[(sampling(**{name: value}), f"sampling.{name}")
      for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
      for value in (NAN, INF, -INF)],
    (sampling(temperature=-1), "sampling.temperature"),
    (sampling(temperature=1e30), "sampling.temperature"),
    (sampling(top_p=0.0), "sampling.top_p"),
    (sampling(top_p=1.5), "sampling.top_p"),
    (sampling(min_p=-0.1), "sampling.min_p"),
    (sampling(min_p=1.1), "sampling.min_p"),
    (sampling(repetition_penalty=0.0), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=-1.0), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=1e38), "sampling.repetition_penalty"),
    (sampling(presence_penalty=100.0), "sampling.presence_penalty"),
    (sampling(frequency_penalty=-100.0), "sampling.frequency_penalty"),
    (sampling(logit_bias={65: NAN}), "sampling.logit_bias"),
    (sampling(logit_bias={65: INF}), "sampling.logit_bias"),
    (sampling(logit_bias={4_000_000_000: 1.0}), "sampling.logit_bias"),
    (sampling(logit_bias={258: 1.0}), "sampling.logit_bias"),
    (sampling(logit_bias={i: 1.0 for i in range(100_000)}), "sampling.logit_bias"),
    (stopping(max_tokens=10, min_tokens=11), "stopping.min_tokens"),
    (stopping(min_tokens=2**32 - 1), "stopping.min_tokens"),
    (stopping(stop_strings=[""]), "stopping.stop_strings"),
    (stopping(stop_strings=["a" * 1_000_000]), "stopping.stop_strings"),
    (stopping(stop_strings=["a"] * 10_000), "stopping.stop_strings"),
    (stopping(stop_token_ids=[258]), "stopping.stop_token_ids"),
    (stopping(stop_token_ids=[2**32 - 1]), "stopping.stop_token_ids"),
    (stopping(max_duration={"seconds": -1}), "stopping.max_duration"),
    (output(num_outputs=0), "output.num_outputs"),
    (output(num_outputs=129), "output.num_outputs"),
    (output(num_outputs=2**32 - 1), "output.num_outputs"),
    (output(top_logprobs=21), "output.top_logprobs"),
    (output(top_logprobs=2**31), "output.top_logprobs"),
    (output(prompt_top_logprobs=21), "output.prompt_top_logprobs"),
    ({"text": ""}, "text"),
    ({"tokens": {"ids": []}}, "tokens"),
    ({"tokens": {"ids": [258]}}, "tokens"),
    ({"tokens": {"ids": [2**32 - 1]}}, "tokens"),
    ({"tokens": {"ids": [97] * 5000}}, "tokens"),
    ({"text": "a" * 5000}, "text"),
    ({"chat": {"messages": []}}, "chat"),
    ({"chat": {"messages": [{"content": "no role"}]}}, "chat"),
    ({"chat": {"messages": [{"role": "user", "content": "x"}], "tools_json": ["{not json"]}}, "chat.tools_json"),
    ({"chat": {"messages": [{"role": "user", "content": "x"}], "template_variables_json": "[1"}},
     "chat.template_variables_json"),
    ({}, "prompt"),
    ({"text": "x", "request_id": "r" * 100_000}, "request_id"),
    ({"text": "x", "cache_salt": "r" * 100_000}, "cache_salt"),
]


@pytest.mark.parametrize("fields,named", BAD_FIELDS, ids=[f"{i}-{named}" for i, (_, named) in enumerate(BAD_FIELDS)])
def test_a_bad_field_is_named(tiny_client, fields, named):
    with pytest.raises(grpc.RpcError) as caught:
        tiny_client.ask(**fields)
    assert caught.value.code() == INVALID, caught.value.details()
    found = details(caught.value)
    assert found["domain"] == "nibble" and found["reason"]
    assert any(field == named or field.startswith((named + ".", named + "[")) for field in found["fields"]), found
    assert found["retry"] is None
    assert not [key for key, _ in caught.value.initial_metadata() or ()], "a refusal is Trailers-Only"


def test_all_of_it_beside_a_canary(tiny_client):
    expected = tiny_client.ask(**CANARY).ids[0]
    stop = threading.Event()
    answers = []

    def canary():
        while not stop.is_set():
            answers.append(list(tiny_client.ask(**CANARY).ids[0]))
    thread = threading.Thread(target=canary)
    thread.start()
    try:
        for fields, _ in BAD_FIELDS:
            with pytest.raises(grpc.RpcError):
                tiny_client.ask(**fields)
    finally:
        stop.set()
        thread.join()
    assert answers and all(answer == list(expected) for answer in answers)


@pytest.mark.parametrize("payload", [b"\xff" * 10, b"\x12\x05abc", b"\x12\x03\xff\xfe\xfd", b"\x0a\x02\xc3\x28\x12\x01x",
                                     b"\x62\x01\xff\x12\x01x", b"\x08" * 1000], ids=repr)
def test_bytes_that_do_not_parse(tiny_client, payload):
    with pytest.raises(grpc.RpcError) as caught:
        list(tiny_client.raw_generate(payload))
    assert caught.value.code() == INVALID, (caught.value.code(), caught.value.details())


def test_many_violations_stay_small(tiny_client):
    with pytest.raises(grpc.RpcError) as caught:
        tiny_client.ask(text="x", sampling={"temperature": NAN, "top_p": NAN, "min_p": NAN, "logit_bias": {
            1000 + i: NAN for i in range(200)}}, request_id="\x00" * 500, output={"num_outputs": 0})
    assert caught.value.code() == INVALID
    assert len(details(caught.value)["fields"]) <= 16
    size = len(caught.value.details()) + sum(len(value) for _, value in caught.value.trailing_metadata())
    assert size < 4096


def test_no_such_model(tiny_client):
    with pytest.raises(grpc.RpcError) as caught:
        tiny_client.ask(model="nobody", text="x")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND and "tiny" in caught.value.details()


def test_constraint_is_not_there_yet(tiny_client):
    with pytest.raises(grpc.RpcError) as caught:
        tiny_client.ask(text="x", constraint={"regex": "a+"})
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_message_larger_than_the_limit(tiny_client):
    with pytest.raises(grpc.RpcError) as caught:
        tiny_client.ask(text="a" * (17 << 20))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_deadline_in_the_past_and_short_ones(tiny_client):
    for timeout in (1e-6, 0.001, 0.05):
        with pytest.raises(grpc.RpcError) as caught:
            tiny_client.ask(text="x", stopping={"ignore_eos": True}, timeout=timeout)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_strange_but_right_values(tiny_client):
    for fields in (dict(sampling={"top_k": 0}), dict(stopping={"max_tokens": 2**32 - 1, "ignore_eos": True},
                                                     tokens={"ids": [97] * 4000}),
                   dict(request_id="é" * 20), dict(sampling={"seed": 2**64 - 1}), dict(priority=-2**31)):
        fields = {"stopping": {"max_tokens": 2}, **({} if "tokens" in fields else {"text": "x"}), **fields}
        assert tiny_client.ask(**fields).finished[0].completion_tokens >= 1
