"""What differs between CPython, where what nobody refers to goes at once, and PyPy, where the collector finds it."""

from __future__ import annotations

import gc
import sys

import pytest

IS_PYPY = sys.implementation.name == "pypy"

#: For tests of what CPython alone has: counted references and bytes, a limit on the depth of calls.
needs_cpython = pytest.mark.skipif(IS_PYPY, reason="looks into CPython")


def collect_on_pypy():
    """What CPython has done by now: finalizers of what nobody refers to have run."""
    if IS_PYPY:
        gc.collect()
        gc.collect()  # what the finalizers of the first one have let go
