#!/usr/bin/env python3
"""Records what the `tokenizers` library (0.23) answers for small tokenizers that cover the supported components.

  python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3
  venv/bin/python make_tokenizer_goldens.py [TEXTS SEED [FILE]] >tokenizer_goldens.json

Each case: {name, tokenizer, texts: [[text, ids, with special tokens added, special tokens not parsed]],
decodes: [[ids, skip_special, text]]}.
"""
import json
import random
import sys
import unicodedata

from tokenizers import Tokenizer, AddedToken, Regex, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. I'm sure they've seen 3 or 42 of them, haven't they?",
    "Größe, Straße und Übermaß: für 1.234,56 € gibt es schöne Äpfel.", "你好，世界！今天天气很好，我们去公园。",
    "for (int i = 0; i < n; ++i) {\n    a[i] += b[i] * c[i];\n}\n\n\treturn 0x2A;", "안녕하세요 세계, नमस्ते दुनिया",
    "HTTPServer handles GETRequests; camelCaseWords and snake_case_words too.",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
] * 4

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
TAIL = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}""" + TAIL
QWEN2 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}""" + TAIL
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         rf"[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train(pre_tokenizer, normalizer=None, byte_level=True, vocab=420, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    options = {"continuing_subword_prefix": model.get("continuing_subword_prefix"),
               "end_of_word_suffix": model.get("end_of_word_suffix")}
    special = ["<unk>"] if "unk_token" in model else []
    if model.get("byte_fallback"):
        special += ["<0x%02X>" % byte for byte in range(256)]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=vocab + len(special), special_tokens=special, show_progress=False,
        initial_alphabet=pre.ByteLevel.alphabet() if byte_level else [],
        **{key: value for key, value in options.items() if value}))
    if special:  # known to the model, found in no text
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] == "<unk>"]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


def cases():
    byte_level = pre.ByteLevel(add_prefix_space=False)

    t = train(byte_level)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.add_special_tokens(["<|endoftext|>"])
    yield "gpt-2", t

    t = train(pre.ByteLevel(add_prefix_space=True))
    t.decoder = decoders.ByteLevel()
    yield "gpt-2 with a prefix space", t

    def split(pattern):
        return pre.Sequence([pre.Split(Regex(pattern), "isolated"),
                             pre.ByteLevel(add_prefix_space=False, use_regex=False)])

    t = train(split(LLAMA3), ignore_merges=True)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(["<|begin|>", "<|end|>"])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B",
        special_tokens=[("<|begin|>", t.token_to_id("<|begin|>"))])])
    yield "llama-3", t

    t = train(split(QWEN2), normalizers.NFC())
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<tool_call>", normalized=False)])
    yield "qwen2", t

    t = train(split(GPT4O))
    t.decoder = decoders.ByteLevel()
    yield "gpt-4o", t

    llama2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = dict(byte_level=False, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    whole = pre.Split(" ", "merged_with_previous")
    t = train(pre.Metaspace(prepend_scheme="never"), normalizers.Replace("|", " "), **fallback)
    data = json.loads(t.to_str())
    data["normalizer"] = json.loads(llama2.__getstate__())
    data["pre_tokenizer"] = None
    t = Tokenizer.from_str(json.dumps(data))
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens(["<s>", "</s>"])
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[
        ("<s>", t.token_to_id("<s>")), ("</s>", t.token_to_id("</s>"))])
    yield "llama-2", t

    data["normalizer"] = json.loads(normalizers.Replace(" ", "▁").__getstate__())
    t = Tokenizer.from_str(json.dumps(data))
    t.pre_tokenizer = whole
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
    t.add_special_tokens(["<bos>"])
    yield "gemma", t

    for scheme, splits in [("first", False), ("always", True), ("never", True)]:
        data["normalizer"] = None
        t = Tokenizer.from_str(json.dumps(data))
        t.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=splits)
        t.decoder = decoders.Metaspace(prepend_scheme=scheme)
        t.add_special_tokens(["<s>"])
        yield f"metaspace {scheme}", t

    t = train(pre.Sequence([pre.Whitespace(), pre.Digits(individual_digits=True), pre.Punctuation()]),
              normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]),
              byte_level=False, unk_token="<unk>")
    yield "words without a decoder", t

    t = train(pre.Sequence([pre.WhitespaceSplit(), pre.Digits(individual_digits=False)]),
              normalizers.NFD(), byte_level=False, unk_token="<unk>", fuse_unk=True,
              continuing_subword_prefix="##", end_of_word_suffix="</w>")
    t.decoder = decoders.Fuse()
    yield "affixes", t

    for behavior in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]:
        for invert in [False, True]:
            t = train(pre.Split(Regex(r"[aeiou]|\s"), behavior, invert), byte_level=False, unk_token="<unk>",
                      vocab=150)
            t.decoder = decoders.Fuse()
            yield f"split {behavior}{' inverted' if invert else ''}", t

    t = train(pre.Sequence([pre.Split(Regex(r"\b|^\W|\w$"), "isolated"), pre.Split("th", "merged_with_next"),
                            pre.Split(Regex(r"(?<=\d)(?=(\d{3})+(?!\d))"), "isolated"), pre.CharDelimiterSplit("_")]),
              normalizers.Replace(Regex(r"\s+\S\s"), "-"), byte_level=False, unk_token="<unk>", vocab=200)
    t.decoder = decoders.Fuse()
    yield "lookaround", t

    t = train(None or pre.Split(Regex(r"\d"), "isolated"), normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
              byte_level=False, unk_token="<unk>", vocab=200)
    t.decoder = decoders.Fuse()
    t.add_tokens([AddedToken("Left", lstrip=True), AddedToken("right", rstrip=True, normalized=False),
                  AddedToken("word", single_word=True), AddedToken("ÄB", normalized=True),
                  AddedToken("abc", normalized=False), AddedToken("abcde", normalized=False), AddedToken("bcd")])
    t.add_special_tokens([AddedToken("<both>", lstrip=True, rstrip=True)])
    yield "added tokens", t


