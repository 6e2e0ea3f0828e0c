"""What the documentation shows was run, what it names is there, and what is there is named."""

from __future__ import annotations

import doctest
import glob
import importlib.util
import os
import pydoc
import re
import shutil
import subprocess
import sys

import pages
import pytest

import cycles_lite
from cycles_lite import Amount, CyclesConfig
from cycles_lite.errors import CODES
from cycles_lite.local import Authority

ROOT = pages.ROOT

#: Every page, the README first.
PAGES = [
    "README.rst",
    *sorted("docs/" + name for name in os.listdir(os.path.join(ROOT, "docs")) if name.endswith(".rst")),
]

#: What a page imports that not every environment has.
_OPTIONAL = re.compile(r"^ *(?:from|import) (bottle|celery|django|flask|prometheus_client|opentelemetry)", re.MULTILINE)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A budget file with 100,000 tokens for the tenant acme, and the commands that a reader has."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, words in (("cycles-lite", "-m cycles_lite"), ("pytest", "-m pytest"), ("python", "")):
        (bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(bin), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONPATH", ROOT)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with Authority("sqlite:budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(100_000))
    monkeypatch.setenv("CYCLES_BASE_URL", "sqlite:budgets.db")
    monkeypatch.setenv("CYCLES_TENANT", "acme")
    return folder


def run(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, timeout=600, text=True)
    return done.returncode, done.stdout, done.stderr


# ---- It was run ----


@pytest.mark.thorough
@pytest.mark.parametrize("page", [page for page in PAGES if any(not b.reason for b in pages.blocks(pages.read(page)))])
def test_a_page_does_what_it_says(page, environment, monkeypatch):
    for module in _OPTIONAL.findall(pages.read(page)):
        pytest.importorskip(module)
    if "$ curl " in pages.read(page) and shutil.which("curl") is None:
        pytest.skip("there is no curl")
    if page in pages.FROM_NOTHING:
        os.remove("budgets.db")
        monkeypatch.delenv("CYCLES_BASE_URL")
        monkeypatch.delenv("CYCLES_TENANT")
    status, _, stderr = run(os.path.join(ROOT, "tests", "pages.py"), page)
    assert status == 0, stderr


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("$ echo one\ntwo\n", "docs/x.rst:3: docs/x.rst:3: expected\ntwo"),
        ("$ echo one\n", "docs/x.rst:3: docs/x.rst:3: expected\n\nprinted\none"),
        ("$ exit 3\n", "docs/x.rst:3: the shell has ended with 3"),
        ("$ false\n", "docs/x.rst:3: status 1"),
        ("$ echo one\none\n$ (exit 3)\n", "docs/x.rst:3: status 3"),
    ],
)
def test_a_command_that_does_something_else_is_found(page, said, environment):
    text = ".. code-block:: console\n\n" + "".join(f"    {line}\n" for line in page.splitlines())
    with pytest.raises(pages.Failed) as failed:
        pages.Session("docs/x.rst").run(text)
    assert str(failed.value).startswith(said)


def test_python_that_prints_something_else_is_found(environment):
    text = ".. code-block:: python\n\n    print(1)\n\n.. code-block:: text\n    :class: output\n\n    2\n"
    with pytest.raises(pages.Failed, match="expected\n2\n\nprinted\n1"):
        pages.Session("docs/x.rst").run(text)


def test_a_block_that_nobody_can_run_needs_a_reason(environment):
    block = ".. code-block:: ini\n\n    [Unit]\n"
    with pytest.raises(pages.Failed, match="neither run nor marked"):
        pages.Session("docs/x.rst").run(block)
    pages.Session("docs/x.rst").run("Text.\n\n.. not run: no systemd here\n\n" + block)


