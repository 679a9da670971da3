"""Measures llama.cpp on this machine through its C API; compare_llama_cpp.py runs it in a Python of its own.

    peer_llama_cpp.py measure MODEL.gguf [--threads 2] [--repeats 2] [--divide 1] [--decode-only]
    peer_llama_cpp.py quantize MODEL.gguf TYPE OUT.gguf      TYPE: f16, q8_0, q4_k_m, q4_0

`measure` prints one JSON object. Of each number one run more than the repeats is made, and the first does not count:
    prefill_512     tokens a second of a 512-token prompt
    first_token_200 seconds until the logits after a 200-token prompt are there
    decode_1        tokens a second of one sequence, 128 tokens after a 16-token prompt
    decode_16       of 16 sequences together that decode in one batch, as the slots of its server do
    load_seconds    from the file to a context that can decode
Tokens are fed, not sampled: sampling costs it nothing here. --divide makes prompts and answers that much shorter: beside
busy processes it may be a hundred times slower.
"""

import argparse
import ctypes
import json
import time

import llama_cpp

TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}
CONTEXT = 1024


def quantize(source, kind, out):
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[kind]
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters)) != 0:
        raise SystemExit(f"llama.cpp cannot make {kind} of {source}")


class Context:
    """A model and `sequences` sequences of up to CONTEXT tokens each."""

    def __init__(self, model, threads, sequences):
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = CONTEXT * sequences
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, parameters)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.lengths = [0] * sequences

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.lengths = [0] * len(self.lengths)

    def step(self, entries):
        """`entries`: (sequence, tokens); logits after the last token of each."""
        at = 0
        for sequence, tokens in entries:
            for i, token in enumerate(tokens):
                self.batch.token[at] = token
                self.batch.pos[at] = self.lengths[sequence] + i
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = sequence
                self.batch.logits[at] = i + 1 == len(tokens)
                at += 1
            self.lengths[sequence] += len(tokens)
        self.batch.n_tokens = at
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama.cpp fails to decode")
        llama_cpp.llama_synchronize(self.context)

    def free(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)


def some_tokens(count, seed):
    return [(i * 37 + seed * 101) % 40000 + 100 for i in range(count)]


def prompt_seconds(context, tokens):
    context.clear()
    begin = time.perf_counter()
    context.step([(0, some_tokens(tokens, 1))])
    return time.perf_counter() - begin


def decode_rate(context, sequences, outputs):
    context.clear()
    for sequence in range(sequences):
        context.step([(sequence, some_tokens(16, sequence))])
    fed = some_tokens(outputs, 7)
    begin = time.perf_counter()
    for token in fed:
        context.step([(sequence, [(token + sequence) % 40000 + 100]) for sequence in range(sequences)])
    return sequences * outputs / (time.perf_counter() - begin)


def measure(path, threads, repeats, divide, decode_only):
    begin = time.perf_counter()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    context = Context(model, threads, 1)
    result = {"program": f"llama-cpp-python {llama_cpp.__version__}", "load_seconds": time.perf_counter() - begin}
    runs = range(repeats + 1)
    if decode_only:
        result["decode_1"] = [decode_rate(context, 1, 128 // divide) for _ in runs][1:]
        return result
    result["prefill_512"] = [512 // divide / prompt_seconds(context, 512 // divide) for _ in runs][1:]
    result["first_token_200"] = [prompt_seconds(context, 200 // divide) * divide for _ in runs][1:]
    result["decode_1"] = [decode_rate(context, 1, 128 // divide) for _ in runs][1:]
    context.free()
    context = Context(model, threads, 16)
    result["decode_16"] = [decode_rate(context, 16, 64 // divide) for _ in runs][1:]
    context.free()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("measure")
    measured.add_argument("model")
    measured.add_argument("--threads", type=int, default=2)
    measured.add_argument("--repeats", type=int, default=2)
    measured.add_argument("--divide", type=int, default=1)
    measured.add_argument("--decode-only", action="store_true", help="decode_1 and nothing else")
    quantized = commands.add_parser("quantize")
    quantized.add_argument("model")
    quantized.add_argument("type", choices=sorted(TYPES))
    quantized.add_argument("out")
    arguments = parser.parse_args()

    @llama_cpp.llama_log_callback
    def silent(level, text, data):
        pass
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    if arguments.command == "quantize":
        quantize(arguments.model, arguments.type, arguments.out)
    else:
        print(json.dumps(measure(arguments.model, arguments.threads, arguments.repeats, arguments.divide,
                                 arguments.decode_only)))


if __name__ == "__main__":
    main()
