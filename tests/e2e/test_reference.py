"""Greedy answers of the whole daemon against what other people's programs computed from the same files."""

import json

from daemon import Daemon
from reference import Score, cases, checkpoints, rounds_activations, same_or_tie

EXACT = ["--device", "cpu", "--compute", "f32"]


def test_smollm2_against_llama_cpp(smollm2_path, conformance):
    completions = json.loads((conformance / "smollm2/completions.json").read_text())["cases"]
    chats = json.loads((conformance / "smollm2/chat.json").read_text())["cases"]
    with Daemon(f"m={smollm2_path}", args=EXACT) as daemon:
        client = daemon.client()
        for case in completions:
            answer = client.ask(tokens={"ids": case["prompt_ids"]}, sampling={"temperature": 0.0},
                                stopping={"max_tokens": len(case["ids"])}, output={"output_token_ids": True})
            assert same_or_tie(list(answer.ids[0]), case["ids"],
                               lambda i: [entry[1] for entry in case["probs"][i]["top"][:2]]), case["prompt"]
        for case in chats:
            ids = client.Tokenize(chat={"messages": case["messages"]}).token_ids
            assert list(ids) == case["prompt_ids"]


def test_checkpoints(conformance):
    for name, reference, path, flags in checkpoints(conformance):
        with Daemon(f"m={path}", args=[*EXACT, *flags]) as daemon:
            client = daemon.client()
            for case in cases(reference):
                answer = client.ask(tokens={"ids": case["prompt"]}, sampling={"temperature": 0.0},
                                    stopping={"max_tokens": len(case["tokens"]), "ignore_eos": True},
                                    output={"output_token_ids": True})
                assert same_or_tie(list(answer.ids[0]), case["tokens"],
                                   lambda i: [entry[1] for entry in case["steps"][i][:2]]), \
                    (name, case.get("case"), list(answer.ids[0]), case["tokens"])


def test_default_compute_stays_close(conformance):
    """Of the CPU; a GPU's is in test_cuda.py."""
    for name, reference, path, flags in checkpoints(conformance):
        with Daemon(f"m={path}", args=["--device", "cpu", *flags]) as daemon:
            client, score = daemon.client(), Score()
            for case in cases(reference):
                score.add(client, case)
            assert max(score.gaps) < (0.6 if rounds_activations(name) else 0.3), (name, str(score))
            assert score.same >= 0.97 * score.steps, (name, str(score))