FRAGMENTS = ["<|endoftext|>", "<|begin|>", "<|end|>", "<|im_start|>", "<tool_call>", "<s>", "</s>", "<unk>", "<bos>",
             "<both>", " <both>\n", "left", "Left ", "right  ", " word", "word", "swords", "äb", "ÄB", "A\u0308B", "abcde",
             "abcd", "▁", "▁▁", "<0x41>", "##", "</w>", "\u180e", "\x85", "\xa0", "\u2009", "\u3000", "\u2028", "\r\n",
             "\n\n\n", "\t", "  ", "     ", "'S", "'ſ", "'LL", "'ve", "don't", "1234567", "½", "٣", "x²", "e\u0301",
             "\u0323\u0301", "ﬁ", "İ", "ΑΣ", "한", "\u1100\u1161", "🙂", "👩\u200d👧", "ÅÅ", "_", "{n}", "\x00", "\x7f",
             "\u200b", "\ufeff", "ǅ", "ª", "ⓐ", "\u0e01\u0e33", "\ue000", "\U00020000"]


def text_of(rng):
    parts = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(4)
        if kind == 0:
            parts.append(rng.choice(FRAGMENTS))
        elif kind == 1:
            parts.append(rng.choice(rng.choice(CORPUS).split()))
            parts.append(rng.choice(["", " ", " "]))
        elif kind == 2:
            words = rng.choice(CORPUS)
            begin = rng.randrange(len(words))
            parts.append(words[begin:begin + rng.randrange(20)])
        else:
            while True:
                c = chr(rng.choice([rng.randrange(0x250), rng.randrange(0x3100), rng.randrange(0x20000)]))
                # characters of Unicode 3.2, whose properties no version since has changed much
                if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs"):
                    break
            parts.append(c * rng.choice([1, 1, 3]))
    return "".join(parts)


def main():
    texts = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    made = list(cases())
    if len(sys.argv) > 3:
        made = [(sys.argv[3], Tokenizer.from_file(sys.argv[3]))]
    records = []
    for name, t in made:
        record = {"name": name, "tokenizer": json.loads(t.to_str()), "texts": [], "decodes": []}
        size = t.get_vocab_size()
        # Normalized added tokens that the normalizer changes: this version decodes them to what the normalizer
        # made of them, earlier ones (and we) to what the file says.
        changed = {id for id, token in t.get_added_tokens_decoder().items()
                   if token.normalized and t.normalizer and t.normalizer.normalize_str(token.content) != token.content}
        for i in range(texts):
            text = "" if i == 0 else text_of(rng)
            plain = t.encode(text, add_special_tokens=False).ids
            added = t.encode(text, add_special_tokens=True).ids
            t.encode_special_tokens = True
            unparsed = t.encode(text, add_special_tokens=False).ids
            t.encode_special_tokens = False
            record["texts"].append([text, plain, added, unparsed])
            ids = [rng.randrange(size + 3) for _ in range(rng.randrange(12))]
            if rng.randrange(2):
                ids = [rng.randrange(min(size, 262)) for _ in ids] + plain
            ids = [id for id in ids if id not in changed]
            skip = bool(rng.randrange(2))
            record["decodes"].append([ids, skip, t.decode(ids, skip_special_tokens=skip)])
        records.append(record)
    json.dump(records, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    print()


main()
