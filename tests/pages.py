"""The code blocks of the documentation, and how a page of them is run from its first to its last.

    python tests/pages.py docs/guards.rst      runs one page in the current folder
    python tests/pages.py --fresh README.rst   runs one in a copy of the project, with the machine's own Python

A page is one session, as its reader has it: what a block of Python defines, and what a shell exports, the next block
finds. These are the blocks, and each other one needs the comment `.. not run: REASON` above it (`not run here` is one
that `--fresh` runs):

    code-block:: python                  runs in the page's namespace
    code-block:: console                 lines with `$ ` before them are commands, the others what they print
    code-block:: sh, or `::`             a script for the shell
    code-block:: ANY with :caption:      a file of that name, for a block below it
    code-block:: text, :class: output    what the block above it prints, where `...` stands for anything

Port 7878 becomes one that is free. A command that goes on in the background is waited for until it listens there, and
one that is killed until it does not.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from typing import Any, Iterator, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: Pages that a reader begins with nothing: each block of Python is a program of its own there.
FROM_NOTHING = ("README.rst", "docs/quickstart.rst")

SECONDS = 120

_DIRECTIVE = re.compile(r"( *)\.\. code-block:: *(\w+)\n((?:\1 +:\w.*\n)*)\n+((?:\1 {3,}\S.*\n|\n)+)")
_LITERAL = re.compile(r"()(?<!\n\n\.\.)(?<=\w)::()()\n\n((?: {4}.*\n|\n)+)")
#: The comment right above a block, or above the paragraph that a literal block ends.
_NOT_RUN = re.compile(r"\n *\.\. not run(?: here)?: ([^\n]*(?:\n +[^\n]+)*)\n\n(?:[^\n]+\n)*[^\n]*\Z")
_OPTION = re.compile(r":(\w+): *(.*)")


class Block(NamedTuple):
    """A block of code as it stands in a page."""

    language: str
    code: str
    #: The number of its first line in the page.
    line: int
    caption: str
    is_output: bool
    #: Why it is not run; empty for one that is.
    reason: str


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in their order."""
    found = [*_DIRECTIVE.finditer(text), *_LITERAL.finditer(text)]
    return [_block(text, match) for match in sorted(found, key=lambda match: match.start())]


def _block(text: str, match: Any) -> Block:
    options = dict(_OPTION.findall(match.group(3)))
    above = _NOT_RUN.search(text[: match.start()])
    code = textwrap.dedent(match.group(4)).rstrip("\n") + "\n"
    line = text.count("\n", 0, match.start(4)) + 1
    return Block(
        match.group(2) or "sh",
        code,
        line,
        options.get("caption", ""),
        options.get("class") == "output",
        above.group(1) if above else "",
    )


class Failed(Exception):
    """A block did not do what its page says."""


