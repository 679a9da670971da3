"""Generate as a chatbot backend uses it."""

import concurrent.futures
import math

import pytest

GREEDY = {"temperature": 0.0}


def test_text_streams_and_finishes(smollm2_client):
    answer = smollm2_client.ask(text="The capital of France is", sampling=GREEDY,
                                stopping={"max_tokens": 8}, output={"output_token_ids": True})
    assert "Paris" in answer.text[0]
    assert answer.started.model == "smollm2" and answer.started.model_revision
    assert answer.started.prompt_tokens == 5 and answer.started.request_id
    assert answer.reason() == "FINISH_REASON_LENGTH"
    assert answer.finished[0].completion_tokens == len(answer.ids[0]) == 8
    timing = answer.finished[0].timing
    assert timing.time_to_first_token.ToTimedelta().total_seconds() > 0


def test_chat_uses_the_models_template(smollm2_client):
    messages = [{"role": "user", "content": "What is gravity?"}]
    answer = smollm2_client.ask(chat={"messages": messages}, sampling=GREEDY, stopping={"max_tokens": 40})
    assert "force" in answer.text[0] or "physics" in answer.text[0]
    ids = smollm2_client.Tokenize(chat={"messages": messages}).token_ids
    assert answer.started.prompt_tokens == len(ids)
    rendered = smollm2_client.Detokenize(token_ids=ids, keep_special_tokens=True).text
    assert rendered.endswith("<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n")


def test_tokens_in_equals_text_in(smollm2_client):
    text = "Naïve café 😀 and a tab\there"
    ids = smollm2_client.Tokenize(text=text).token_ids
    assert smollm2_client.Detokenize(token_ids=ids).text == text
    by_text = smollm2_client.ask(text=text, sampling=GREEDY, stopping={"max_tokens": 12})
    by_ids = smollm2_client.ask(tokens={"ids": ids}, sampling=GREEDY, stopping={"max_tokens": 12})
    assert by_text.text == by_ids.text


def test_an_answer_does_not_depend_on_its_batch(smollm2_client):
    ask = dict(text="Once upon a time", sampling=GREEDY, stopping={"max_tokens": 24},
               output={"output_token_ids": True})
    alone = smollm2_client.ask(**ask).ids[0]
    others = [dict(text=f"Number {i}: write about {'rivers and ' * (i % 7)}mountains", sampling={"seed": i},
                   stopping={"max_tokens": 24}) for i in range(32)]
    with concurrent.futures.ThreadPoolExecutor(33) as pool:
        rest = [pool.submit(smollm2_client.ask, **other) for other in others]
        among = pool.submit(smollm2_client.ask, **ask).result()
        assert all(future.result().finished for future in rest)
    assert list(among.ids[0]) == list(alone)


def test_seeds_reproduce_and_outputs_differ(tiny_client):
    ask = dict(text="abc", sampling={"temperature": 1.0, "seed": 7}, stopping={"max_tokens": 16, "ignore_eos": True},
               output={"num_outputs": 4, "output_token_ids": True})
    first, second = tiny_client.ask(**ask), tiny_client.ask(**ask)
    assert first.ids == second.ids and set(first.ids) == {0, 1, 2, 3}
    assert len({tuple(ids) for ids in first.ids.values()}) > 1
    other = tiny_client.ask(**{**ask, "sampling": {"temperature": 1.0, "seed": 8}})
    assert other.ids != first.ids


def test_output_n_equals_a_lone_run_of_the_same_seed(tiny_client):
    """Output 0 of n is what a single output with that seed gives: keyed by (seed, output, position)."""
    several = tiny_client.ask(text="abc", sampling={"seed": 11}, stopping={"max_tokens": 10, "ignore_eos": True},
                              output={"num_outputs": 3, "output_token_ids": True})
    single = tiny_client.ask(text="abc", sampling={"seed": 11}, stopping={"max_tokens": 10, "ignore_eos": True},
                             output={"output_token_ids": True})
    assert list(several.ids[0]) == list(single.ids[0])


def test_stop_string_across_tokens_never_leaks(smollm2_client):
    full = smollm2_client.ask(text="The capital of France is", sampling=GREEDY, stopping={"max_tokens": 24}).text[0]
    stop = full[10:16]
    at = full.index(stop)
    answer = smollm2_client.ask(text="The capital of France is", sampling=GREEDY,
                                stopping={"max_tokens": 24, "stop_strings": ["never seen", stop]})
    assert answer.text.get(0, "") == full[:at]
    assert answer.reason() == "FINISH_REASON_STOP" and answer.finished[0].stop_string == stop
    kept = smollm2_client.ask(text="The capital of France is", sampling=GREEDY,
                              stopping={"max_tokens": 24, "stop_strings": [stop], "include_stop_string": True})
    assert kept.text[0] == full[:at] + stop


