"""Our speed on the CPU beside llama.cpp's: the same files, threads and machine, the programs taking turns.

    python tests/bench/compare_llama_cpp.py [--quick | --full] [--scratch /tmp/peer] [--nibble BINARY] [--model GGUF]

Builds llama-cpp-python of PEER_VERSION from source in the scratch folder and makes its f16, Q8_0 and Q4_K_M of the
model there, unless they are there. --quick makes two rounds; --full five, and measures besides: a host that four spinning
processes keep busy, our own formats, and decode of a 1B model against what the memory can read; --parts takes some of
these. Writes NAME.json (every run) and NAME.md (medians, spreads, ratios) into --results after each part, beside the
parts that are there, and prints the latter. On a host that builds or serves something else at the same time its
numbers mean little: the load average is in the results.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEER_VERSION = "0.3.36"
PEER_TYPES = ("f16", "q8_0", "q4_k_m")
OWN_FORMATS = ("int4-g128", "int4-g128-act", "awq", "nf4", "int8", "w8a8", "f16", "bf16", "q4_1", "q4_k_m", "q8_0")
SPINNERS = 4
# Of a measurement: how it is shown, and whether more is better.
METRICS = {
    "decode_1": ("decode, 1 stream, tok/s", True),
    "decode_16": ("decode, 16 streams, tok/s", True),
    "prefill_512": ("prefill of 512, tok/s", True),
    "first_token_200": ("first token of 200, s", False),
    "load_seconds": ("load, s", False),
}


def run(command, **kwargs):
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=3600, **kwargs)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {result.returncode}")
    return result.stdout


class Peer:
    """llama-cpp-python in a virtual environment of its own."""

    def __init__(self, scratch):
        self.models = scratch / "models"
        self.python = scratch / "venv" / "bin" / "python"
        self.models.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            venv.create(scratch / "venv", with_pip=True)
        have = subprocess.run([str(self.python), "-c", "import llama_cpp; print(llama_cpp.__version__)"],
                              capture_output=True, text=True).stdout.strip()
        if have != PEER_VERSION:
            run([self.python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python",
                 f"llama-cpp-python=={PEER_VERSION}", "numpy"],
                env={**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"})

    def variant(self, model, kind):
        """`model` as llama.cpp's quantizer makes it; the names are those of other files of this model."""
        stem = model.name.removesuffix(".gguf").rsplit(".", 1)[0]
        out = self.models / f"{stem}.{kind if kind == 'f16' else kind.upper()}.gguf"
        if not out.exists():
            partial = out.with_suffix(".partial")
            run([self.python, HERE / "peer_llama_cpp.py", "quantize", model, kind, partial])
            partial.rename(out)
        return out

    def measure(self, model, threads, *options):
        return json.loads(run([self.python, HERE / "peer_llama_cpp.py", "measure", model, "--threads", threads,
                               *options]))


def bench(nibble, arguments, threads, repeats=2):
    return json.loads(run([nibble, "bench", *arguments, "--device", "cpu", "--threads", threads, "--repeats", repeats,
                           "--json"]))


def measure_nibble(nibble, model, threads, compute="auto"):
    """As Peer.measure, with contexts of the same size; `model` may be a list of arguments of nibble bench."""
    arguments = [*(model if isinstance(model, list) else [model]), "--compute", compute, "--contexts", "16",
                 "--max-context", "1024"]
    one = bench(nibble, [*arguments, "--max-batch", "1", "--prompts", "512,200", "--batches", "1", "--output-tokens",
                         "128"], threads)
    many = bench(nibble, [*arguments, "--max-batch", "16", "--prompts", "16", "--batches", "16", "--output-tokens", "64"],
                 threads)
    return {
        "format": one["format"],
        "compute": one["compute"],
        "bits_per_weight": one["plan"]["bits_per_weight"],
        "first_token_200": [one["prefill"][1]["first_token_seconds"]["median"]],
        "prefill_512": [one["prefill"][0]["tokens_per_second"]["median"]],
        "decode_1": [one["decode"][0]["tokens_per_second"]["median"]],
        "decode_16": [many["decode"][0]["tokens_per_second"]["median"]],
        "load_seconds": one["load_seconds"],
    }


