"""Many clients at once, of whom some cancel, run into deadlines or read slowly."""

import random
import threading
import time

import grpc

from daemon import Client

PROMISED = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED,
            grpc.StatusCode.RESOURCE_EXHAUSTED}


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def settle(daemon):
    """Waits until nothing runs, nothing waits, and no block of the KV cache is held."""
    deadline = time.monotonic() + 20
    while daemon.metric("nibble_requests_running") or daemon.metric("nibble_requests_waiting") \
            or daemon.metric("nibble_kv_blocks", state="used"):
        assert time.monotonic() < deadline, "requests or KV blocks are left over"
        time.sleep(0.05)


class Load:
    """`clients` threads, each with a connection of its own, that ask one random thing after another."""

    def __init__(self, daemon, clients, seconds):
        self.daemon, self.stop = daemon, time.monotonic() + seconds
        self.lock = threading.Lock()
        self.finished = []    # behaviour of each answer that came whole
        self.unfinished = []  # streams that ended OK without all of their outputs
        self.unexpected = []  # (behaviour, code, details) of what was never promised
        self.first = daemon.client()
        self.threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(clients)]
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()
        self.first.close()

    def _ask(self, seed):
        rng, client = random.Random(seed), Client(self.daemon.address, like=self.first)
        while time.monotonic() < self.stop:
            behaviour = rng.choice(["plain", "plain", "cancel", "deadline", "slow"])
            outputs = rng.choice([1, 1, 1, 4])
            try:
                call = client.Generate(
                    text="x" * rng.randint(1, 600), sampling={"seed": rng.getrandbits(32)},
                    stopping={"max_tokens": rng.randint(1, 200), "ignore_eos": rng.random() < 0.5},
                    output={"num_outputs": outputs}, priority=rng.randint(-1, 1),
                    timeout=rng.uniform(0.001, 0.5) if behaviour == "deadline" else 60)
                ended = self._read(call, behaviour, rng.randint(0, 20))
                with self.lock:
                    (self.finished if ended == outputs else self.unfinished).append(behaviour)
            except grpc.RpcError as error:
                if error.code() not in PROMISED:
                    with self.lock:
                        self.unexpected.append((behaviour, error.code(), error.details()))
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    time.sleep(0.05)
        client.close()

    @staticmethod
    def _read(call, behaviour, cancel_after):
        """How many outputs finished."""
        ended = 0
        for i, response in enumerate(call):
            ended += response.WhichOneof("event") == "finished"
            if behaviour == "cancel" and i == cancel_after:
                call.cancel()
            if behaviour == "slow":
                time.sleep(0.01)
        return ended