def test_stop_token_and_min_tokens(smollm2_client):
    base = dict(text="The capital of France is", sampling=GREEDY, output={"output_token_ids": True})
    ids = list(smollm2_client.ask(**base, stopping={"max_tokens": 10}).ids[0])
    stop = ids[3]
    answer = smollm2_client.ask(**base, stopping={"max_tokens": 10, "stop_token_ids": [stop]})
    first = ids.index(stop)
    assert list(answer.ids[0]) == ids[:first + 1] and answer.finished[0].stop_token_id == stop
    assert answer.finished[0].completion_tokens == first + 1
    longer = smollm2_client.ask(**base, stopping={"max_tokens": 10, "min_tokens": 8, "stop_token_ids": [stop]})
    assert longer.finished[0].completion_tokens >= 8
    assert stop not in list(longer.ids[0])[:7]


def test_logprobs_are_those_of_the_choice(smollm2_client):
    answer = smollm2_client.ask(text="The capital of France is", sampling=GREEDY, stopping={"max_tokens": 4},
                                output={"top_logprobs": 5, "output_token_ids": True})
    assert len(answer.logprobs[0]) == 4
    for token, entry in zip(answer.ids[0], answer.logprobs[0]):
        assert entry.token_id == token and len(entry.top) == 5
        assert entry.top[0].token_id == token and math.isclose(entry.logprob, entry.top[0].logprob, abs_tol=1e-5)
        assert all(a.logprob >= b.logprob for a, b in zip(entry.top, entry.top[1:]))
        assert sum(math.exp(top.logprob) for top in entry.top) <= 1.0001
    assert b"".join(entry.token for entry in answer.logprobs[0]).decode() == answer.text[0]


def test_prompt_logprobs_score_without_output(smollm2_client):
    answer = smollm2_client.ask(text="The capital of France is Paris", stopping={"max_tokens": 0},
                                output={"prompt_top_logprobs": 2, "prompt_token_ids": True})
    entries = [entry for piece in answer.prompt for entry in piece.logprobs]
    ids = [token for piece in answer.prompt for token in piece.token_ids]
    assert len(entries) == len(ids) == answer.started.prompt_tokens
    assert entries[-1].token_id == ids[-1] and -2 < entries[-1].logprob < 0
    assert answer.text.get(0, "") == "" and answer.finished[0].completion_tokens == 0


@pytest.mark.parametrize("sampling", [
    {"temperature": 0.7, "top_k": 20}, {"top_p": 0.5}, {"min_p": 0.2}, {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5}, {"frequency_penalty": -1.0}, {"top_k": 9_999_999}, {"temperature": 1e-6}])
def test_every_sampling_field_is_taken(tiny_client, sampling):
    answer = tiny_client.ask(text="hello", sampling={**sampling, "seed": 3},
                             stopping={"max_tokens": 6, "ignore_eos": True})
    assert answer.finished[0].completion_tokens == 6


def test_logit_bias_decides(tiny_client):
    answer = tiny_client.ask(text="hello", sampling={**GREEDY, "logit_bias": {65: 100.0}},
                             stopping={"max_tokens": 5, "ignore_eos": True})
    assert answer.text[0] == "AAAAA"


def test_final_only_says_it_once(tiny_client):
    ask = dict(text="hello", sampling={"seed": 1}, stopping={"max_tokens": 20, "ignore_eos": True})
    streamed = tiny_client.ask(**ask)
    responses = list(tiny_client.Generate(**ask, output={"final_only": True}))
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds == ["started", "chunk", "finished"]
    assert responses[1].chunk.text == streamed.text[0]


def test_special_tokens_in_text_are_text(smollm2_client):
    plain = smollm2_client.Tokenize(text="<|im_end|>").token_ids
    parsed = smollm2_client.Tokenize(text="<|im_end|>", parse_special_tokens=True).token_ids
    assert list(parsed) == [2] and len(plain) > 1


def test_context_is_the_end(tiny_client):
    answer = tiny_client.ask(tokens={"ids": [97] * 4090}, sampling={"seed": 1}, stopping={"ignore_eos": True})
    assert answer.reason() == "FINISH_REASON_CONTEXT"
    assert 5 <= answer.finished[0].completion_tokens <= 7


def test_time_limit(tiny_client):
    answer = tiny_client.ask(text="a", stopping={"ignore_eos": True, "max_duration": {"nanos": 50_000_000}})
    assert answer.reason() in ("FINISH_REASON_TIME_LIMIT", "FINISH_REASON_CONTEXT")


def test_prefix_cache_is_used_and_salted(tiny_client):
    prompt = {"ids": [(i * 7) % 200 + 20 for i in range(400)]}
    ask = dict(tokens=prompt, sampling=GREEDY, stopping={"max_tokens": 4, "ignore_eos": True},
               output={"output_token_ids": True})
    first, again = tiny_client.ask(**ask), tiny_client.ask(**ask)
    salted = tiny_client.ask(**ask, cache_salt="somebody else")
    assert again.started.cached_prompt_tokens >= 256
    assert salted.started.cached_prompt_tokens == 0
    assert first.ids == again.ids == salted.ids


def test_truncate_prompt_tokens_keeps_the_last(tiny_client):
    answer = tiny_client.ask(tokens={"ids": [97] * 100}, truncate_prompt_tokens=10, stopping={"max_tokens": 1})
    assert answer.started.prompt_tokens == 10
