#!/usr/bin/env python3
"""Writes the seeds of the safetensors and gguf fuzz entries: one tiny valid file a format. The safetensors entry
takes its quantization config from the file's last byte, modulo the length of its table."""
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent


def safetensors(name, config, tensors):
    header, data = {}, b""
    for tensor, dtype, shape, size in tensors:
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes((7 * i + 3) % 64 for i in range(size))
    header["last"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    text = json.dumps(header, separators=(",", ":")).encode()
    file = struct.pack("<Q", len(text)) + text + data + bytes([config])
    (HERE / "safetensors" / name).write_bytes(file)


def raw(name, config, tensors):
    """As above, with the bytes of each tensor given."""
    header, data = {}, b""
    for tensor, dtype, shape, content in tensors:
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header["last"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    text = json.dumps(header, separators=(",", ":")).encode()
    (HERE / "safetensors" / name).write_bytes(struct.pack("<Q", len(text)) + text + data + bytes([config]))


def gguf(name, tensors):
    string = lambda text: struct.pack("<Q", len(text)) + text.encode()
    keys = [string("general.architecture") + struct.pack("<I", 8) + string("llama"),
            string("llama.block_count") + struct.pack("<II", 4, 1),
            string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("b"),
            string("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, -1)]
    table, data = b"", b""
    for tensor, dims, kind, size in tensors:
        table += string(tensor) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<q", d) for d in dims)
        table += struct.pack("<IQ", kind, len(data))
        data += bytes((5 * i + 1) % 60 for i in range(size))
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + table
    (HERE / "gguf" / name).write_bytes(head + bytes(-len(head) % 32) + data)


def main():
    dense = [("a.weight", "F16", [2, 8], 32), ("a.bias", "F32", [2], 8)]
    safetensors("dense", 0, dense)
    for offset, mode in enumerate(["nf4", "fp4", "int8", "int4"]):
        safetensors("at_load_" + mode, 8 * (offset + 1), dense)
    safetensors("gptq", 1, [("a.qweight", "I32", [2, 8], 64), ("a.qzeros", "I32", [2, 1], 8),
                            ("a.scales", "F16", [2, 8], 32)])
    raw("gptq_act_order", 1, [("a.qweight", "I32", [2, 8], bytes(64)), ("a.qzeros", "I32", [2, 1], bytes(8)),
                              ("a.scales", "F16", [2, 8], bytes(32)),
                              ("a.g_idx", "I32", [16], struct.pack("<16i", *[i % 2 for i in range(16)]))])
    safetensors("gptq_3bit", 2, [("c.qweight", "I32", [3, 32], 384), ("c.qzeros", "I32", [1, 3], 12),
                                 ("c.scales", "F16", [1, 32], 64)])
    safetensors("awq_gemm", 3, [("a.qweight", "I32", [8, 1], 32), ("a.qzeros", "I32", [1, 1], 4),
                                ("a.scales", "F16", [1, 8], 16)])
    safetensors("awq_gemv_fast", 4, [("a.qweight", "I16", [1, 64], 128), ("a.qzeros", "F16", [16, 4], 128),
                                     ("a.scales", "F16", [16, 4], 128)])
    state = b'{"quant_type":"nf4","blocksize":4,"shape":[2,6],"nested_blocksize":256,"nested_offset":0.5}'
    state_name = "a.weight.quant_state.bitsandbytes__nf4"
    raw("nf4", 5, [("a.weight", "U8", [6, 1], bytes(range(6))), ("a.weight.absmax", "F32", [3], bytes(12)),
                   (state_name, "U8", [len(state)], state)])
    raw("nf4_double", 5, [("a.weight", "U8", [6, 1], bytes(range(6))), ("a.weight.absmax", "U8", [3], bytes(3)),
                          ("a.weight.nested_absmax", "F32", [1], bytes(4)),
                          ("a.weight.nested_quant_map", "F32", [256], bytes(1024)),
                          (state_name, "U8", [len(state)], state)])
    safetensors("llm_int8", 5, [("a.weight", "I8", [2, 4], 8), ("a.SCB", "F32", [2], 8)])
    raw("packed", 6, [("b.weight_packed", "I32", [1, 1], bytes(4)), ("b.weight_scale", "F16", [1, 1], bytes(2)),
                      ("b.weight_shape", "I64", [2], struct.pack("<qq", 1, 8))])
    raw("packed_zeros", 6, [("a.weight_packed", "I32", [1, 2], bytes(8)), ("a.weight_scale", "F16", [1, 2], bytes(4)),
                            ("a.weight_zero_point", "I32", [1, 2], bytes(8)),
                            ("a.weight_shape", "I64", [2], struct.pack("<qq", 1, 16))])
    safetensors("w8a8", 7, [("a.weight", "I8", [2, 4], 8), ("a.weight_scale", "F32", [2, 1], 8),
                            ("a.weight_zero_point", "I8", [2, 1], 2), ("a.input_scale", "F32", [1], 4)])
    blocks = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 20: 18, 23: 136,
              34: 54, 35: 66, 39: 17}
    for kind, size in blocks.items():
        columns = 32 if size < 36 else 256
        gguf(f"type_{kind}", [("blk.0.ffn_down.weight", [columns, 2], kind, 2 * size)])
    gguf("experts", [("blk.0.ffn_up_exps.weight", [32, 2, 2], 8, 4 * 34), ("blk.0.ffn_up_exps.bias", [2, 2], 0, 16)])
    gguf("floats", [("a.weight", [2, 2], 0, 16), ("a.bias", [2], 0, 8), ("b.weight", [2, 2], 30, 8)])


main()
