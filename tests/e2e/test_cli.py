"""The program as a person or a script runs it."""

import json
import subprocess

import pytest

from daemon import BIN


def run(*args, code=0, timeout=120):
    result = subprocess.run([str(BIN), *map(str, args)], capture_output=True, text=True, timeout=timeout)
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    return result


def test_generate_against_a_server(smollm2):
    result = run("generate", "--server", smollm2.address, "--temperature", "0", "--max-tokens", "8",
                 "The capital of France is")
    assert "Paris" in result.stdout


def test_generate_in_process_says_the_same(smollm2, smollm2_path):
    args = ("--chat", "--temperature", "0", "--max-tokens", "16", "What is gravity?")
    remote = run("generate", "--server", smollm2.address, *args)
    local = run("generate", "--model", smollm2_path, *args)
    assert local.stdout == remote.stdout and "ravity" in local.stdout


def test_plan_and_inspect(smollm2_path):
    plan = json.loads(run("plan", smollm2_path, "--json").stdout)
    shown = run("plan", smollm2_path, "--compute", "int8").stdout
    assert "MiB" in shown and "int8 in blocks of 32" in shown
    assert plan["compute"] and plan["plan"]["total_bytes"] > plan["plan"]["weights_bytes"] > 90e6
    inspect = json.loads(run("inspect", smollm2_path, "--json").stdout)
    assert "Q4_1" in json.dumps(inspect)
    assert "Q4_1" in run("inspect", smollm2_path).stdout


def test_inspect_refuses_with_a_reason(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    result = run("inspect", tmp_path / "bad.gguf", code=3)
    assert "bad.gguf" in result.stderr


def test_bench(smollm2_path):
    result = json.loads(run("bench", smollm2_path, "--json").stdout)
    assert json.dumps(result)


def test_bench_of_streams_while_prompts_arrive(tiny_path):
    args = ("bench", tiny_path, "--prompts", "32", "--batches", "1", "--repeats", "1", "--arrivals", "3",
            "--arrival-streams", "2", "--arrival-context", "50", "--max-itl", "20ms", "--arrival-prompt")
    arrivals, = json.loads(run(*args, "200", "--json").stdout)["arrivals"]
    assert (arrivals["streams"], arrivals["prompts"], arrivals["prompt_tokens"]) == (2, 3, 200)
    assert 0 < arrivals["gap_seconds_p50"] <= arrivals["gap_seconds_p99"] <= arrivals["gap_seconds_max"]
    assert 0 < arrivals["first_token_seconds_p50"] <= arrivals["first_token_seconds_max"] == arrivals["seconds"]
    assert arrivals["gaps"] >= 2
    assert "while 3 prompts of 200 arrive" in run(*args, "200").stdout
    refused = run(*args, "4000", code=2).stderr
    assert "--arrival-streams" in refused and "4096" in refused


def test_health(smollm2):
    run("health", "--server", smollm2.address)
    run("health", "--server", "127.0.0.1:1", code=1)


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"], ["plan", "--help"], ["inspect", "--help"],
                                  ["generate", "--help"], ["bench", "--help"], ["health", "--help"], ["--version"]])
def test_help(args):
    assert run(*args).stdout


def test_unknown_subcommand():
    result = run("srve", code=2)
    assert "serve" in result.stderr
