"""What a fresh process pays: for the import, and until its first reservation is committed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from statistics import median
from typing import NamedTuple

from .canned import HERE, canned
from .report import Row, Target
from .timing import beside

#: A process that imports something, and says what that took.
_IMPORT = """
import sys, time
before = set(sys.modules)
start = time.process_time()
{}
took = time.process_time() - start
import json
print(json.dumps([took * 1000, sorted(set(sys.modules) - before)]))
"""

_OURS = "from cycles_lite import CyclesClient, CyclesConfig, Amount, Action, Subject"
_PEER = "import urllib3"

#: A process that says how much memory it has, in KiB, at its end.
_MEMORY = """
with open("/proc/self/status") as file:
    print([line.split()[1] for line in file if line.startswith("VmRSS")][0])
"""

_FIRST_OURS = (
    """
import sys
from cycles_lite import Action, Amount, CyclesClient, CyclesConfig
client = CyclesClient(CyclesConfig(base_url=sys.argv[1], api_key="cyc_live_0123456789abcdef", tenant="acme"))
with client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o")) as guard:
    assert guard.commit(Amount.tokens(742)).charged.amount == 742
"""
    + _MEMORY
)

_FIRST_PEER = (
    """
import json, os, sys
import urllib3
host, port = sys.argv[1][7:].split(":")
pool = urllib3.HTTPConnectionPool(host, int(port))
def post(path, body):
    body = {"idempotency_key": os.urandom(16).hex(), **body}
    headers = {"X-Cycles-API-Key": "cyc_live_0123456789abcdef", "X-Idempotency-Key": body["idempotency_key"],
               "Content-Type": "application/json"}
    return json.loads(pool.urlopen("POST", path, body=json.dumps(body).encode(), headers=headers).data)
made = post("/v1/reservations", {"subject": {"tenant": "acme"}, "action": {"kind": "llm.completion", "name": "gpt-4o"},
                                 "estimate": {"unit": "TOKENS", "amount": 1000}, "ttl_ms": 60000})
done = post("/v1/reservations/{}/commit".format(made["reservation_id"]), {"actual": {"unit": "TOKENS", "amount": 742}})
assert done["charged"]["amount"] == 742
"""
    + _MEMORY
)


class _Ended(NamedTuple):
    out: str
    wall_ms: float
    cpu_ms: float


def _run(program: str, *arguments: str, under: tuple[str, ...] = ()) -> _Ended:
    """A fresh interpreter, without `site`: what happens to lie in this environment's .pth files is on nobody's bill.
    Bytecode is kept, as everywhere where a library is installed, in a folder of this benchmark's process."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": os.path.join(os.path.expanduser("~"), "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONHASHSEED"] = "0"  # with other seeds, the same program takes other numbers of instructions
    folder = os.path.dirname(os.path.dirname(str(importlib.util.find_spec("urllib3").origin)))  # type: ignore[union-attr]
    text = f"import sys; sys.path[:0] = [{HERE!r}, {folder!r}]\n{program}"
    command = [*under, sys.executable, "-S", "-c", text, *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        out = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = status
    assert status == 0, f"a program of this benchmark failed:\n{program}"
    return _Ended(out, wall * 1000, (used.ru_utime + used.ru_stime) * 1000)


def _instructions(program: str, *arguments: str) -> float:
    """Millions of instructions of a fresh interpreter, as valgrind counts them. What else the machine does changes them
    little; what the system's kernel does is not among them."""
    told = os.path.join(os.path.expanduser("~"), "callgrind")
    options = (f"--callgrind-out-file={told}", f"--log-file={told}.log")
    _run(program, *arguments, under=("valgrind", "--tool=callgrind", *options))
    with open(told) as file:
        (total,) = [line.split()[1] for line in file if line.startswith(("summary:", "totals:"))][:1]
    return int(total) / 1e6


def imports(quick: bool) -> list[Row]:
    """The five names that a program starts with, beside `import urllib3`."""
    rounds = 3 if quick else 41
    loaded: dict[str, list[str]] = {}

    def measure(statement: str) -> float:
        took, loaded[statement] = json.loads(_run(_IMPORT.format(statement)).out)
        return float(took)

    for statement in (_OURS, _PEER):
        measure(statement)  # its bytecode is compiled
    ours, peer = beside(lambda: measure(_OURS), lambda: measure(_PEER), rounds)
    alone = sorted({name.split(".")[0] for name in loaded[_OURS]} - {name.split(".")[0] for name in loaded[_PEER]})
    how = f"CPU of the import statement in a fresh process; medians of {rounds} rounds, alternating"
    return [
        Row("import", ours, "ms", peer, "urllib3", Target(0.40), how),
        Row(
            "modules that the import loads",
            len(loaded[_OURS]),
            "",
            len(loaded[_PEER]),
            "urllib3",
            None,
            "packages that ours loads and urllib3 does not: " + ", ".join(alone),
        ),
    ]


def first_commit(quick: bool) -> list[Row]:
    """A fresh process, from its start to its end: import, configure, reserve, commit with the journal on."""
    rounds = 3 if quick else 41
    found: dict[str, list[_Ended]] = {_FIRST_OURS: [], _FIRST_PEER: []}
    with canned() as url:

        def measure(program: str) -> float:
            found[program].append(_run(program, url))
            return found[program][-1].wall_ms

        for program in found:
            measure(program)
        ours, peer = beside(lambda: measure(_FIRST_OURS), lambda: measure(_FIRST_PEER), rounds)
        counted = [_instructions(program, url) for program in found] if shutil.which("valgrind") else None
    cpu = [median(ended.cpu_ms for ended in found[program]) for program in found]
    memory = [median(int(ended.out) for ended in found[program]) / 1024 for program in found]
    how = f"a whole process; medians of {rounds} rounds, alternating"
    return [
        _in_instructions(counted),
        Row("fresh process to first commit, wall", ours, "ms", peer, "bare urllib3", Target(1.25), how),
        Row("fresh process to first commit, CPU", cpu[0], "ms", cpu[1], "bare urllib3", Target(1.25), how),
        Row(
            "memory after that, over bare urllib3",
            memory[0] - memory[1],
            "MiB",
            None,
            "",
            Target(3, "ours"),
            f"resident at the end of those processes: {memory[0]:.1f} and {memory[1]:.1f} MiB",
        ),
    ]


def _in_instructions(counted: list[float] | None) -> Row:
    what, target = "fresh process to first commit, instructions", Target(1.25)
    if counted is None:
        return Row(what, None, "M", None, "", target, "not measured: valgrind is not on this machine")
    how = "a whole process, without what the kernel does for it; one run of each"
    return Row(what, counted[0], "M", counted[1], "bare urllib3", target, how)
