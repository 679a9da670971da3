"""The Debian package, its service, the image's recipe and the bill of materials, by the tools that judge them."""

import gzip
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest

from daemon import BIN

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ["deploy/quickstart", "deploy/environment.sh", "deploy/guard/render", "tests/run", ".ci/run",
           "tests/fuzz/run", "tests/deploy/image", "deploy/debian/postinst", "deploy/debian/prerm",
           "deploy/debian/postrm"]
EXPOSURE_LIMIT = 1.5  # systemd's score: 0 is a service that may do nothing, 10 one that may do all


def tool(name):
    path = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: tests/run installs it")
    return path


def run(*command, **kwargs):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """nibble_VERSION_ARCH.deb of the build that NIBBLE_BIN belongs to."""
    config = BIN.resolve().parents[1] / "CPackConfig.cmake"
    if not config.exists():
        pytest.skip(f"{BIN} is not in a build folder, which packaging needs")
    for needed in ("cpack", "dpkg-shlibdeps"):
        tool(needed)
    out = tmp_path_factory.mktemp("deb")
    packed = run("cpack", "--config", config, "-B", out)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    (deb,) = out.glob("*.deb")
    return deb


@pytest.fixture(scope="module")
def root(package, tmp_path_factory):
    """The package's files, unpacked."""
    out = tmp_path_factory.mktemp("root")
    subprocess.run(["dpkg", "-x", package, out], check=True)
    return out


def field(package, name):
    return run("dpkg-deb", "-f", package, name).stdout.strip()


def test_lintian_has_nothing_to_say(package):
    checked = run(tool("lintian"), "--tag-display-limit", "0", "--fail-on", "error,warning", package)
    assert checked.returncode == 0 and not re.search("^[EW]:", checked.stdout, re.M), checked.stdout


def test_package_holds_what_an_operator_expects(package, root):
    for path in ("usr/bin/nibble", "usr/lib/systemd/system/nibble.service", "etc/nibble/nibble.yaml",
                 "usr/share/man/man1/nibble.1.gz", "usr/share/doc/nibble/nibble.spdx.json",
                 "usr/share/nibble/proto/nibble/v1/generation.proto"):
        assert (root / path).is_file(), path
    conffiles = run("dpkg-deb", "-I", package, "conffiles").stdout
    assert conffiles.split() == ["/etc/nibble/nibble.yaml"]
    assert "libgrpc++" in field(package, "Depends")


def test_man_page_says_what_the_program_says(root):
    generated = run(ROOT / "deploy/man/generate", root / "usr/bin/nibble").stdout
    shipped = gzip.decompress((root / "usr/share/man/man1/nibble.1.gz").read_bytes()).decode()
    assert shipped == generated, "stale: deploy/man/generate build/release/server/nibble >deploy/man/nibble.1"


def test_bill_of_materials_names_every_linked_library(root):
    bill = json.loads((root / "usr/share/doc/nibble/nibble.spdx.json").read_text())
    comments = " ".join(entry.get("comment", "") for entry in bill["packages"])
    for library in re.findall(r"/(\S+?) \(0x", run("ldd", root / "usr/bin/nibble").stdout):
        assert pathlib.Path(library).name in comments, library
    itself = next(entry for entry in bill["packages"] if entry["name"] == "nibble")
    digest = run("sha256sum", root / "usr/bin/nibble").stdout.split()[0]
    assert itself["checksums"][0]["checksumValue"] == digest
    ids = [entry["SPDXID"] for entry in bill["packages"]]
    assert len(ids) == len(set(ids))
    assert {relation["relatedSpdxElement"] for relation in bill["relationships"]} == set(ids)


def test_systemd_accepts_the_unit_without_a_word(root, tmp_path):
    analyze = tool("systemd-analyze")
    text = (root / "usr/lib/systemd/system/nibble.service").read_text()
    unit = tmp_path / "nibble.service"
    unit.write_text(text.replace("/usr/bin/nibble", str(root / "usr/bin/nibble")))
    verified = run(analyze, "verify", "--man=no", unit)  # an unknown key is only a warning, with status 0
    assert verified.returncode == 0 and verified.stdout + verified.stderr == ""
    score = run(analyze, "security", "--offline=true", unit).stdout
    exposure = float(re.search(r"Overall exposure level[^:]*: ([\d.]+)", score).group(1))
    assert exposure <= EXPOSURE_LIMIT, score


class ServiceManager:
    """What systemd is to a Type=notify service: a datagram socket."""

    def __init__(self, folder):
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(30)

    def next(self):
        return self.socket.recv(4096).decode()


def start(root, folder, config, **environment):
    path = folder / "nibble.yaml"
    path.write_text(config)
    unit = (root / "usr/lib/systemd/system/nibble.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", unit, re.M).group(1)
    command = command.replace("/usr/bin/", f"{root}/usr/bin/").replace("/etc/nibble/nibble.yaml", str(path))
    return subprocess.Popen(command.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **environment})


def test_service_as_packaged_reports_ready_and_stopping(root, tmp_path, tiny_path):
    manager = ServiceManager(tmp_path)
    config = (root / "etc/nibble/nibble.yaml").read_text()
    config = config.replace("/var/lib/nibble/model.gguf", str(tiny_path))
    config = re.sub(r'^(listen|http): "\[::\]:\d+"$', r'\1: "127.0.0.1:0"', config, flags=re.M)
    daemon = start(root, tmp_path, config, NOTIFY_SOCKET=str(manager.path))
    try:
        assert manager.next() == "READY=1"
        address = re.match(r"ready grpc=(\S+)", daemon.stdout.readline()).group(1)
        health = run(root / "usr/bin/nibble", "health", "--server", address)
        assert health.returncode == 0, health.stderr
        daemon.terminate()
        assert manager.next() == "STOPPING=1"
        assert daemon.wait(30) == 0
    finally:
        daemon.kill()
        daemon.communicate()


@pytest.mark.parametrize("config, status, said", [
    ("models: [chat=/nowhere/model.gguf]\nlisten: 127.0.0.1:0\nhttp: \"off\"\n", 3, "/nowhere/model.gguf"),
    ("modles: []\n", 2, "models"),
    ("models: [chat=/nowhere/model.gguf]\nmax-queue: many\n", 2, "max-queue"),
])
def test_service_does_not_restart_what_cannot_work(root, tmp_path, config, status, said):
    unit = (root / "usr/lib/systemd/system/nibble.service").read_text()
    daemon = start(root, tmp_path, config)
    _, errors = daemon.communicate(timeout=30)
    assert daemon.returncode == status and said in errors, errors
    assert str(status) in re.search("^RestartPreventExitStatus=(.*)$", unit, re.M).group(1).split()


def test_service_waits_longer_than_the_daemon_drains(root):
    unit = (root / "usr/lib/systemd/system/nibble.service").read_text()
    settings = run(root / "usr/bin/nibble", "serve", "--print-config").stdout
    drain = int(re.search(r'^drain-timeout: "(\d+)s"', settings, re.M).group(1))
    assert int(re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.M).group(1)) > drain


def test_dockerfile_is_clean():
    checked = run(tool("hadolint"), ROOT / "deploy/Dockerfile")
    assert checked.returncode == 0, checked.stdout


def test_shell_scripts_are_clean():
    checked = run(tool("shellcheck"), "--severity=warning", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout
