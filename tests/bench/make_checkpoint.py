#!/usr/bin/env python3
"""Writes a GPTQ checkpoint of Llama-3-8B's shape (4 bits, groups of 128), to time the load of a real one.

    tests/bench/make_checkpoint.py DIRECTORY [LAYERS]

The codes are random, the same in every layer; norms are ones. 5.7 GB, in files of eight layers.
"""

import json
import os
import pathlib
import random
import struct
import sys

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, GROUP = 4096, 14336, 32, 8, 128256, 128
LAYERS_A_FILE = 8
LINEARS = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV_HEADS * 128, HIDDEN),
           "self_attn.v_proj": (KV_HEADS * 128, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
           "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}


def halves(count, scale, signs):
    """Bytes of so many 16-bit floats about `scale` times one of `signs`; a block of 4,096 over and over."""
    block = struct.pack("<4096e", *(scale * random.uniform(0.5, 1.5) * random.choice(signs) for _ in range(4096)))
    return (block * (count // 4096 + 1))[:2 * count]


def linear(n, k):
    """{suffix: (dtype, shape, bytes)} as GPTQ stores a layer: eight codes a word along k."""
    zeros = struct.pack("<I", 0x77777777) * (k // GROUP * (n // 8))  # 8, stored minus one
    order = struct.pack(f"<{k}i", *(i // GROUP for i in range(k)))
    return {"qweight": ("I32", [k // 8, n], os.urandom(k * n // 2)), "qzeros": ("I32", [k // GROUP, n // 8], zeros),
            "scales": ("F16", [k // GROUP, n], halves(k // GROUP * n, 0.2 / k ** 0.5, (1,))), "g_idx": ("I32", [k], order)}


def write(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def main(directory, layers=32):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ones = ("F16", [HIDDEN], struct.pack("<e", 1.0) * HIDDEN)
    made = {f"{name}.{part}": tensor for name, (n, k) in LINEARS.items() for part, tensor in linear(n, k).items()}
    made |= {"input_layernorm.weight": ones, "post_attention_layernorm.weight": ones}
    files = -(-layers // LAYERS_A_FILE) + 1
    names = {}
    for number in range(1, files + 1):
        if number < files:
            within = range((number - 1) * LAYERS_A_FILE, min(number * LAYERS_A_FILE, layers))
            tensors = {f"model.layers.{layer}.{name}": tensor for layer in within for name, tensor in made.items()}
        else:
            table = ("F16", [VOCAB, HIDDEN], halves(VOCAB * HIDDEN, 1 / HIDDEN ** 0.5, (-1, 1)))
            tensors = {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": ones}
        file = f"model-{number:05}-of-{files:05}.safetensors"
        write(directory / file, tensors)
        names |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
                    "checkpoint_format": "gptq"}
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "bos_token_id": 128000, "eos_token_id": 128001, "torch_dtype": "float16", "quantization_config": quantization}))
    vocabulary = {f"t{i}": i for i in range(VOCAB)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
