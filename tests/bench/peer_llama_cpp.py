"""Measures llama.cpp on this machine: prompt and generation speed of one GGUF file.

    python -m venv /tmp/peer && CMAKE_ARGS=-DGGML_NATIVE=ON /tmp/peer/bin/pip install \
        --no-binary llama-cpp-python llama-cpp-python numpy
    /tmp/peer/bin/python tests/bench/peer_llama_cpp.py MODEL.gguf [--threads 2] [--repeats 5]

Prints one JSON object: the medians of tokens a second for a 512-token prompt (pp512) and for 128 tokens generated
after a 16-token prompt (tg128), with every repeat beside them.
"""

import argparse
import json
import statistics
import time

import llama_cpp

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeats", type=int, default=5)
arguments = parser.parse_args()

llm = llama_cpp.Llama(arguments.model, n_ctx=1024, n_batch=512, n_threads=arguments.threads,
                      n_threads_batch=arguments.threads, verbose=False)
prompt = [(i * 37) % 40000 + 100 for i in range(512)]
rows = {"pp512": [], "tg128": []}
for _ in range(arguments.repeats + 1):
    llm.reset()
    begin = time.perf_counter()
    llm.eval(prompt)
    rows["pp512"].append(512 / (time.perf_counter() - begin))
    llm.reset()
    llm.eval(prompt[:16])
    begin = time.perf_counter()
    for i in range(128):
        llm.eval([prompt[i]])
    rows["tg128"].append(128 / (time.perf_counter() - begin))
result = {"program": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}", "model": arguments.model.split("/")[-1],
          "threads": arguments.threads}
for name, values in rows.items():
    result[name] = round(statistics.median(values[1:]), 1)  # the first warms up
    result[name + "_all"] = [round(value, 1) for value in values[1:]]
print(json.dumps(result))
