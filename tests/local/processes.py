"""Threads and real processes for tests, which all end with the test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

#: The folder that has the package in it.
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))

#: Seconds after which a test gives up on a process or a thread.
PATIENCE = 120.0


def run_threads(count, work):
    """Run `work(number)` in that many threads at once; the first exception is raised here."""
    failed = []
    start = threading.Barrier(count)

    def run(number):
        try:
            start.wait(PATIENCE)
            work(number)
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]


def start(program, *arguments):
    """A Python process that runs a program's text; its standard output is a pipe."""
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def finish(process, text=b""):
    """What a process printed, once it has ended well."""
    out, err = process.communicate(text, timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
    assert not err, err.decode()
    return out
