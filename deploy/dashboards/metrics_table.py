#!/usr/bin/env python3
"""Turns a scrape into metrics.md: curl -s HOST:8080/metrics | deploy/dashboards/metrics_table.py >deploy/dashboards/metrics.md"""

import re
import sys

# Labels whose values depend on what runs, not on the program; the rest are listed when they are few.
OPEN = {"model", "model_name", "engine", "device", "version", "revision", "backends", "block_size", "num_gpu_blocks",
        "max_lora", "running_lora_adapters", "waiting_lora_adapters", "le"}
HEAD = """# Metrics

Every family that `/metrics` serves, from a scrape: `metrics_table.py` writes this table, a test compares it. Every series
is there from the load of its model on, at zero; counters of a model that is replaced go on. `vllm:` names are those that
endpoint pickers and dashboards written for vLLM look up. Of `code` and `reason`, runtime/metrics.cc has the table.

| name | type | labels | meaning |
|---|---|---|---|
"""


def families(text):
    """name -> (type, help, {label: set of values})"""
    found, kinds, helps = {}, {}, {}
    for line in text.splitlines():
        if match := re.match(r"# HELP (\S+) (.*)", line):
            helps[match[1]] = match[2]
        elif match := re.match(r"# TYPE (\S+) (.*)", line):
            kinds[match[1]] = match[2]
        elif match := re.match(r"([\w:]+?)(_bucket|_sum|_count)?(?:\{(.*)\})? \S+$", line):
            name = match[1] if kinds.get(match[1]) == "histogram" else match[1] + (match[2] or "")
            labels = found.setdefault(name, {})
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[3] or ""):
                labels.setdefault(label, set()).add(value)
    return {name: (kinds[name], helps[name], labels) for name, labels in found.items()}


def describe(labels):
    parts = []
    for label, values in labels.items():
        if label != "le":
            listed = label not in OPEN and len(values) <= 6
            parts.append(f"{label}: {', '.join(sorted(values))}" if listed else label)
    return "; ".join(sorted(parts))


def table(text):
    rows = sorted(families(text).items(), key=lambda item: (not item[0].startswith("nibble"), item[0]))
    return HEAD + "".join(f"| `{name}` | {kind} | {describe(labels)} | {meaning} |\n" for name, (kind, meaning, labels) in rows)


if __name__ == "__main__":
    sys.stdout.write(table(sys.stdin.read()))
