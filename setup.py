"""Everything is in setup.cfg; older pips need this file to install from a checkout."""

from setuptools import setup

setup()