class Session:
    """One reader, who goes through a page."""

    def __init__(self, page: str) -> None:
        self._page = page
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._port = _free_port()
        #: What goes on in the background.
        self._jobs: list[int] = []
        os.environ["LC_ALL"] = "C.UTF-8"  # for the bars

    def run(self, text: str) -> None:
        try:
            self._go_through(blocks(text))
        finally:
            for job in self._jobs:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(job, signal.SIGTERM)

    def _go_through(self, steps: list[Block]) -> None:
        for step, after in zip(steps, [*steps[1:], None]):
            if step.reason or step.is_output:
                continue
            code = step.code.replace("7878", str(self._port))
            try:
                printed = self._perform(step, code)
            except Failed as e:
                raise Failed(f"{self._page}:{step.line}: {e}") from e
            if after is not None and after.is_output:
                self._compare(after, after.code.replace("7878", str(self._port)), printed)

    def _perform(self, step: Block, code: str) -> str:
        if step.caption:
            with open(step.caption, "w", encoding="utf-8") as file:
                file.write(code)
            return ""
        if step.language == "python":
            return self._program(code) if self._page in FROM_NOTHING else self._python(step, code)
        if step.language == "sh":
            return self._shell(code)
        if step.language == "console":
            for line, command, expected in _commands(code, step.line):
                printed = self._shell(command)
                if not command.rstrip().endswith("&"):
                    self._compare(step._replace(line=line), expected, printed)
            return ""
        raise Failed(f"a block of {step.language} is neither run nor marked as not run")

    def _python(self, step: Block, code: str) -> str:
        """Run a block within this process; its lines are those of the page in a traceback."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (step.line - 1) + code, self._page, "exec"), self._names)
        return printed.getvalue()

    def _program(self, code: str) -> str:
        with open(".block.py", "w", encoding="utf-8") as file:
            file.write(code)
        return self._shell("python .block.py")

    def _shell(self, script: str) -> str:
        """Run a script and return its output. The next one begins with its variables, in its folder."""
        script = script.rstrip()
        ends = "kill %1" in script
        if self._jobs:
            script = script.replace("kill %1", f"kill {self._jobs[-1]}")
        after = '\nstatus=$?; { pwd; echo $(jobs -p); env -0; } >"$PAGE_STATE"; exit $status'
        with tempfile.TemporaryDirectory() as folder:
            state, output = os.path.join(folder, "state"), os.path.join(folder, "output")
            # Into a file: a pipe would be open for as long as what goes on in the background.
            with open(output, "wb") as file:
                done = subprocess.run(
                    ["bash", "-c", "set -a\n" + script + after],
                    env={**os.environ, "PAGE_STATE": state},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=SECONDS * 5,
                )
            if ends or script.endswith("&"):
                self._wait_for_the_server(output, listens=not ends)
            with open(output, encoding="utf-8") as file:
                printed = file.read()
            if not os.path.exists(state):
                raise Failed(f"the shell has ended with {done.returncode}:\n{script}\n{printed}")
            with open(state, encoding="utf-8") as file:
                here, jobs, variables = file.read().split("\n", 2)
        self._jobs += map(int, jobs.split())
        os.chdir(here)
        os.environ.clear()
        os.environ.update(pair.split("=", 1) for pair in variables.split("\0") if pair)
        if done.returncode:
            raise Failed(f"status {done.returncode} of\n{script}\n{printed}")
        return printed

    def _wait_for_the_server(self, output: str, listens: bool) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = False
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                found = True
            if found == listens:
                return
            time.sleep(0.02)
        with open(output, encoding="utf-8") as file:
            raise Failed(f"{'nothing' if listens else 'the server still'} listens: {file.read()}")

    def _compare(self, where: Block, expected: str, printed: str) -> None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not doctest.OutputChecker().check_output(expected, printed, flags):
            raise Failed(f"{self._page}:{where.line}: expected\n{expected}\nprinted\n{printed}")


def _commands(code: str, first: int) -> Iterator[tuple[int, str, str]]:
    """The commands of a `console` block, each with its line and what it is to print."""
    for match in re.finditer(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", code, re.MULTILINE):
        command = re.sub(r"^> ", "", match.group(1), flags=re.MULTILINE)
        yield first + code.count("\n", 0, match.start()), command, match.group(2)


def _free_port() -> int:
    """One that is free, and below those that the system gives out, so that no other test gets it meanwhile."""
    while True:
        port = 20_000 + int.from_bytes(os.urandom(2), "big") % 10_000
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", port))
            return port


def read(page: str) -> str:
    with open(os.path.join(ROOT, *page.split("/")), encoding="utf-8") as file:
        return file.read()


def _fresh(page: str) -> None:
    """Run a page as on a new machine: in a copy of the project, without the environment that this program runs in."""
    ours = os.path.dirname(sys.executable)
    os.environ["PATH"] = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder != ours)
    for name in [name for name in os.environ if name.startswith(("CYCLES_", "VIRTUAL_ENV", "PYTHON"))]:
        del os.environ[name]
    text = read(page).replace(".. not run here:", ".. run here:")
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = os.path.join(folder, "home")
        os.mkdir(os.environ["HOME"])
        left_out = shutil.ignore_patterns(".v*", ".nox", ".git", "*_cache", "__pycache__", "*.egg-info", "build")
        os.chdir(shutil.copytree(ROOT, os.path.join(folder, "project"), ignore=left_out))
        try:
            Session(page).run(text)
        finally:
            os.chdir(here)


def main(arguments: list[str]) -> int:
    is_fresh = arguments[:1] == ["--fresh"]
    for page in arguments[is_fresh:]:
        try:
            _fresh(page) if is_fresh else Session(page).run(read(page))
        except Failed as e:
            print(e, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
