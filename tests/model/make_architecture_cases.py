#!/usr/bin/env python3
"""Writes architecture_cases.json: tiny models of every family and what an independent implementation (mlx-lm, on the
CPU, in f32) computes from them. Weights are a hash of the tensor's name, so that the file holds only results.

    pip install "mlx[cpu]" mlx-lm numpy safetensors
    tests/model/make_architecture_cases.py > tests/model/architecture_cases.json
"""
import json
import pathlib
import tempfile

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from safetensors.numpy import save_file

PROMPT = [(7 * i * i + 3 * i + 5) % 40 for i in range(24)]
BASE = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, torch_dtype="float32",
            bos_token_id=1, eos_token_id=2)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
GEMMA2 = dict(architectures=["Gemma2ForCausalLM"], model_type="gemma2", rope_theta=10000.0, head_dim=16,
              hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=5.0, final_logit_softcapping=8.0,
              sliding_window=64)
GEMMA3 = dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", rope_theta=1e6,
              rope_local_base_freq=1e4, head_dim=16, hidden_activation="gelu_pytorch_tanh", sliding_window=8,
              num_hidden_layers=7)
SMOLLM3 = dict(architectures=["SmolLM3ForCausalLM"], model_type="smollm3", rope_theta=2e6, num_hidden_layers=5,
               tie_word_embeddings=True)
# What GGUF has no key for.
NOT_IN_GGUF = {"gemma2_scalar", "gemma3_pattern", "smollm3_list", "qwen3_moe_step"}

CASES = {
    "llama": dict(architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=10000.0,
                  tie_word_embeddings=True, hidden_act="silu"),
    "llama3": dict(architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=500000.0, rope_scaling=LLAMA3,
                   attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "linear": dict(architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=10000.0,
                   rope_scaling=dict(type="linear", factor=4.0), tie_word_embeddings=True),
    "mistral": dict(architectures=["MistralForCausalLM"], model_type="mistral", rope_theta=10000.0,
                    sliding_window=None, head_dim=16, tie_word_embeddings=False),
    "mixtral": dict(architectures=["MixtralForCausalLM"], model_type="mixtral", rope_theta=1e6, sliding_window=None,
                    num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False),
    "qwen2": dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", rope_theta=1e6, tie_word_embeddings=True),
    "qwen3": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", rope_theta=1e6, head_dim=16,
                  tie_word_embeddings=True),
    "qwen3_yarn": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", rope_theta=1e4, head_dim=16,
                       max_position_embeddings=32, tie_word_embeddings=False,
                       rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "qwen3_moe": dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", rope_theta=1e6, head_dim=16,
                      num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
                      decoder_sparse_step=1, mlp_only_layers=[], tie_word_embeddings=False),
    "qwen3_moe_mixed": dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", rope_theta=1e6, head_dim=8,
                            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=False,
                            decoder_sparse_step=1, mlp_only_layers=[1, 2], tie_word_embeddings=False),
    "qwen3_moe_step": dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", rope_theta=1e6, head_dim=8,
                           num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=False,
                           decoder_sparse_step=2, mlp_only_layers=[], tie_word_embeddings=False),
    "phi3": dict(architectures=["Phi3ForCausalLM"], model_type="phi3", rope_theta=10000.0, sliding_window=None,
                 tie_word_embeddings=False),
    "phi3_partial": dict(architectures=["Phi3ForCausalLM"], model_type="phi3", rope_theta=10000.0,
                         sliding_window=None, num_attention_heads=2, num_key_value_heads=2,
                         partial_rotary_factor=0.75, tie_word_embeddings=False),
    "phi3_longrope": dict(architectures=["Phi3ForCausalLM"], model_type="phi3", rope_theta=10000.0,
                          sliding_window=None, original_max_position_embeddings=32, tie_word_embeddings=False,
                          rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.2, 1.5],
                                            long_factor=[1.5, 2.0, 3.0, 4.0])),
    "gemma2": dict(**GEMMA2, query_pre_attn_scalar=16),
    "gemma2_scalar": dict(**GEMMA2, query_pre_attn_scalar=24),
    "gemma3": dict(**GEMMA3, query_pre_attn_scalar=16),
    "gemma3_pattern": dict(**GEMMA3, query_pre_attn_scalar=24, sliding_window_pattern=3),
    "smollm3": dict(**SMOLLM3, no_rope_layers=[1, 1, 1, 0, 1]),
    "smollm3_list": dict(**SMOLLM3, no_rope_layers=[1, 0, 1, 0, 1]),
}


