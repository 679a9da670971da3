"""Many clients at once, with cancels, deadlines and readers that dawdle; then nothing is left behind."""

import threading
import time

import pytest

from daemon import Daemon
from load import Load, quantile, settle


def test_sixty_four_clients(tiny_path, nightly):
    """Clients cancel, run into deadlines and read slowly; only the promised statuses come, memory stays flat."""
    seconds = 300 if nightly else 20
    with Daemon(f"tiny={tiny_path}", args=["--max-queue", "64", "--kv-memory", "24MiB"]) as daemon:
        load = Load(daemon, 64, seconds)
        time.sleep(seconds * 0.4)
        before = daemon.rss()["anon"]
        load.join()
        settle(daemon)
        after = daemon.rss()["anon"]
        assert not load.unexpected, load.unexpected[:5]
        assert not load.unfinished and len(load.finished) > 100
        assert after < before * 1.15 + (16 << 20), (before, after)
        assert daemon.metric("nibble_requests_total", code="OK") >= len(load.finished) - 64
        assert daemon.client().ask(text="still here", stopping={"max_tokens": 4}).finished


LONG_PROMPT = [(i * 37) % 40000 + 100 for i in range(2000)]


@pytest.fixture(scope="module")
def long_prefill_seconds(smollm2_path):
    """What the long prompt takes here when it is alone."""
    with Daemon(f"smollm2={smollm2_path}") as daemon:
        prefill = daemon.client().ask(tokens={"ids": LONG_PROMPT}, stopping={"max_tokens": 1}).finished[0].timing.prefill
    return prefill.ToTimedelta().total_seconds()


@pytest.mark.parametrize("taught", [True, False], ids=["taught", "just started"])
def test_long_prefill_does_not_stall_a_chat(smollm2_path, long_prefill_seconds, taught):
    """While a 2,000-token prompt is prefilled, running streams get their tokens. What is judged is the order of events,
    whatever the machine does meanwhile: --max-itl is a thirtieth of what the prompt takes alone, so that it is computed
    in some thirty turns. In steps of any length, each stream would see one or two tokens before its end."""
    max_itl = f"{round(long_prefill_seconds * 1000 / 30)}ms"
    with Daemon(f"smollm2={smollm2_path}", args=["--max-itl", max_itl]) as daemon:
        client = daemon.client()
        if taught:
            client.ask(text="warm " * 300, stopping={"max_tokens": 8})  # the cost model saw long steps
        begun, tokens = threading.Barrier(5), [0] * 4

        def chat(i):
            for response in client.Generate(text=f"Story {i}:", sampling={"seed": i},
                                            stopping={"max_tokens": 400, "ignore_eos": True},
                                            output={"output_token_ids": True}):
                if response.WhichOneof("event") == "chunk":
                    if not tokens[i]:
                        begun.wait(30)
                    tokens[i] += len(response.chunk.token_ids)
        threads = [threading.Thread(target=chat, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        begun.wait(30)
        call = client.Generate(tokens={"ids": LONG_PROMPT}, stopping={"max_tokens": 1})
        assert next(call).started.prompt_tokens == 2000
        before = tokens.copy()
        assert next(call).WhichOneof("event") == "chunk"
        meanwhile = [now - then for now, then in zip(tokens, before)]
        list(call)
        for thread in threads:
            thread.join()
        assert tokens == [400] * 4
        assert min(meanwhile) >= 6, (meanwhile, max_itl)


def test_preemption_under_kv_pressure_changes_no_answer(tiny_path):
    """More streams than the pool holds: some are recomputed, all answers are what they are alone."""
    ask = [dict(text=f"prompt {i}", sampling={"temperature": 0.0}, stopping={"max_tokens": 300, "ignore_eos": True},
                output={"output_token_ids": True}) for i in range(12)]
    with Daemon(f"tiny={tiny_path}") as daemon:
        alone = [daemon.client().ask(**fields).ids[0] for fields in ask]
    with Daemon(f"tiny={tiny_path}", args=["--kv-memory", "384KiB"]) as daemon:
        client, answers = daemon.client(), [None] * len(ask)

        def run(i):
            answers[i] = client.ask(**ask[i])
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(ask))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [list(answer.ids[0]) for answer in answers] == [list(ids) for ids in alone]
        preempted = daemon.metric("nibble_preemptions_total")
        recomputed = sum(answer.finished[0].recomputed_tokens for answer in answers)
        assert preempted > 0 and recomputed == daemon.metric("nibble_recomputed_tokens_total")
        settle(daemon)


def test_no_idle_latency_tail(tiny_client, nightly):
    """A call after idle seconds is as quick as one in a row: four in five within 5 ms of their p99, so that a
    disturbance of a busy machine does not count."""
    def once():
        begin = time.perf_counter()
        tiny_client.ask(text="x", stopping={"max_tokens": 1})
        return time.perf_counter() - begin
    busy = [once() for _ in range(200)]
    idle = []
    for _ in range(20 if nightly else 6):
        time.sleep(10 if nightly else 2)
        idle.append(once())
    assert quantile(idle, 0.8) < quantile(busy, 0.99) + 0.005, (idle, quantile(busy, 0.99))
