"""Greedy answers of the whole daemon against what other people's programs computed from the same files."""

import json

import pytest

from daemon import Daemon

NEAR_TIE = 0.02


def same_or_tie(ids, expected, top):
    """Equal up to the first position where the reference's own two best are closer than NEAR_TIE."""
    for position, (got, wanted) in enumerate(zip(ids, expected)):
        if got != wanted:
            best = top(position)
            return best[0] - best[1] < NEAR_TIE
    return True


def test_smollm2_against_llama_cpp(smollm2_path, conformance):
    cases = json.loads((conformance / "smollm2/completions.json").read_text())["cases"]
    chats = json.loads((conformance / "smollm2/chat.json").read_text())["cases"]
    with Daemon(f"m={smollm2_path}", args=["--compute", "f32"]) as daemon:
        client = daemon.client()
        for case in cases:
            answer = client.ask(tokens={"ids": case["prompt_ids"]}, sampling={"temperature": 0.0},
                                stopping={"max_tokens": len(case["ids"])}, output={"output_token_ids": True})
            assert same_or_tie(list(answer.ids[0]), case["ids"],
                               lambda i: [entry[1] for entry in case["probs"][i]["top"][:2]]), case["prompt"]
        for case in chats:
            ids = client.Tokenize(chat={"messages": case["messages"]}).token_ids
            assert list(ids) == case["prompt_ids"]


def test_checkpoints(conformance):
    ran = 0
    for directory in sorted(path for path in (conformance / "checkpoints").iterdir() if path.is_dir()):
        reference = json.loads((directory / "reference.json").read_text())
        path = directory / reference["file"] if "file" in reference else directory
        flags = reference.get("serve_flags", [])
        with Daemon(f"m={path}", args=["--compute", "f32", *flags]) as daemon:
            client = daemon.client()
            for case in [reference, *reference.get("more", [])]:
                answer = client.ask(tokens={"ids": case["prompt"]}, sampling={"temperature": 0.0},
                                    stopping={"max_tokens": len(case["tokens"]), "ignore_eos": True},
                                    output={"output_token_ids": True})
                assert same_or_tie(list(answer.ids[0]), case["tokens"],
                                   lambda i: [entry[1] for entry in case["steps"][i][:2]]), \
                    (directory.name, case.get("case"), list(answer.ids[0]), case["tokens"])
                ran += 1
    if not ran:
        pytest.skip("no checkpoints in the conformance data")
