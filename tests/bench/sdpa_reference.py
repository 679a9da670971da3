"""torch's scaled_dot_product_attention on the shapes kernel_bench attention times: CSV on stdout."""

import torch
import torch.nn.functional as F

HEADS, KV_HEADS, DIM = 32, 8, 128


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
    print(f"# torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print("phase,sequences,queries,context,us")
    for sequences, queries, context in ((4, 512, 512), (4, 2048, 2048), (1, 8192, 8192), (1, 1, 1024), (16, 1, 1024),
                                        (64, 1, 1024), (64, 1, 8192)):
        q = torch.randn(sequences, HEADS, queries, DIM, dtype=torch.float16, device="cuda")
        layers = max(1, (400 << 20) // (sequences * context * KV_HEADS * DIM * 4)) if queries == 1 else 1
        keys = [torch.randn(sequences, KV_HEADS, context, DIM, dtype=torch.float16, device="cuda") for _ in range(layers)]
        values = [torch.randn_like(k) for k in keys]
        turn = [0]

        def run():
            i = turn[0] = (turn[0] + 1) % layers
            F.scaled_dot_product_attention(q, keys[i], values[i], is_causal=queries > 1, enable_gqa=True)

        us = median_us(run, count=max(4, layers))
        print(f"{'decode' if queries == 1 else 'prefill'},{sequences},{queries},{context},{us:.2f}", flush=True)


main()
