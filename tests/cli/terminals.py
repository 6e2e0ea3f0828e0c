"""Commands on a terminal: a pseudo-terminal, and as much of a terminal as is needed to see what they have drawn."""

from __future__ import annotations

import codecs
import os
import re
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from serving import PATIENCE, ROOT

from cycles_lite.cli.terminal import cells

#: Makes the terminal that is standard input the one whose keys are signals, and becomes the command.
_BECOME = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x00-\x1f\x7f]|(.)", re.DOTALL)


class Picture:
    """What was drawn: lines of text, and the modes that are on."""

    def __init__(self):
        self.lines = {}
        self.modes = {"?25", "?7"}
        self.colours = set()
        #: The cells of the longest line, whether the terminal would have cut it or not.
        self.widest = 0
        self.at = [0, 0]

    def draw(self, text):
        for token in _TOKEN.finditer(text):
            given, command, odd = token.groups()
            assert odd is None, f"a control character came through: {token.group()!r}"
            if command is not None:
                self._obey(given, command)
            elif token.group() == "\r":
                self.at[1] = 0
            elif token.group() == "\n":
                self.at[0] += 1
            else:
                self._put(token.group())

    def _put(self, character):
        row, column = self.at
        line = self.lines.get(row, "").ljust(column)
        self.lines[row] = line[:column] + character + line[column + 1 :]
        self.at[1] += 1
        self.widest = max(self.widest, cells(self.lines[row].rstrip()))

    def _obey(self, given, command):
        row, column = self.at
        if command == "H":
            self.at = [int(given.split(";")[0] or 1) - 1, 0]
        elif command == "K":
            self.lines[row] = self.lines.get(row, "")[:column]
        elif command == "J":
            self.widest = 0 if given == "2" else self.widest
            self.lines = {} if given == "2" else {at: line for at, line in self.lines.items() if at < row}
        elif command == "m":
            self.colours.add(given)
        elif command == "h":
            self.modes.add(given)
        elif command == "l":
            self.modes.discard(given)
        else:
            raise AssertionError(f"an unknown escape sequence: {given}{command}")

    @property
    def text(self):
        return "\n".join(self.lines[row].rstrip() for row in sorted(self.lines))


class Output:
    """All that came, in place of a picture: for programs that use more of a terminal than a picture knows."""

    def __init__(self):
        self.text = ""

    def draw(self, text):
        self.text += text


class Shown:
    """A command on a terminal of its own."""

    def __init__(self, process, controller, terminal, picture, before):
        self.process, self._controller, self.terminal = process, controller, terminal
        self.picture = picture
        #: The terminal's settings before the command had it.
        self.before = before
        #: What has come and is not drawn yet.
        self._come = ""
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        decoder = codecs.getincrementaldecoder("utf-8")()
        data = b"."
        while data:
            try:
                data = os.read(self._controller, 65536)
            except OSError:  # nobody has the terminal open any more
                data = b""
            with self._more:
                self._come += decoder.decode(data)
                self._more.notify_all()

    def _draw(self):
        whole = re.sub(r"\x1b[^A-Za-z]*\Z", "", self._come)  # a read may end within an escape sequence
        self.picture.draw(whole)
        self._come = self._come[len(whole) :]

    def see(self, pattern):
        """Wait until something can be seen."""
        self.wait(lambda: re.search(pattern, self.picture.text), repr(pattern))
        return self.picture.text

    def wait(self, until, what):
        """Wait until the picture is one of which a function returns something true."""
        deadline = time.monotonic() + PATIENCE
        with self._more:
            self._draw()
            while not until():
                left = deadline - time.monotonic()
                assert left > 0, f"{what} is not in:\n{self.picture.text}"
                self._more.wait(left)
                self._draw()

    def type(self, keys):
        os.write(self._controller, keys)

    def resize(self, width, height):
        resize(self._controller, width, height)

    def settings(self):
        return settings_of(self.terminal)

    def end(self):
        """Wait for its end, and return its status and all that can be seen."""
        status = self.process.wait(PATIENCE)
        self.close()
        self._draw()
        return status, self.picture.text

    def close(self):
        if self.terminal is not None:
            os.close(self.terminal)
            self._thread.join()
            os.close(self._controller)
            self.terminal = None


def settings_of(terminal):
    import termios

    return termios.tcgetattr(terminal)


def resize(terminal, width, height):
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def on_terminal(arguments, width=80, height=24, **environment):
    """A command of this package on a terminal of this size."""
    return started([sys.executable, "-m", "cycles_lite", *arguments], Picture(), width, height, **environment)


@contextmanager
def started(words, picture, width=80, height=24, **environment):
    """A program on a terminal."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    controller, terminal = pty.openpty()
    resize(terminal, width, height)
    whole = {**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error", "PYTHONUTF8": "1", "TERM": "xterm"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        whole.pop(name, None)
    words = [sys.executable, "-S", "-c", _BECOME, *words]
    streams, before = {"stdin": terminal, "stdout": terminal, "stderr": terminal}, settings_of(terminal)
    process = subprocess.Popen(words, env={**whole, **environment}, start_new_session=True, **streams)
    shown = Shown(process, controller, terminal, picture, before)
    try:
        yield shown
    finally:
        process.kill()
        process.wait()
        shown.close()
