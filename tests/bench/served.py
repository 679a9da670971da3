#!/usr/bin/env python3
"""Measures the 8B shape through the whole engine of one GPU by `nibble bench`, a process a run.

    tests/bench/served.py NIBBLE OUT [RUN...]     RUNs as in the table below; without: all
    tests/bench/served.py --table OUT             what OUT/*.json hold, as CSV

Writes OUT/RUN.json, as `nibble bench --json` prints it.
"""

import csv
import json
import pathlib
import subprocess
import sys

# 2,048 tokens read, 1 and 8 at once; 1, 16 and 64 streams after 1,000 tokens each.
STEPS = ["--prompts", "2048", "--prompt-batches", "1,8", "--contexts", "1000", "--batches", "1,16,64",
         "--output-tokens", "128", "--repeats", "1"]
ARRIVALS = ["--max-itl", "30ms", "--arrivals", "8", "--arrival-prompt", "2048", "--arrival-streams", "16"]
# Nobody reads along: prompts go first.
OFFLINE = ["--max-itl", "10s", "--prompts", "2048", "--contexts", "1000", "--batches", "1", "--repeats", "1",
           "--requests", "256", "--request-input", "1000", "--request-output", "1000"]
KV8 = ["--kv-dtype", "fp8"]


def of(quant, *flags):
    return ["--synthetic", "llama-3-8b", "--quant", quant, *flags]


RUNS = {
    "int4-f16": of("int4-g128", "--compute", "f16", *STEPS, *ARRIVALS),
    "int4-bf16": of("int4-g128", "--compute", "bf16", *STEPS, *ARRIVALS),
    "int4-f16-kv8": of("int4-g128", "--compute", "f16", *KV8, *STEPS),
    "offline-f16": of("int4-g128", "--compute", "f16", *OFFLINE),
    "offline-f16-kv8": of("int4-g128", "--compute", "f16", *KV8, *OFFLINE),
    **{f"{name}-f16": of(name, "--compute", "f16", *STEPS)
       for name in ("nf4", "awq", "int4-g128-act", "q4_k", "int8-g128", "int8", "f16", "fp8")},
}
TIMEOUT = 120


def rows(name, result):
    """(run, what, at once, tokens, tok/s, seconds, share of the device's limit) of every number."""
    for each in result["prefill"]:
        yield (name, "prefill", each["prompts"], each["tokens"], each["tokens_per_second"]["median"],
               each["first_token_seconds"]["median"], each["flops_share"])
    for each in result["decode"]:
        yield (name, "decode", each["batch"], each["context"], each["tokens_per_second"]["median"],
               each["step_seconds"]["median"], each["bandwidth_share"])
    for each in result["throughput"]:
        yield (name, "offline output", each["requests"], each["input_tokens"], each["output_tokens_per_second"],
               each["seconds"], "")
    for each in result["arrivals"]:
        yield (name, "longest gap", each["streams"], each["context"], "", each["gap_seconds_max"], "")
        yield (name, "p99 gap", each["streams"], each["context"], "", each["gap_seconds_p99"], "")
        yield (name, "last first token", each["prompts"], each["prompt_tokens"], "", each["first_token_seconds_max"], "")
    yield (name, "load", "", "", "", result["load_seconds"], "")
    yield (name, "ready", "", "", "", result["ready_seconds"], "")


def show(table, name, result):
    for row in rows(name, result):
        table.writerow([f"{value:.5g}" if isinstance(value, float) else value for value in row])


def main(arguments):
    table = csv.writer(sys.stdout, lineterminator="\n")
    if arguments[:1] == ["--table"]:
        table.writerow(["run", "what", "at_once", "tokens", "tok_per_s", "seconds", "share_of_limit"])
        for path in sorted(pathlib.Path(arguments[1]).glob("*.json")):
            show(table, path.stem, json.loads(path.read_text()))
        return 0
    nibble, out, *names = arguments
    failed = 0
    for name in names or RUNS:
        done = subprocess.run([nibble, "bench", "--device", "cuda", "--json", *RUNS[name]], capture_output=True, text=True,
                              timeout=TIMEOUT)
        if done.returncode != 0:
            print(f"{name}: exit {done.returncode}: {done.stderr.strip()}", file=sys.stderr)
            failed = 1
            continue
        pathlib.Path(out, f"{name}.json").write_text(done.stdout)
        show(table, name, json.loads(done.stdout))
        sys.stdout.flush()
    return failed


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
