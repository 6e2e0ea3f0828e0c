"""The package as a whole: what it declares, what importing it costs, and which module may know which."""

from __future__ import annotations

import ast
import configparser
import json
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import cycles_lite

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cycles_lite"
FILES = sorted(PACKAGE.rglob("*.py"))

#: Lowest first: a module imports only from those before it, whether at import time, for types, or within a function.
#: `local` and `cli` count as one module each. A new module gets its place here.
ORDER = (
    "runtime.clock runtime.log runtime.shutdown runtime.system runtime.words runtime.line transport.turns "
    "transport.handlers errors transport.proxies transport.trust transport.deadline transport.connections "
    "protocol.checks protocol.twins protocol.fields protocol.values protocol.keywords protocol.models config "
    "transport.retry background.lease protocol.wire local transport.redaction transport.http settlement.claim "
    "settlement.journal settlement.look settlement.meaning events observers session background.worker settlement.spend "
    "settlement.finder settlement.settler background.heartbeat guards.current guards.interrupted guards.costs "
    "guards.generators guard settlement.flush guards.asking client lifecycle wsgi aws_lambda testing pytest_plugin "
    "cli __main__"
).split()

#: The imports against that order: for types alone.
AGAINST_THE_ORDER = {
    ("guards.current", "guard"),
    ("guards.costs", "guard"),
    ("guards.generators", "guard"),
    ("guards.interrupted", "guard"),
    ("settlement.finder", "settlement.settler"),
}

#: What is in which folder; the root has what users import, and the session under it.
FOLDERS = {
    "protocol": "checks fields keywords models twins values wire",
    "transport": "connections deadline handlers http proxies redaction retry trust turns",
    "settlement": "claim finder flush journal look meaning settler spend",
    "background": "heartbeat lease worker",
    "guards": "asking costs current generators interrupted",
    "runtime": "clock line log shutdown system words",
    "": "__main__ aws_lambda client config errors events guard lifecycle observers pytest_plugin session testing wsgi",
}

EXPENSIVE = {"asyncio", "http.client", "sqlite3", "ssl", "typing_extensions", "urllib3"}


class Import:
    """One imported module of this package, or of another (`inside` is false)."""

    def __init__(self, importer, target, inside, at_import_time, for_types):
        self.importer, self.target = importer, target
        self.inside, self.at_import_time, self.for_types = inside, at_import_time, for_types


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imports_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types, deferred = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for_types.update(map(id, ast.walk(node)))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            deferred.update(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        for target, inside in targets(node, path):
            at_import_time = id(node) not in deferred and id(node) not in for_types
            yield Import(module_name(path), target, inside, at_import_time, id(node) in for_types)


def targets(node, path):
    if isinstance(node, ast.Import):
        yield from ((alias.name, False) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield node.module, False
    elif isinstance(node, ast.ImportFrom):
        folder = path.relative_to(PACKAGE).parts[: -node.level]
        assert len(path.relative_to(PACKAGE).parts) >= node.level, f"{path} reaches out of the package"
        base = ".".join([*folder, *filter(None, [node.module])])
        for alias in node.names:
            name = ".".join(filter(None, [base, alias.name]))
            yield (name if name in MODULES else base), True


IMPORTS = [found for path in FILES for found in imports_of(path)]


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(str(ROOT / "setup.cfg"), encoding="utf-8")
    return parser


def modules_loaded_by(statement):
    """Without site-packages (-S), so that nothing is loaded beforehand and no dependency can be."""
    program = "import json, sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n{}\n"
    program += "print(json.dumps(sorted(set(sys.modules) - before)))"
    command = [sys.executable, "-S", "-c", program.format(statement), str(ROOT)]
    return set(json.loads(subprocess.check_output(command, timeout=60).decode()))


# ---- what it declares ----


def test_the_two_places_that_tell_the_version_agree():
    assert setup_cfg()["metadata"]["version"] == cycles_lite.__version__


def test_the_type_marker_is_shipped():
    assert pkgutil.get_data("cycles_lite", "py.typed") is not None
    assert setup_cfg()["options.package_data"]["cycles_lite"].split() == ["py.typed"]


@pytest.mark.parametrize("name", cycles_lite.__all__)
def test_a_public_name_can_be_imported(name):
    namespace = {}
    exec("from cycles_lite import " + name, namespace)
    assert namespace[name] is getattr(cycles_lite, name)
    assert name in dir(cycles_lite)


def test_the_public_names_are_sorted_and_there_once():
    assert list(cycles_lite.__all__) == sorted(set(cycles_lite.__all__))


def test_type_checkers_are_told_of_the_same_names_in_the_same_modules():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "")]
    told = {alias.asname: node.module for node in block.body for alias in node.names}
    assert told == cycles_lite._HOME
    assert [alias.name for node in block.body for alias in node.names] == list(told)


