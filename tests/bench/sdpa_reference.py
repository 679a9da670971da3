"""torch's scaled_dot_product_attention on the shapes attention_bench times: CSV on stdout.

    python3 tests/bench/sdpa_reference.py [prefill|decode ...] [--dim 128]

Keys and values are contiguous, not paged. Prefill is timed with each of torch's backends and the fastest counts; a
context longer than the queries uses a bias aligned to the lower right, as a chunk of a longer prompt does.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

HEADS, KV_HEADS = 32, 8
PREFILL = ((4, 512, 512), (1, 2048, 2048), (4, 2048, 2048), (1, 8192, 8192), (1, 512, 8192), (1, 128, 8192), (16, 100, 1000))
DECODE = ((1, 1, 128), (1, 1, 1024), (1, 1, 8192), (1, 1, 32768), (4, 1, 1024), (16, 1, 1024), (64, 1, 1024), (64, 1, 8192))
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)


def median_us(run, count=4, repeats=15):
    graph = torch.cuda.CUDAGraph()
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / count)
    return sorted(times)[len(times) // 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("phases", nargs="*", default=["prefill", "decode"])
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    dim = options.dim
    print(f"# torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print("phase,dim,sequences,queries,context,backend,us")
    shapes = (PREFILL if "prefill" in options.phases else ()) + (DECODE if "decode" in options.phases else ())
    for sequences, queries, context in shapes:
        phase = "decode" if queries == 1 else "prefill"
        q = torch.randn(sequences, HEADS, queries, dim, dtype=torch.float16, device="cuda")
        layers = max(1, min(32, (400 << 20) // (sequences * context * KV_HEADS * dim * 4))) if queries == 1 else 1
        keys = [torch.randn(sequences, KV_HEADS, context, dim, dtype=torch.float16, device="cuda") for _ in range(layers)]
        values = [torch.randn_like(k) for k in keys]
        turn = [0]

        def run():
            i = turn[0] = (turn[0] + 1) % layers
            bias = causal_lower_right(queries, context) if 1 < queries < context else None
            F.scaled_dot_product_attention(q, keys[i], values[i], attn_mask=bias, is_causal=1 < queries == context,
                                           enable_gqa=True)

        best = None
        for backend in BACKENDS:
            try:
                with sdpa_kernel(backend):
                    us = median_us(run, count=max(4, layers))
            except RuntimeError:  # this backend has no kernel for the shape
                torch.cuda.synchronize()
                continue
            if best is None or us < best[0]:
                best = (us, backend.name)
        if best is None:
            print(f"{phase},{dim},{sequences},{queries},{context},none,", flush=True)
        else:
            print(f"{phase},{dim},{sequences},{queries},{context},{best[1]},{best[0]:.2f}", flush=True)


main()
