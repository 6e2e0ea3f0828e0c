"""What has to be downloaded, and what then lies on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import files

from .canned import HERE
from .report import Row, Target


def size(quick: bool) -> list[Row]:
    """The wheel; and it and its dependencies installed, with the bytecode that pip compiles."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "source"), os.path.join(folder, "installed")
        ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "benchmarks", "docs")
        shutil.copytree(HERE, source, ignore=ignored)  # building leaves files beside what it builds
        _pip("wheel", "--no-build-isolation", "-w", folder, source)
        (wheel,) = [name for name in os.listdir(folder) if name.endswith(".whl")]
        packed = os.path.getsize(os.path.join(folder, wheel))
        _pip("install", "--target", target, os.path.join(folder, wheel))
        ours = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(target) for name in names)
    theirs = {name: _installed(name) for name in ("urllib3", "typing_extensions")}
    parts = ", ".join(f"{name} {amount / 1e6:.2f}" for name, amount in {"cycles_lite": ours, **theirs}.items())
    return [
        Row("wheel", packed / 1e3, "KB", None, "", Target(120, "ours"), "built from this checkout"),
        Row(
            "installed with its dependencies",
            (ours + sum(theirs.values())) / 1e6,
            "MB",
            None,
            "",
            Target(2.5, "ours"),
            f"sums of file sizes, bytecode included, in MB: {parts}",
        ),
    ]


def _pip(command: str, *arguments: str) -> None:
    """pip, without an index; what it or setuptools will once do otherwise is no matter here."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    whole = [sys.executable, "-m", "pip", command, "-q", "--no-index", "--no-deps", *arguments]
    subprocess.run(whole, env=environment, check=True)


def _installed(name: str) -> int:
    return sum(
        os.path.getsize(path) for path in map(lambda file: file.locate(), files(name) or ()) if os.path.exists(path)
    )
