"""The public recovery profile, `../shared/protocol/recovery-scenarios.yaml`: a module for each of its twelve scenarios.

A test named `test_<assertion>` proves that assertion of its module's scenario. Servers, files and processes are real:
what ends in these scenarios is killed with SIGKILL.
"""

from __future__ import annotations


def pytest_configure(config):
    config.addinivalue_line("markers", "scenario(id): proves a part of this scenario of the recovery profile")
