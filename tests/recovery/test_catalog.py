"""Every scenario and every assertion of the profile has its test, and the adapter runs the tests of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from adapter import HERE, ROOT

CATALOG = os.path.join(os.path.dirname(ROOT), "shared", "protocol", "recovery-scenarios.yaml")
REPORT = os.path.join(os.path.dirname(ROOT), "shared", "protocol", "recovery-report.schema.json")

LIST = """
import json, sys
import pytest
from adapter import scenarios_of

class Lister:
    def pytest_collection_modifyitems(self, items):
        self.found = sorted({(id, item.originalname) for item in items for id in scenarios_of(item)})

lister = Lister()
sys.stdout = sys.stderr
code = pytest.main([sys.argv[1], "-q", "--collect-only", "-p", "no:cacheprovider"], plugins=[lister])
print(json.dumps(lister.found), file=sys.__stdout__)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def catalog():
    """The scenarios by id."""
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the profile")
    if not os.path.exists(CATALOG):
        pytest.skip("../shared/protocol, where the recovery profile lies, is not here")
    with open(CATALOG, encoding="utf-8") as file:
        scenarios = yaml.safe_load(file)["scenarios"]
    return {scenario["id"]: scenario for scenario in scenarios}


@pytest.fixture(scope="module")
def bound():
    """Pairs of a scenario's id and the name of a test that is bound to it, from a collection of the whole folder."""
    path = os.pathsep.join([ROOT, HERE])
    found = subprocess.run(
        [sys.executable, "-c", LIST, HERE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr.decode()
    return {tuple(pair) for pair in json.loads(found.stdout.decode())}


def adapter(scenario_id, inputs, *more):
    """What the adapter says, and its exit status."""
    ran = subprocess.run(
        [sys.executable, os.path.join(HERE, "adapter.py"), scenario_id, *more],
        input=inputs if isinstance(inputs, bytes) else json.dumps(inputs).encode(),
        capture_output=True,
        timeout=300,
    )
    return json.loads(ran.stdout.decode()), ran.returncode


def test_every_scenario_has_tests_and_every_bound_test_a_scenario(catalog, bound):
    assert {id for id, _ in bound} == set(catalog)


def test_every_assertion_has_a_test_of_its_name(catalog, bound):
    wanted = {(id, "test_" + name) for id, scenario in catalog.items() for name in scenario["assertions"]}
    assert wanted - bound == set()


def test_the_adapter_runs_the_tests_of_one_scenario(catalog):
    result, code = adapter("CR-CORE-002", catalog["CR-CORE-002"])
    assert (code, result["scenario_id"], result["passed"]) == (0, "CR-CORE-002", True), result
    assert sorted(result) == ["diagnostic", "native_tests", "passed", "scenario_id"]
    assert len(result["native_tests"]) == len(set(result["native_tests"])) > 1
    assert all("test_core_002_expired_commit.py::test_" in name for name in result["native_tests"])
    assert_fits_the_report(result, catalog["CR-CORE-002"])


def assert_fits_the_report(result, scenario):
    """As an entry of the profile's report."""
    jsonschema = pytest.importorskip("jsonschema")
    with open(REPORT, encoding="utf-8") as file:
        entry = json.load(file)["properties"]["scenarios"]["items"]
    told = {name: result[name] for name in ("passed", "native_tests", "diagnostic")}
    jsonschema.validate({**told, **{name: scenario[name] for name in ("id", "level", "name")}}, entry)


@pytest.mark.parametrize(
    ("scenario_id", "inputs", "why"),
    [
        ("CR-CORE-999", {}, "no test is bound to CR-CORE-999"),
        ("CR-CORE-002", {"assertions": ["settlement_occurs_at_most_once", "pigs_fly"]}, "no test proves pigs_fly"),
        ("CR-CORE-002", {"id": "CR-CORE-001"}, "the inputs are those of CR-CORE-001"),
        ("CR-CORE-002", b"[]", "no JSON object"),
        ("CR-CORE-002", b"{", "char 1"),
    ],
)
def test_what_it_cannot_prove_has_not_passed(scenario_id, inputs, why):
    result, code = adapter(scenario_id, inputs)
    assert (code, result["scenario_id"], result["passed"]) == (1, scenario_id, False)
    assert why in result["diagnostic"]
