"""The conformance checkpoints and what other people's programs computed from them."""

import json

import pytest

NEAR_TIE = 0.02


def checkpoints(conformance):
    """(name, reference.json, what to serve, the flags it needs) of every directory."""
    directories = sorted(path for path in (conformance / "checkpoints").iterdir() if path.is_dir())
    if not directories:
        pytest.skip("no checkpoints in the conformance data")
    for directory in directories:
        reference = json.loads((directory / "reference.json").read_text())
        path = directory / reference["file"] if "file" in reference else directory
        yield directory.name, reference, path, reference.get("serve_flags", [])


def cases(reference):
    return [reference, *reference.get("more", [])]


def rounds_activations(name):
    """Whether the format itself does: there one code the other way moves all that follows."""
    return "int8" in name or "w8a8" in name or "fp8" in name


def same_or_tie(ids, expected, top, tie=NEAR_TIE):
    """Equal up to the first position where the reference's own two best are closer than `tie`."""
    for position, (got, wanted) in enumerate(zip(ids, expected)):
        if got != wanted:
            best = top(position)
            return best[0] - best[1] < tie
    return True


class Score:
    """How far log-probabilities lie from a reference's logits, both relative to its best token, over its steps."""

    def __init__(self):
        self.gaps, self.steps, self.same = [], 0, 0

    def add(self, client, case, model="", tie=NEAR_TIE):
        """Teacher-forced: the reference's tokens, whatever ours would have been."""
        answer = client.ask(model=model, tokens={"ids": case["prompt"] + case["tokens"]}, stopping={"max_tokens": 0},
                            output={"prompt_top_logprobs": 20})
        entries = [entry for piece in answer.prompt for entry in piece.logprobs][len(case["prompt"]):]
        assert len(entries) == len(case["steps"])
        for entry, ((best, top), *others) in zip(entries, case["steps"]):
            found = {t.token_id: t.logprob for t in entry.top}
            ties = {best, *(token for token, logit in others if top - logit < tie)}
            self.same += entry.top[0].token_id in ties
            self.steps += 1
            self.gaps += [abs((found[token] - found[best]) - (logit - top))
                          for token, logit in others if token in found and best in found]

    def mean(self):
        return sum(self.gaps) / len(self.gaps)

    def __str__(self):
        return (f"worst gap {max(self.gaps):.3f}, mean {self.mean():.4f}, "
                f"the same best token {self.same} of {self.steps}")
