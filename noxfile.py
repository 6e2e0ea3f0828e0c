"""The checks of a change, a session each: `nox -l` lists them, `nox -s tests-3.9` runs one, `.ci/run` runs all of them.

A session makes its environment with the `venv` module of its own interpreter. Versions that a machine does not have are
skipped here; `.ci/run` names them.
"""

from __future__ import annotations

import pathlib
import posixpath
import re
import shutil
import tarfile
import zipfile

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"

#: Interpreters, the oldest first, each with the oldest urllib3 that can be imported there.
PYTHONS = {
    "3.7": "1.26.0",
    "3.8": "1.26.0",
    "3.9": "1.26.0",
    "3.10": "1.26.5",
    "3.11": "1.26.5",
    "3.12": "1.26.5",
    "3.13": "1.26.5",
    "3.14": "1.26.5",
    "pypy3.9": "1.26.0",
}

NEWEST = "3.14" if shutil.which("python3.14") else "3.13"

#: The suite is run whole on the oldest and one in the middle. On the newest it is run in development mode, which is
#: slow: without single tests that take long (marker `thorough`). On the others some folders go too.
WHOLE = ("3.7", "3.11", NEWEST)
NOT_IN_SHORT = ("cli", "fuzz", "integration", "local", "recovery")
SHORT = ("-m", "not thorough", *[f"--ignore=tests/{folder}" for folder in NOT_IN_SHORT])

#: What is run once, by README's command on the Python in the middle, which also has more rounds of random tests.
ONCE = ("--ignore=tests/test_benchmarks.py",)
NOT_IN_DEVELOPMENT_MODE = ("-m", "not thorough", "--ignore=tests/test_docs.py")
FEW_ROUNDS = {"CRASH_ROUNDS": "24", "FAULT_CALLS": "300", "LAMBDA_KILLS": "5"}

#: PyPy is slow, and what it does otherwise is of ledgers, locks and finalizers.
ON_PYPY = ("tests/local", "tests/settlement", "tests/guards", "tests/runtime", "tests/compat/test_threads_refused.py")

#: The tests of what touches the dependencies, and those that use them from end to end, on the oldest and newest Python.
ON_DEPENDENCIES = ("tests/transport", "tests/test_client.py", "tests/test_package.py")
END_TO_END = ("tests/recovery", "tests/integration")

#: Where the oldest dependencies are tried: the two ends, and where the oldest urllib3 is another.
OLDEST = ("3.7", "3.10", NEWEST, "pypy3.9")

#: What those tests need, in the last versions that do with the oldest typing-extensions.
TOOLS = (
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "PyYAML",
    "trustme",
    "jsonschema<4.18",
    "exceptiongroup<1.3",
    "cryptography<43",
)
TYPING_EXTENSIONS = "3.7.4"

#: What a source archive has, beside what building it adds.
FOLDERS = ("cycles_lite", "tests", "benchmarks", "docs", "examples", ".ci")
FILES = (
    "CHANGELOG.rst",
    "CONTRIBUTING.rst",
    "LICENSE",
    "MANIFEST.in",
    "README.rst",
    "noxfile.py",
    "pyrightconfig.json",
    "ruff.toml",
    "setup.cfg",
    "setup.py",
)
MADE = ("PKG-INFO",)

#: A larger wheel has something in it that nobody needs.
MOST_BYTES = 350_000


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """Style and types, of the package and of what its users write."""
    session.install("-e", ".[server,test,lint]")
    session.run("ruff", "check", "--output-format", "concise", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("basedpyright")
    session.run("python", "-m", "pytest", "-q", "tests/test_user_types.py")


@nox.session(python="3.11")
def package(session: nox.Session) -> None:
    """What is published: a source archive, and a wheel that was built from it and works alone."""
    session.install("build", "setuptools", "wheel", "twine")
    dist = pathlib.Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), ".")
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(archive))
    check_wheel(session, wheel)
    check_archive(session, archive)
    session.install(str(wheel))
    with session.chdir(dist):  # elsewhere, so that it is the installed one
        session.run("cycles-lite", "demo")


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """The documentation: it builds without a warning, its links lead somewhere, and its first two pages work on a
    machine that has nothing but Python."""
    session.install("-e", ".[docs]")
    pages = pathlib.Path(session.create_tmp()) / "html"
    shutil.rmtree(pages, ignore_errors=True)
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "-b", "html", "docs", str(pages))
    check_links(session, pages)
    session.run("python", "tests/pages.py", "--fresh", "README.rst", "docs/quickstart.rst")


