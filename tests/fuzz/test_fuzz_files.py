"""Mutated budget files: each is refused or used, by errors of ours alone, and a file of another program stays as it is.

SQLite itself may crash on a file that is broken on purpose, so that child processes open them.
"""

from __future__ import annotations

import batches


def test_budget_files(fuzz, tmp_path):
    """SQLite's own crashes are counted; they are no failure."""
    batches.run(fuzz, "files_child.py", tmp_path, short=60, may_crash=True)