def fnv1a(name):
    h = 0xcbf29ce484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001b3 % 2**64
    return h


def values(name, shape):
    """splitmix64 of hash + index, as 24 bits in [-1/2, 1/2)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    return unit.reshape(shape)


def tensors(c):
    """(name, shape) of every tensor; norms are one-dimensional."""
    family = c["model_type"]
    hidden, inner, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    dim = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = dim * c["num_attention_heads"], dim * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not c.get("tie_word_embeddings", family.startswith("gemma")):
        yield "lm_head.weight", (vocab, hidden)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "post_attention_layernorm.weight", (hidden,)
        if family.startswith("gemma"):
            yield p + "pre_feedforward_layernorm.weight", (hidden,)
            yield p + "post_feedforward_layernorm.weight", (hidden,)
        if family.startswith("qwen3") or family == "gemma3_text":
            yield p + "self_attn.q_norm.weight", (dim,)
            yield p + "self_attn.k_norm.weight", (dim,)
        if family == "phi3":
            yield p + "self_attn.qkv_proj.weight", (q + 2 * kv, hidden)
        else:
            for name, n in (("q", q), ("k", kv), ("v", kv)):
                yield p + f"self_attn.{name}_proj.weight", (n, hidden)
                if family == "qwen2" or c.get("attention_bias"):
                    yield p + f"self_attn.{name}_proj.bias", (n,)
        yield p + "self_attn.o_proj.weight", (hidden, q)
        if c.get("attention_bias"):
            yield p + "self_attn.o_proj.bias", (hidden,)
        if family == "mixtral":
            m = p + "block_sparse_moe."
            yield m + "gate.weight", (c["num_local_experts"], hidden)
            for e in range(c["num_local_experts"]):
                yield m + f"experts.{e}.w1.weight", (inner, hidden)
                yield m + f"experts.{e}.w2.weight", (hidden, inner)
                yield m + f"experts.{e}.w3.weight", (inner, hidden)
        elif (family == "qwen3_moe" and i not in c["mlp_only_layers"] and
              (i + 1) % c["decoder_sparse_step"] == 0):
            m = p + "mlp."
            yield m + "gate.weight", (c["num_experts"], hidden)
            for e in range(c["num_experts"]):
                yield m + f"experts.{e}.gate_proj.weight", (c["moe_intermediate_size"], hidden)
                yield m + f"experts.{e}.up_proj.weight", (c["moe_intermediate_size"], hidden)
                yield m + f"experts.{e}.down_proj.weight", (hidden, c["moe_intermediate_size"])
        elif family == "phi3":
            yield p + "mlp.gate_up_proj.weight", (2 * inner, hidden)
            yield p + "mlp.down_proj.weight", (hidden, inner)
        else:
            for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                yield p + f"mlp.{name}_proj.weight", shape
                if c.get("mlp_bias"):
                    yield p + f"mlp.{name}_proj.bias", shape[:1]


def weight(name, shape, family):
    value = values(name, shape)
    if name.endswith("norm.weight"):  # Gemma stores w - 1
        return value * np.float32(0.5) + np.float32(0.0 if family.startswith("gemma") else 1.0)
    return value


def main():
    cases = []
    for name, special in CASES.items():
        config = {**BASE, **special}
        listed = dict(tensors(config))
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "config.json").write_text(json.dumps(config))
            save_file({n: weight(n, s, config["model_type"]) for n, s in listed.items()},
                      folder / "model.safetensors", metadata={"format": "pt"})
            model, _ = load_model(folder)
            logits = model(mx.array([PROMPT]))[0].astype(mx.float32)
            logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        # After the first token, one in the middle and the last.
        rows = {row: [round(float(v), 5) for v in logprobs[row]] for row in (0, 11, len(PROMPT) - 1)}
        cases.append({"name": name, "gguf": name not in NOT_IN_GGUF, "config": config, "prompt": PROMPT, "tensors": listed, "logprobs": rows})
    print("[" + ",\n".join(json.dumps(case) for case in cases) + "]")


main()
