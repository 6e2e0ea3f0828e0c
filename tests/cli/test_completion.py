"""`cycles-lite completion`: the scripts do in real shells what the parser says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from serving import PATIENCE
from terminals import Output, started

from cycles_lite.cli import main

#: What is typed before a tab, and the words that the command gets after it, as patterns.
TYPED = {
    "a command": ("bud", ["budget"]),
    "an action": ("budget li", ["budget", "list"]),
    "an option": ("budget list --js", ["budget", "list", "--json"]),
    "an option after a value": ("balances --tenant run --js", ["balances", "--tenant", "run", "--json"]),
    "a choice": ("reservations --status COM", ["reservations", "--status", "COMMITTED"]),
    "a choice as an argument": ("completion fi", ["completion", "fish"]),
    "a unit": ("budget freeze --unit RIS", ["budget", "freeze", "--unit", "RISK_POINTS"]),
    "a file": ("budget list --db my", ["budget", "list", "--db", "my budgets.db"]),
    "a file as an argument": ("demo my", ["demo", "my budgets.db"]),
    "a folder": ("journal list fol", ["journal", "list", "folder/?"]),
    "an option after a scope": (
        "budget set a:b/c:d USD:5 --over",
        ["budget", "set", "a:b/c:d", "USD:5", "--overdraft-limit"],
    ),
    "a command to run": ("run -- a-command-of-te", ["run", "--", "a-command-of-tests"]),
    "a file for it": ("run -- echo my", ["run", "--", "echo", "my budgets.db"]),
}


@pytest.fixture
def script(capsys, tmp_path, monkeypatch):
    """Makes the script for a shell, in a folder with a file and a folder, and with a command on the path."""

    def made(shell):
        path = shutil.which(shell)
        if path is None:
            pytest.skip(f"{shell} is not installed")
        here = tmp_path / "here"
        (here / "folder").mkdir(parents=True)
        (here / "my budgets.db").write_text("")
        (here / "files").write_text("")  # a pattern in the script fits it
        commands = tmp_path / "bin"
        commands.mkdir()
        (commands / "a-command-of-tests").write_text("#!/bin/sh\n")
        (commands / "a-command-of-tests").chmod(0o755)
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(here)
        assert main(["completion", shell]) == 0
        file = tmp_path / "_cycles-lite"
        file.write_text(capsys.readouterr().out)
        return path, file

    return made


@pytest.mark.parametrize(
    ("shell", "options", "loading"),
    [
        ("bash", ["--norc", "--noprofile", "-i"], "source '{file}'"),
        ("zsh", ["-f", "-i"], "autoload -U compinit; compinit -u -D; source '{file}'"),
        ("zsh", ["-f", "-i"], "fpath=('{folder}' $fpath); autoload -U compinit; compinit -u -D"),
    ],
    ids=["bash", "zsh", "zsh, from its path"],
)
def test_on_a_terminal(script, shell, options, loading):
    """What is typed is completed and run; the command tells which words it got."""
    path, file = script(shell)
    with started([path, *options], Output(), 200, TERM="dumb" if shell == "zsh" else "xterm") as shown:
        load = loading.format(file=file, folder=file.parent)
        shown.type(f"cycles-lite() {{ printf '<%s>' \"$@\"; echo; }}; {load}; PS1='ready'; echo re''ally\n".encode())
        shown.see("really\\s(.|\n)*ready")
        for typed, words in TYPED.values():
            shown.type(f"cycles-lite {typed}\t\n".encode())
            shown.see("".join(f"<{word}>" for word in words) + "\\s(.|\n)*ready")
        shown.type(b"exit\n")
        shown.end()


def test_in_fish(script):
    path, file = script("fish")
    asked = "".join(f"; echo; complete -C 'cycles-lite {typed}'" for typed, _ in TYPED.values())
    said = subprocess.check_output([path, "--no-config", "-c", f"source '{file}'{asked}"], text=True, timeout=PATIENCE)
    for (_, words), lines in zip(TYPED.values(), said.split("\n\n")):
        found = [line.partition("\t")[0] for line in lines.strip().splitlines()]
        assert len(found) == 1
        assert re.match(words[-1] + r"\Z", found[0])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_has_all_that_the_parser_knows(shell, capsys):
    """Whatever command is added: the parser is what the script is made of."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    names = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert {"demo", "budget", "watch", "completion"} <= set(names)
    for name in names:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
            assert option[2:] in script, (name, option)
        assert name in script
