"""What formats and narrow activations cost in quality: perplexity over a fixed text, by prompt log-probabilities.

    python tests/bench/perplexity.py [--nibble BINARY] [--f16 MODEL.f16.gguf] [MODEL.gguf ...] [--compute f32,auto,int8]

Each model as it is; the 16-bit one also quantized at load in every way that --quantize knows. The text, public-domain
prose of data/perplexity.txt, is cut into windows of --window tokens; every token of a window but the first counts.
Writes NAME.json and NAME.md into --results and prints the latter.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUANTIZE = ("int8", "int4", "nf4", "fp4")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    parser.add_argument("--f16", type=pathlib.Path, default=pathlib.Path("/tmp/peer/models/SmolLM2-135M-Instruct.f16.gguf"),
                        help="the model that --quantize is tried on (%(default)s, which compare_llama_cpp.py makes)")
    parser.add_argument("--nibble", type=pathlib.Path, default=ROOT / "build/release/server/nibble")
    parser.add_argument("--compute", default="f32,auto,int8")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--name", default="cpu_perplexity")
    return parser.parse_args()


def score(model, quantize, compute, text, window):
    """The format's name and the log-probability of every token that counts."""
    from daemon import Daemon
    args = ["--device", "cpu", "--compute", compute, "--kv-memory", "256MiB", "--max-batch", "4"]
    if quantize != "none":
        args += ["--quantize", quantize]
    with Daemon(f"model={model}", args=args) as daemon:
        client = daemon.client()
        info = client.GetModel(model="model").model
        tokens = list(client.Tokenize(text=text).token_ids)
        logprobs = []
        for at in range(0, len(tokens) - 1, window):
            answer = client.ask(tokens={"ids": tokens[at:at + window]}, stopping={"max_tokens": 0},
                                output={"prompt_top_logprobs": 0}, timeout=600)
            entries = [entry for piece in answer.prompt for entry in piece.logprobs]
            logprobs += [entry.logprob for entry in entries[1:]]
        client.close()
    return info.format, logprobs


def main():
    options = parse()
    os.environ["NIBBLE_BIN"] = str(options.nibble)  # read when daemon.py is imported
    sys.path.insert(0, str(ROOT / "tests/support"))
    text = (HERE / "data/perplexity.txt").read_text()
    models = options.models or sorted(options.f16.parent.glob("*.gguf"))
    cases = [(model, "none") for model in [ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf", *models]
             if model.exists()]
    cases += [(options.f16, quantize) for quantize in QUANTIZE if options.f16.exists()]
    computes = options.compute.split(",")
    rows, base = [], None
    for model, quantize in sorted(cases, key=lambda case: (case[0] != options.f16, case[1] != "none")):
        row = {"file": model.name, "quantize": quantize}
        for compute in computes:
            print(f"{model.name} --quantize {quantize} --compute {compute}", file=sys.stderr)
            row["format"], logprobs = score(model, quantize, compute, text, options.window)
            base = base or logprobs
            moved = [abs(a - b) for a, b in zip(logprobs, base)]
            row[compute] = {"perplexity": math.exp(-statistics.fmean(logprobs)),
                            "error": statistics.stdev(logprobs) / math.sqrt(len(logprobs)),
                            "mean_change": statistics.fmean(moved), "tokens": len(logprobs)}
        rows.append(row)
    first = rows[0]
    lines = ["# Perplexity of SmolLM2-135M-Instruct by format and activations", "",
             f"    date     {datetime.date.today().isoformat()}",
             f"    text     tests/bench/data/perplexity.txt, {first[computes[0]]['tokens']} tokens scored in windows of "
             f"{options.window}",
             f"    baseline {first['file']} with {computes[0]} activations", "",
             "Perplexity, and in brackets the mean change of a token's log-probability from the baseline's. The files",
             "but Q4_1 were made from Q4_1, so that none is better than it; compare each column with f32.", "",
             "| file | --quantize | " + " | ".join(computes) + " |", "|---" * (2 + len(computes)) + "|"]
    for row in rows:
        cells = " | ".join(f"{row[c]['perplexity']:.3f} ({row[c]['mean_change']:.4f})" for c in computes)
        lines.append(f"| {row['file']} | {row['quantize']} | {cells} |")
    options.results.mkdir(parents=True, exist_ok=True)
    result = {"date": datetime.date.today().isoformat(), "window": options.window, "rows": rows}
    (options.results / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.results / f"{options.name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
