"""Runs the real guard of deploy/guard in front of a daemon."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

RENDER = pathlib.Path(__file__).parents[2] / "deploy/guard/render"


def envoy():
    """The pinned Envoy beside this Python, or any on PATH."""
    beside = pathlib.Path(sys.executable).with_name("envoy")
    found = beside if beside.exists() else shutil.which("envoy")
    if not found:
        pytest.skip("no Envoy: tests/run installs it")
    return str(found)


def render(**settings):
    return subprocess.run([str(RENDER), *(f"{name}={value}" for name, value in settings.items())],
                          check=True, capture_output=True, text=True).stdout


class Guard:
    """`edit` changes the rendered configuration: time limits too long for a test. Limits are never loosened."""

    def __init__(self, directory, upstream, edit=lambda text: text, **settings):
        directory.mkdir(parents=True, exist_ok=True)
        config, admin = directory / "envoy.yaml", directory / "admin"
        admin.unlink(missing_ok=True)
        self.text = edit(render(LISTEN_ADDRESS="127.0.0.1", **{"LISTEN_PORT": 0, **settings},
                                UPSTREAM_PORT=upstream.rsplit(":", 1)[1]))
        config.write_text(self.text)
        self.log = directory / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [envoy(), "-c", str(config), "--disable-hot-restart", "--concurrency", "2", "-l", "warning",
                 "--admin-address-path", str(admin), "--config-yaml",
                 "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}"],
                stdout=log, stderr=log, start_new_session=True)
        self.address = self.admin = None
        deadline = time.monotonic() + 30
        while self.address is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("no guard:\n" + self.log.read_text())
            time.sleep(0.02)
            if admin.exists() and (text := admin.read_text().strip()):
                self.admin = text
                self._find_listener()

    def _find_listener(self):
        try:
            found = json.loads(self.get("/listeners?format=json"))["listener_statuses"]
        except OSError:
            return
        if found and self.get("/ready").strip() == "LIVE":
            bound = found[0]["local_address"]["socket_address"]
            self.address = f"{bound['address']}:{bound['port_value']}"

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=10) as response:
            return response.read().decode()

    def stats(self, pattern):
        """{name: value} of the counters and gauges that match."""
        return {name: int(value) for name, value in re.findall(r"^(\S+): (\d+)$", self.get("/stats"), re.M)
                if re.search(pattern, name)}

    def stat(self, pattern):
        return sum(self.stats(pattern).values())

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def cpu_seconds(process):
    """User and system time of a process so far."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.M).group(1)) * 1024
