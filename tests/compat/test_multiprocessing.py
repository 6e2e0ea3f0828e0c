"""One client at the top of a module, and `multiprocessing` in each of its ways."""

from __future__ import annotations

import multiprocessing

import pytest
from hosts import command, ended_well

MAIN = """
import multiprocessing, sys
from program import new_client, spend

client = new_client()

def work(count):
    for _ in range(count):
        spend(client)

if __name__ == "__main__":
    spend(client)
    context = multiprocessing.get_context(sys.argv[1])
    processes = [context.Process(target=work, args=(3,)) for _ in range(2)]
    for process in processes:
        process.start()
    spend(client)
    for process in processes:
        process.join()
        assert process.exitcode == 0, process
    spend(client)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_a_modules_client(place, ledger, tmp_path, method):
    """A forked process goes on with its parent's client, a new one makes its own; the ledger is exact."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no " + method)
    (tmp_path / "shared_client.py").write_text(MAIN)
    with command([str(tmp_path / "shared_client.py"), method], tmp_path, **place) as program:
        ended_well(program)
    assert ledger.amounts == (3 + 2 * 3, 0)
