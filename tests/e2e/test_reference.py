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


def checkpoints(conformance):
    """(name, reference.json, what to serve, the flags it needs) of every directory."""
    directories = sorted(path for path in (conformance / "checkpoints").iterdir() if path.is_dir())
    if not directories:
        pytest.skip("no checkpoints in the conformance data")
    for directory in directories:
        reference = json.loads((directory / "reference.json").read_text())
        path = directory / reference["file"] if "file" in reference else directory
        yield directory.name, reference, path, reference.get("serve_flags", [])


def test_checkpoints(conformance):
    for name, reference, path, flags in checkpoints(conformance):
        with Daemon(f"m={path}", args=["--compute", "f32", *flags]) as daemon:
            client = daemon.client()
            for case in [reference, *reference.get("more", [])]:
                answer = client.ask(tokens={"ids": case["prompt"]}, sampling={"temperature": 0.0},
                                    stopping={"max_tokens": len(case["tokens"]), "ignore_eos": True},
                                    output={"output_token_ids": True})
                assert same_or_tie(list(answer.ids[0]), case["tokens"],
                                   lambda i: [entry[1] for entry in case["steps"][i][:2]]), \
                    (name, case.get("case"), list(answer.ids[0]), case["tokens"])


def test_default_compute_stays_close(conformance):
    """Teacher-forced over the reference's steps: how far log-probabilities lie from its logits, both relative to the
    reference's best token, and how often the best token is the same."""
    for name, reference, path, flags in checkpoints(conformance):
        own_rounding = "int8" in name or "w8a8" in name or "fp8" in name  # one code the other way moves all that follows
        with Daemon(f"m={path}", args=flags) as daemon:
            client = daemon.client()
            same = steps = 0
            for case in [reference, *reference.get("more", [])]:
                answer = client.ask(tokens={"ids": case["prompt"] + case["tokens"]}, stopping={"max_tokens": 0},
                                    output={"prompt_top_logprobs": 20})
                entries = [entry for piece in answer.prompt for entry in piece.logprobs][len(case["prompt"]):]
                assert len(entries) == len(case["steps"])
                for entry, ((best, top), *others) in zip(entries, case["steps"]):
                    found = {t.token_id: t.logprob for t in entry.top}
                    ties = {best, *(token for token, logit in others if top - logit < NEAR_TIE)}
                    same += entry.top[0].token_id in ties
                    steps += 1
                    for token, logit in others:
                        if token in found and best in found:
                            gap = abs((found[token] - found[best]) - (logit - top))
                            assert gap < (0.6 if own_rounding else 0.3), (name, case.get("case"), token, gap)
            assert same >= 0.97 * steps, (name, same, steps)
