"""Fixtures of every Python test: a daemon, models, data."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))

import tiny_model  # noqa: E402
from daemon import BIN, Daemon  # noqa: E402


def pytest_configure(config):
    if not BIN.exists():
        raise pytest.UsageError(f"{BIN} is not built: run tests/run, or set NIBBLE_BIN")


@pytest.fixture(scope="session")
def nightly():
    return os.environ.get("NIBBLE_NIGHTLY") == "1"


@pytest.fixture(scope="session")
def smollm2_path():
    path = pathlib.Path(os.environ.get(
        "NIBBLE_MODEL", pathlib.Path(__file__).parents[1] / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not path.exists():
        pytest.skip("no SmolLM2 model: tests/run fetches it")
    return path


@pytest.fixture(scope="session")
def conformance():
    path = pathlib.Path(os.environ.get(
        "NIBBLE_CONFORMANCE_DIR", pathlib.Path(__file__).parents[2] / "shared/conformance"))
    if not path.is_dir():
        pytest.skip("no conformance data: set NIBBLE_CONFORMANCE_DIR to run this test")
    return path


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_path):
    """A daemon over the tiny model that tests share; a test that stops or fills a daemon starts its own."""
    with Daemon(f"tiny={tiny_path}") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_client(tiny):
    client = tiny.client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    with Daemon(f"smollm2={smollm2_path}") as running:
        yield running


@pytest.fixture(scope="session")
def smollm2_client(smollm2):
    client = smollm2.client()
    yield client
    client.close()
