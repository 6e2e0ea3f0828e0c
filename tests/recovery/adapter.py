"""Runs the tests of one scenario for the harness of the recovery profile.

    python tests/recovery/adapter.py CR-CORE-001 <scenario.json

Standard input is the scenario as JSON: an object with, where it wants to, `id` (or `scenario_id`) and `assertions`.
Each assertion needs a test of its name. Standard output is one JSON object: `scenario_id`, `passed`, `native_tests`
(the ids of the tests that ran) and `diagnostic`. All else goes to standard error. Ends with 0 where it passed.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


class Bound:
    """A plugin that keeps the tests that are bound to a scenario, and notes how they end."""

    def __init__(self, scenario_id):
        self._scenario_id = scenario_id
        self.tests, self.names, self.failures = [], set(), []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        bound = [item for item in items if self._scenario_id in scenarios_of(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in bound])
        items[:] = bound
        self.tests = sorted(item.nodeid for item in bound)
        self.names = {getattr(item, "originalname", None) or item.name for item in bound}

    def pytest_collectreport(self, report):
        if report.failed:
            self.failures.append(f"{report.nodeid}: cannot be collected")

    def pytest_runtest_logreport(self, report):
        if report.failed or (report.skipped and report.when == "setup"):
            self.failures.append(f"{report.nodeid}: {report.outcome} in {report.when}")


def scenarios_of(item):
    """The ids of the scenarios that a test is bound to."""
    return {id for marker in item.iter_markers("scenario") for id in marker.args}


def run(scenario_id, given):
    """The result that the harness wants. Raises `ValueError` for another scenario's inputs."""
    named = given.get("id", given.get("scenario_id", scenario_id))
    if named != scenario_id:
        raise ValueError(f"the inputs are those of {named}")
    bound = Bound(scenario_id)
    arguments = [HERE, "-q", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", os.path.join(ROOT, "setup.cfg")]
    code = pytest.main(arguments, plugins=[bound])
    problems = list(bound.failures)
    if not bound.tests:
        problems.append(f"no test is bound to {scenario_id}")
    elif code != 0:
        problems.append(f"pytest ended with {int(code)}")
    for assertion in given.get("assertions", ()):
        if f"test_{assertion}" not in bound.names:
            problems.append(f"no test proves {assertion}")
    return {
        "scenario_id": scenario_id,
        "passed": not problems,
        "native_tests": bound.tests,
        "diagnostic": "; ".join(problems) or f"{len(bound.tests)} tests passed",
    }


def inputs(text):
    """The scenario on standard input. Raises `ValueError`."""
    given = json.loads(text) if text.strip() else {}
    if not isinstance(given, dict):
        raise ValueError("the inputs are no JSON object")
    return given


def main(arguments):
    if len(arguments) != 1:
        print("usage: adapter.py SCENARIO_ID <scenario.json", file=sys.stderr)
        return 2
    (scenario_id,) = arguments
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # also for what tests and their processes print
    try:
        result = run(scenario_id, inputs(sys.stdin.read()))
    except ValueError as e:
        result = {"scenario_id": scenario_id, "passed": False, "native_tests": [], "diagnostic": str(e)}
    print(json.dumps(result), file=results, flush=True)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.path.insert(0, ROOT)
    os.environ["PYTHONPATH"] = ROOT
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none of them is needed, and some load slowly
    sys.exit(main(sys.argv[1:]))