@contextlib.contextmanager
def busy_host(count):
    """`count` processes that do nothing but compute, at the same priority."""
    spin = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with us, however we end
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def samples(runs, metric):
    """All runs' values of a metric: a list or a number each."""
    values = [one[metric] for one in runs]
    return [x for value in values for x in (value if isinstance(value, list) else [value])]


def shown(values):
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 3
    spread = (max(values) - min(values)) / 2 / middle * 100
    return f"{middle:.{digits}f} ±{spread:.0f}%"


def ratio(ours, theirs, more_is_better):
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"{a / b if more_is_better else b / a:.2f}x"


def compare(nibble, peer, models, threads, rounds):
    """{file: {program: [runs]}}; within a round the programs take turns, and the first to run changes."""
    programs = {
        "nibble": lambda path: measure_nibble(nibble, path, threads),
        "nibble int8": lambda path: measure_nibble(nibble, path, threads, "int8"),
        "llama.cpp": lambda path: peer.measure(path, threads),
    }
    runs = {path.name: {name: [] for name in programs} for path in models}
    for turn in range(rounds):
        for path in models:
            order = list(programs) if turn % 2 == 0 else list(reversed(programs))
            for name in order:
                print(f"round {turn + 1}: {name}, {path.name}", file=sys.stderr)
                runs[path.name][name].append(programs[name](path))
    return runs


def comparison_table(runs):
    lines = ["| file | | nibble | nibble, int8 activations | llama.cpp | default / llama.cpp | int8 / llama.cpp |",
             "|---|---|---|---|---|---|---|"]
    for file, programs in runs.items():
        for metric, (title, more_is_better) in METRICS.items():
            ours, int8, theirs = (samples(programs[name], metric) for name in ("nibble", "nibble int8", "llama.cpp"))
            lines.append(f"| {file} | {title} | {shown(ours)} | {shown(int8)} | {shown(theirs)} | "
                         f"{ratio(ours, theirs, more_is_better)} | {ratio(int8, theirs, more_is_better)} |")
    return lines


def measure_busy(nibble, peer, model, threads):
    """The same measurements alone and beside spinning processes."""
    result = {}
    for spinners in (0, SPINNERS):
        with busy_host(spinners):
            result[str(spinners)] = {"nibble": [measure_nibble(nibble, model, threads)],
                                     "llama.cpp": [peer.measure(model, threads, "--divide", 8, "--repeats", 1, "--decode-only")]}
    return result


def busy_table(busy):
    cores = os.cpu_count()
    fair = min(1.0, cores / (cores + SPINNERS))
    lines = ["", f"Beside {SPINNERS} spinning processes on {cores} cores (a fair share is {fair:.0%}):", "",
             "| | program | alone | busy | left |", "|---|---|---|---|---|"]
    for metric in ("decode_1", "decode_16", "prefill_512"):
        for program in ("nibble", "llama.cpp"):
            if metric not in busy["0"][program][0]:
                continue  # of the peer decode only: a step may take it a second here
            alone, crowded = (samples(busy[key][program], metric) for key in ("0", str(SPINNERS)))
            left = statistics.median(crowded) / statistics.median(alone)
            lines.append(f"| {METRICS[metric][0]} | {program} | {shown(alone)} | {shown(crowded)} | {left:.0%} |")
    return lines


def formats_table(formats):
    lines = ["", "Our formats, random weights of SmolLM2-135M's shape:", "",
             "| format | bits a weight | " + " | ".join(METRICS[m][0] for m in METRICS) + " |",
             "|---" * (2 + len(METRICS)) + "|"]
    for name, one in formats.items():
        cells = " | ".join(shown(samples([one], metric)).split(" ")[0] for metric in METRICS)
        lines.append(f"| {name} | {one['bits_per_weight']:.2f} | {cells} |")
    return lines