def test_no_block_of_a_page_is_overlooked():
    """Each line that begins a block was taken for one, and no page of the documentation has literal blocks."""
    for page in PAGES:
        text = pages.read(page)
        begun = len(re.findall(r"^ *\.\. (?:code-block|sourcecode|code)::", text, re.MULTILINE))
        literal = len(re.findall(r"^(?! *\.\. ).*::$", text, re.MULTILINE))
        assert len(pages.blocks(text)) == begun + literal, page
        assert literal == 0 or page == "README.rst", page


def test_the_readme_is_short():
    assert len(pages.read("README.rst").splitlines()) < 250


# ---- The examples ----

#: What each prints, when the commands in its docstring are run one after the other; `...` stands for anything.
EXAMPLES = {
    "celery_task": "one\nBUDGET_EXCEEDED 40\n",
    "cron_budget": """report for january
report for february
the budget is used up: 1000000 microcents left
status 75
report for march
report for april
report for may
all done
""",
    "degradation": """large: WHO
large: WHAT
small: WHEN
small: WHERE
large: WHO (from the cache)
come back later
""",
    "django_project": '...200 word word word word word word\n...429 {"error": "BUDGET_EXCEEDED", ...}\n',
    "first_sentences": "short.txt: Short indeed.\nlong.txt: BUDGET_EXCEEDED (409): ...\nstatus 75\n",
    "flask_app": """200 - word word word
200 - word word word word word word word word
429 60 {"error": "BUDGET_EXCEEDED", ...}
401 - who are you?
""",
    "lambda_handler": '200 Once upon a time.\n429 {"error": "BUDGET_EXCEEDED", ...}\n',
    "quickstart": "olleh\nCOMMITTED 5 TOKENS\ntenant:acme  ... 995 of 1,000 tokens left\n",
    "risk_points": """search: found the fault
email: sent the report
delete: you may not use delete
deploy: deployed the mend
email: sent the news
email: too risky now: 0 points are left, email takes 10
search: found what to do now
tenant:acme ... 140 of 200 risk points left
tenant:acme/agent:operator ... 0 of 60 risk points left
""",
    "shadow_rollout": """shadow: ran chat, chat, report, chat, import; denied {'report': 1, 'import': 1}
enforce: ran chat, chat, chat; denied {'report': 1, 'import': 1}
""",
    "streaming": "to be or not to be\n6 tokens for all of it\nthat is\n2 tokens for two words\n",
    "workers": "14 pieces, 98 TOKENS spent, 2 TOKENS left\n",
}


def test_every_example_is_run():
    names = [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "examples", "*.py"))]
    assert sorted(names) == sorted(EXAMPLES)


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_does_what_its_docstring_says(name, environment, monkeypatch):
    text = pages.read(f"examples/{name}.py")
    for module in _OPTIONAL.findall(text):
        pytest.importorskip(module)
    os.symlink(os.path.join(ROOT, "examples"), "examples")
    os.remove("budgets.db")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    commands = re.findall(r"^    (.*)$", text.split('"""')[1], re.MULTILINE)
    assert f"python examples/{name}.py" in "\n".join(commands)
    done = subprocess.run(
        ["bash", "-e", "-c", "exec 2>&1\n" + "\n".join(commands)],
        stdout=subprocess.PIPE,
        timeout=300,
        text=True,
    )
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said = re.sub(r"^tenant:\S+: .* left(, .*)?\n", "", done.stdout, flags=re.MULTILINE)  # by `budget set`
    assert doctest.OutputChecker().check_output(EXAMPLES[name], said, flags), said


# ---- What is there is named, and what is named is there ----


