"""Tests of what operators deploy. They talk to real daemons through the same fixtures as tests/e2e."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))

from importlib import util as _util  # noqa: E402

_spec = _util.spec_from_file_location("e2e_conftest", pathlib.Path(__file__).parents[1] / "e2e/conftest.py")
_shared = _util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)
for _name in ("pytest_configure", "nightly", "smollm2_path", "conformance", "tiny_path", "tiny", "tiny_client",
              "smollm2", "smollm2_client"):
    globals()[_name] = getattr(_shared, _name)