def bandwidth_table(result):
    lines = ["", f"Decode of {result['model']} {result['format']}, {result['plan']['weights_bytes'] / 2**20:.0f} MiB of "
             f"weights, against {result['memory_bandwidth'] / 2**30:.1f} GiB/s of measured reads:", "",
             "| streams | context | tok/s | of the reads |", "|---|---|---|---|"]
    for row in result["decode"]:
        lines.append(f"| {row['batch']} | {row['context']} | {row['tokens_per_second']['median']:.1f} | "
                     f"{row['bandwidth_share']:.0%} |")
    return lines


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="two rounds and nothing else (the default)")
    extent.add_argument("--full", action="store_true", help="five rounds, formats, a busy host, bandwidth")
    parser.add_argument("--parts", help="of runs,busy,formats,bandwidth (--full: all; --quick: runs)")
    parser.add_argument("--rounds", type=int, help="instead of two or five")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("/tmp/peer"))
    parser.add_argument("--nibble", type=pathlib.Path, default=ROOT / "build/release/server/nibble")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--name", default="cpu_llama_cpp", help="of the files of results (%(default)s)")
    return parser.parse_args()


def report(result):
    runs = result["runs"]
    lines = ["# SmolLM2-135M on the CPU, beside llama.cpp", ""]
    lines += [f"    {key:8} {result[key]}" for key in ("date", "machine", "nibble", "peer", "threads")]
    lines += [f"    rounds   {runs['rounds']}, of one minute's load average {runs['load_average'][0]:.1f} at their begin",
              "", "Medians and half the spread; ratios above 1 are in our favour.", ""] if runs else []
    lines += comparison_table(runs["files"]) if runs else []
    lines += busy_table(result["busy"]) if result["busy"] else []
    lines += formats_table(result["formats"]) if result["formats"] else []
    lines += bandwidth_table(result["bandwidth"]) if result["bandwidth"] else []
    return "\n".join(lines) + "\n"


def main():
    options = parse()
    nibble, threads = options.nibble, options.threads
    peer = Peer(options.scratch)
    models = [options.model, *(peer.variant(options.model, kind) for kind in PEER_TYPES)]

    def runs():
        rounds = options.rounds or (5 if options.full else 2)
        load = os.getloadavg()
        return {"rounds": rounds, "load_average": load, "files": compare(nibble, peer, models, threads, rounds)}

    def formats():
        return {name: measure_nibble(nibble, ["--synthetic", "smollm2-135m", "--quant", name], threads)
                for name in OWN_FORMATS}

    def bandwidth():
        return bench(nibble, ["--synthetic", "llama-3.2-1b", "--quant", "q4_0", "--batches", "1,4", "--contexts",
                              "16,256", "--prompts", "64", "--max-context", "1024", "--max-batch", "4",
                              "--output-tokens", "32"], threads)

    parts = {"runs": runs, "busy": lambda: measure_busy(nibble, peer, options.model, threads), "formats": formats,
             "bandwidth": bandwidth}
    chosen = options.parts.split(",") if options.parts else list(parts) if options.full else ["runs"]
    if unknown := set(chosen) - set(parts):
        sys.exit(f"--parts: there is no {', '.join(sorted(unknown))}; known are {', '.join(parts)}")
    options.results.mkdir(parents=True, exist_ok=True)
    data = options.results / f"{options.name}.json"
    result = dict.fromkeys(parts) | (json.loads(data.read_text()) if data.exists() else {})
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    result |= {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores of {cpu}",
               "system": platform.platform(), "nibble": run([nibble, "--version"]).strip(),
               "peer": f"llama-cpp-python {PEER_VERSION}, GGML_NATIVE", "threads": threads}
    for part in chosen:
        result[part] = parts[part]()
        data.write_text(json.dumps(result, indent=1) + "\n")
        data.with_suffix(".md").write_text(report(result))
    print(report(result), end="")


if __name__ == "__main__":
    main()