@pytest.fixture(scope="module")
def reference():
    """`docs/reference.py`, which makes parts of the pages of the code."""
    spec = importlib.util.spec_from_file_location("reference", os.path.join(ROOT, "docs", "reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documentation(reference):
    """The pages in docs/, with what is generated in them."""
    text = "\n".join(pages.read(page) for page in PAGES[1:])
    return re.sub(
        r"^\.\. generated:: (\w+)$", lambda match: reference.PARTS[match.group(1)](), text, flags=re.MULTILINE
    )


def unnamed(documentation, names):
    words = set(re.findall(r"[\w.-]+\w|\w", documentation))
    return sorted(name for name in names if name not in words and not re.search(rf"``{re.escape(name)}", documentation))


def test_every_public_name_is_in_the_documentation(documentation):
    assert unnamed(documentation, [*cycles_lite.__all__, "NoSuchName"]) == ["NoSuchName"]


def test_every_setting_is_in_the_documentation_with_its_variable(documentation):
    names = [setting.name for setting in CyclesConfig.layout()]
    assert unnamed(documentation, [*names, *("CYCLES_" + name.upper() for name in names)]) == []


def test_every_error_code_is_in_the_documentation(documentation):
    assert unnamed(documentation, CODES) == []


def test_every_error_and_event_is_in_the_documentation(documentation, reference):
    kinds = [*reference.error_classes(), *reference.event_classes()]
    assert len(kinds) > 30
    assert unnamed(documentation, [kind.__name__ for kind in kinds]) == []


def test_every_command_and_option_is_in_the_documentation(documentation, reference):
    commands = dict(reference.parsers())
    assert {"cycles-lite run", "cycles-lite journal replay"} <= set(commands)
    titles = re.findall(r"^([a-z][a-z -]*)\n~+$", documentation, re.MULTILINE)
    of_groups = {name.rpartition(" ")[0] for name in commands}
    assert {name.partition(" ")[2] for name in set(commands) - of_groups} == set(titles)
    options = {option for parser in commands.values() for option in parser._option_string_actions}
    assert unnamed(documentation, options - {"-h", "--help"}) == []


def test_every_variable_of_the_environment_is_in_the_documentation(documentation):
    from cycles_lite.config import _OTHERS

    ours = ["CYCLES_" + name for name in _OTHERS if not name.startswith("TEST_")]
    assert unnamed(documentation, ours) == []


def test_help_tells_in_twenty_lines_what_there_is_and_where_to_look():
    lines = cycles_lite.__doc__.strip().splitlines()
    assert len(lines) <= 20
    named = set(re.findall(r"\b[A-Z]\w+[a-z][A-Z]\w*|\w+_cycles|current_guard", cycles_lite.__doc__))
    assert len(named) > 10
    assert named <= set(cycles_lite.__all__)
    assert {os.path.exists(os.path.join(ROOT, path)) for path in re.findall(r"docs/\w+\.rst", cycles_lite.__doc__)} == {
        True
    }
    shown = pydoc.plain(pydoc.render_doc(cycles_lite))
    assert lines[-1] in shown
    assert "_missing" not in shown


def test_dir_shows_the_public_names_alone():
    assert dir(cycles_lite) == cycles_lite.__all__
    assert dir(cycles_lite.local) == ["AlreadyExists", "Authority", "FundingRefused"]


def texts():
    """The documentation, by its files' paths."""
    for path in [*glob.glob(os.path.join(ROOT, "*.rst")), *glob.glob(os.path.join(ROOT, "*", "*.rst"))]:
        with open(path, encoding="utf-8") as file:
            yield path, file.read()


def test_what_the_documentation_names_is_there():
    """Files and folders, by their paths from the root, from the package, or from the text's own folder."""
    made = set(re.findall(r":caption: (\S+)", "\n".join(text for _, text in texts())))
    for path, text in texts():
        for named in re.findall(r"``([\w./]*\w(?:\.py|\.rst|/))``", text):
            places = [ROOT, os.path.join(ROOT, "cycles_lite"), os.path.dirname(path)]
            assert named in made or any(os.path.exists(os.path.join(place, named)) for place in places), (path, named)


def test_contributing_says_of_each_folder_what_belongs_there():
    told = re.findall(r"^- ``(\w+)/``: ", dict(texts())[os.path.join(ROOT, "CONTRIBUTING.rst")], re.MULTILINE)
    assert sorted(told) == sorted(
        name for name in os.listdir(os.path.join(ROOT, "cycles_lite")) if re.match(r"[a-z]+\Z", name)
    )