def test_any_other_name_is_an_attribute_error():
    """Which is what hasattr, copy and pickle ask a module with a lazy __getattr__ for."""
    with pytest.raises(AttributeError, match="no_such_name"):
        cycles_lite.no_such_name  # noqa: B018


# ---- what importing it costs ----


def test_importing_the_package_loads_none_of_its_modules():
    loaded = modules_loaded_by("import cycles_lite")
    assert "cycles_lite" in loaded
    assert not [name for name in loaded if name.startswith("cycles_lite.")]
    assert not loaded & (EXPENSIVE | {"dataclasses", "inspect", "json.tool", "logging", "threading"})


def test_importing_the_everyday_names_loads_nothing_expensive():
    loaded = modules_loaded_by("from cycles_lite import CyclesClient, CyclesConfig, Amount, Action, Subject")
    assert "cycles_lite.client" in loaded
    assert not loaded & (EXPENSIVE | {"dataclasses", "inspect"})


# ---- which module may know which ----


def test_the_package_imports_itself_relatively():
    """So that a copy under another name (`myapp/_vendor/cycles_lite`) never reaches for an installed one."""
    absolute = [(i.importer, i.target) for i in IMPORTS if not i.inside and i.target.split(".")[0] == "cycles_lite"]
    assert absolute == []


def test_urllib3_is_imported_in_one_module():
    assert {i.importer for i in IMPORTS if not i.inside and i.target.split(".")[0] == "urllib3"} == {"transport.http"}


def test_typing_extensions_is_not_imported_at_run_time():
    assert [i.importer for i in IMPORTS if i.target == "typing_extensions" and i.at_import_time] == []


def unit(name):
    """What stands for a module in the order."""
    return name if name in ORDER else name.split(".")[0]


def edges():
    """Pairs of modules of the package, with whether the import is for types alone."""
    for found in IMPORTS:
        importer, target = unit(found.importer), unit(found.target)
        if found.inside and importer and target and importer != target:
            yield importer, target, found.for_types


def test_every_module_has_its_place_in_the_order():
    assert sorted({unit(name) for name in MODULES if name and name not in FOLDERS} - set(ORDER)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_holds_what_its_name_says(folder):
    there = sorted(path.stem for path in (PACKAGE / folder).glob("*.py"))
    assert there == sorted(["__init__", *FOLDERS[folder].split()])


def test_imports_point_one_way():
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    against = {edge for edge in edges() if ranks[edge[1]] > ranks[edge[0]]}
    assert sorted({edge[:2] for edge in against}) == sorted(AGAINST_THE_ORDER)
    assert [edge for edge in against if not edge[2]] == [], "these happen at run time"


def test_no_import_cycle():
    """Within a folder too, where the order above does not look."""
    graph = {name: set() for name in MODULES}
    for found in IMPORTS:
        if found.inside and found.at_import_time and found.target:
            graph[found.importer].add(found.target)
    while True:
        leaves = {name for name, needed in graph.items() if not needed}
        if not leaves:
            break
        graph = {name: needed - leaves for name, needed in graph.items() if name not in leaves}
    assert graph == {}


# ---- what can be read in one sitting ----


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_at_most_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.skipif(sys.version_info < (3, 8), reason="its ast does not know where a function ends")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_function_has_at_most_50_lines(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, functions)]
    assert [node.name for node in found if node.end_lineno - node.lineno >= 50] == []


# ---- what a newcomer copies ----


@pytest.mark.parametrize(
    "command",
    [
        '.venv/bin/python -m pip install -q -e ".[server,test]" && .venv/bin/python -m pytest -q -n auto',
        ".venv/bin/python -m pip install -q . && .venv/bin/python -m cycles_lite demo",
    ],
    ids=["tests", "demo"],
)
def test_the_readme_sets_up_in_one_command(command):
    """As a literal block of one line each, which is where `.ci/run` takes them from."""
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    assert re.search(rf"::\n\n +python3 -m venv \.venv && {re.escape(command)}\n\n", readme)
