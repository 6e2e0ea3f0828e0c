"""Mutated command lines: each ends with a documented status, without a traceback, and writes in its folder alone.

They run in a child process, which they may keep from writing to its streams, or from leaving its folder.
"""

from __future__ import annotations

import sys

import batches
import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="the folder has a pipe and a link in it")
def test_command_lines(fuzz, tmp_path):
    batches.run(fuzz, "commands_child.py", tmp_path, short=60)
