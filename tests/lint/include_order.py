"""Checks that dependencies point one way, as the folders promise.

server -> {proto, runtime}; runtime -> kernels; kernels -> the standard library and CUDA. Inside runtime each folder may
include only the folders named below. Only server/ (and its tests) includes gRPC, protobuf or HTTP headers; only
cuda_* files and kernels/cuda include CUDA's; JSON, log and metrics libraries stay behind one file each.
"""

import pathlib
import re
import subprocess
import sys

ALLOWED = {
    "kernels": {"kernels"},
    "runtime/base": {"runtime/base"},
    "runtime/weights": {"runtime/base", "runtime/weights", "kernels"},
    "runtime/text": {"runtime/base", "runtime/text"},
    "runtime/cache": {"runtime/base", "runtime/cache"},
    "runtime/metrics": {"runtime/base", "runtime/metrics"},
    "runtime/device": {"runtime/base", "runtime/weights", "runtime/device", "kernels"},
    "runtime/model": {"runtime/base", "runtime/weights", "runtime/device", "runtime/model", "kernels"},
    "runtime/engine": {"runtime", "kernels"},
    "server": {"server", "runtime", "kernels", "proto", "nibble", "google", "grpc"},
}
PRIVATE = [  # header pattern, where it may stand
    (r"^(grpcpp|grpc)/|\.pb\.h$|^google/(protobuf|rpc)/", r"^(server|tests/(server|fuzz)|proto)/"),
    (r"^microhttpd", r"^server/http"),
    (r"^(cuda|cublas|nccl)", r"(^|/)cuda_|^kernels/cuda/|^tests/kernels/cuda/|^tests/bench/"),
    (r"^nlohmann/", r"^runtime/base/json\.cc$"),
    (r"^spdlog/", r"^runtime/base/log\.cc$"),
    (r"^prometheus/", r"^runtime/metrics\.(h|cc)$"),
    (r"^(CLI/|yaml-cpp/)", r"^server/"),
    (r"^(pcre2|utf8proc)", r"^runtime/(text/|weights/module_pattern\.cc$)"),
]

root = pathlib.Path(__file__).resolve().parents[2]
files = subprocess.run(["git", "ls-files", "*.h", "*.cc", "*.cu", "*.cuh"], cwd=root, text=True,
                       capture_output=True, check=True).stdout.split()
errors = []
for name in files:
    owner = next((part for part in sorted(ALLOWED, key=len, reverse=True)
                  if name.startswith(part + "/") or name.startswith(part + ".")), None)
    for number, line in enumerate((root / name).read_text().splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if not match:
            continue
        quoted, header = match.group(1) == '"', match.group(2)
        for pattern, place in PRIVATE:
            if re.search(pattern, header) and not re.search(place, name):
                errors.append(f"{name}:{number}: {header} may not be included here")
        if owner and quoted and re.match(r"(runtime|server|kernels|tests)/", header):
            if not any(header.startswith(part + "/") or header.startswith(part + ".")
                       for part in ALLOWED[owner]):
                errors.append(f"{name}:{number}: {owner} may not depend on {header}")

print("\n".join(errors) or f"include order: {len(files)} files are in order")
sys.exit(bool(errors))