@nox.session(python=list(PYTHONS))
def tests(session: nox.Session) -> None:
    """The tests, with the newest dependencies. What follows `--` goes to pytest."""
    python = str(session.python)
    session.install("-e", ".[server,test]")
    options = ["-q", "-n", "auto", "--durations=30", *session.posargs]
    if python == NEWEST:  # once with all that Python itself can find; variables, because workers and children get those
        strict = {**FEW_ROUNDS, "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
        session.run("python", "-m", "pytest", *options, *ONCE, *NOT_IN_DEVELOPMENT_MODE, env=strict)
    elif python in WHOLE:
        session.run("python", "-m", "pytest", *options, *ONCE, env=FEW_ROUNDS)
    else:
        on_pypy = ("-m", "not thorough", *(() if session.posargs else ON_PYPY))
        session.run(
            "python", "-m", "pytest", *(on_pypy if python.startswith("pypy") else SHORT), *options, env=FEW_ROUNDS
        )


@nox.session(python=list(OLDEST))
def oldest(session: nox.Session) -> None:
    """The tests of what touches the dependencies, with the oldest that can be imported there."""
    python = str(session.python)
    pins = [f"urllib3=={PYTHONS[python]}", f"typing-extensions=={TYPING_EXTENSIONS}", "waitress==2.1.2"]
    session.install("-e", ".[server]", *TOOLS, *pins)
    chosen = (*ON_DEPENDENCIES, *END_TO_END) if python in ("3.7", NEWEST) else ON_DEPENDENCIES
    options = ["-q", "-n", "auto", "-m", "not thorough", *(session.posargs or chosen)]
    session.run("python", "-m", "pytest", *options, env=FEW_ROUNDS)


def files_in(*folders: str) -> set[str]:
    """The files of the project in some of its folders, without what running them leaves there."""
    found = (path for folder in folders for path in pathlib.Path(folder).rglob("*"))
    return {path.as_posix() for path in found if path.is_file() and path.suffix != ".pyc" and "_cache" not in str(path)}


def check_links(session: nox.Session, pages: pathlib.Path) -> None:
    """Each link within the pages has a page and a place in it."""
    texts = {page.relative_to(pages).as_posix(): page.read_text(encoding="utf-8") for page in pages.rglob("*.html")}
    places = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in texts.items()}
    for name, text in texts.items():
        for href in re.findall(r'<a [^>]*\bhref="([^"]+)"', text):
            path, _, place = href.partition("#")
            page = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if re.match(r"[a-z]+:", href) or (page not in texts and (pages / page).is_file()):
                continue
            if page not in texts or (place and place not in places[page]):
                session.error(f"{name}: {href} leads nowhere")


def check_wheel(session: nox.Session, wheel: pathlib.Path) -> None:
    packed, size = set(zipfile.ZipFile(wheel).namelist()), wheel.stat().st_size
    session.log(f"{wheel.name} has {size} bytes")
    if not wheel.name.endswith("-py3-none-any.whl") or size > MOST_BYTES:
        session.error(f"{wheel.name} is not for every platform, or larger than {MOST_BYTES} bytes")
    ours = files_in("cycles_lite")
    compare(session, wheel.name, ours, {name for name in packed if ".dist-info/" not in name})


def check_archive(session: nox.Session, archive: pathlib.Path) -> None:
    """Whoever has the source archive has all that is needed to check it."""
    with tarfile.open(archive) as tar:
        packed = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    compare(
        session,
        archive.name,
        files_in(*FOLDERS) | set(FILES),
        {name for name in packed if name not in MADE and ".egg-info/" not in name},
    )


def compare(session: nox.Session, name: str, wanted: set[str], packed: set[str]) -> None:
    if wanted != packed:
        session.error(f"{name} lacks {sorted(wanted - packed)}, and should not have {sorted(packed - wanted)}")
