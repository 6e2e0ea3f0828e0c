"""The package works renamed inside another one, from a zip, and laid out as a Lambda layer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cycles_lite

PACKAGE = Path(cycles_lite.__file__).parent

#: A whole life in process: provision, guard, commit, the command line, the ledger's check, and the page's files.
SCRIPT = """
import io
import {name} as library
from {name}.cli import main
from {name}.local import Authority
from {name}.local.application import Application

url = "sqlite:budgets.db"
assert main(["budget", "set", "tenant:acme", "TOKENS:100", "--db", "budgets.db"]) == 0
client = library.CyclesClient(library.CyclesConfig(base_url=url, tenant="acme"))
with client.reserve(library.Amount.tokens(10), library.Action("a", "b")) as guard:
    settled = guard.commit(library.Amount.tokens(4))
assert settled.status == "COMMITTED"
http = library.CyclesClient(library.CyclesConfig(base_url="http://127.0.0.1:1", api_key="k", tenant="acme"))
assert http.warm_up() is False
http.close()
client.close()
with Authority(url) as authority:
    assert authority.check() == []
    asked = {{"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.input": io.BytesIO()}}
    assert b"".join(Application(authority)(asked, lambda *told: None)).startswith(b"<!doctype html>")
    print(authority.budgets()[0].spent, library.CyclesClient.__module__)
"""


def run(name, path, tmp_path):
    """The script with only the vendored copy to be found."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    (tmp_path / "work").mkdir()
    script = "import sys; sys.modules['cycles_lite'] = None  # the installed one must not help\n"
    script += SCRIPT.format(name=name)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=str(tmp_path / "work"),
        env=environment,
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[-1].split()  # the command line has told of its budget before


def copy_to(folder):
    shutil.copytree(str(PACKAGE), str(folder), ignore=shutil.ignore_patterns("__pycache__"))


def test_vendored_under_another_name(tmp_path):
    """`app/_vendor/cycles_lite`: nothing in the package names itself."""
    app = tmp_path / "site" / "app"
    (app / "_vendor").mkdir(parents=True)
    (app / "__init__.py").write_bytes(b"")
    (app / "_vendor" / "__init__.py").write_bytes(b"")
    copy_to(app / "_vendor" / "cycles_lite")
    said = run("app._vendor.cycles_lite", tmp_path / "site", tmp_path)
    assert said == ["4", "app._vendor.cycles_lite.client"]


def test_from_a_zip(tmp_path):
    archive = tmp_path / "vendored.zip"
    with zipfile.ZipFile(str(archive), "w") as file:
        for path in sorted(PACKAGE.rglob("*.*")):
            file.write(str(path), "zipped_" + path.relative_to(PACKAGE.parent).as_posix())
    assert run("zipped_cycles_lite", archive, tmp_path) == ["4", "zipped_cycles_lite.client"]


def test_as_a_lambda_layer(tmp_path):
    """A layer's `python` folder is put on the path as it is, here under a name that only the layer has."""
    copy_to(tmp_path / "layer" / "python" / "layered_cycles_lite")
    said = run("layered_cycles_lite", tmp_path / "layer" / "python", tmp_path)
    assert said == ["4", "layered_cycles_lite.client"]


@pytest.mark.parametrize(
    "module", ["wsgi", "aws_lambda", "testing", "settlement.settler", "lifecycle", "local.authority"]
)
def test_every_part_can_be_imported_by_itself(module):
    """No part leans on another one's having been imported first."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import cycles_lite.{module}"], capture_output=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")
