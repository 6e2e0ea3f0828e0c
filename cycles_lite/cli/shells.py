"""The scripts of three shells that complete a command line which is described to them.

All three walk over the words before the cursor in the same way: an option that takes a value takes the next word with
it, the name of a command or action leads into that one, and any other word is an argument.
"""

from __future__ import annotations

from typing import Callable, Iterator, Mapping, NamedTuple, Sequence


class Flag(NamedTuple):
    """An option."""

    names: Sequence[str]
    text: str
    #: What its value is; empty where it has none.
    kind: str


class Command(NamedTuple):
    """A command, or an action of one."""

    #: Its name, after that of the command whose action it is; empty for the program itself.
    at: str
    flags: Sequence[Flag]
    #: What its actions are for, by their names.
    actions: Mapping[str, str]
    #: What its arguments are; the last may end with a `*` and stands for any number.
    places: Sequence[str]


#: What both shells look up: what may stand at a place, and of what kind the value of an option is.
_LOOKUPS = r"""_cycles_lite_at() {
    case $1 in
%(at)s
    esac
}

_cycles_lite_kind() {
    case $1 in
%(kinds)s
    esac
}

"""

_BASH = (
    f"# bash completion for cycles-lite\n{_LOOKUPS}"
    r"""_cycles_lite() {
    local IFS=$' \t\n' cur=${COMP_WORDS[COMP_CWORD]} at= kind= actions= flags= places= word
    local -i i place=0 rest=0 joined=0
    COMPREPLY=()
    _cycles_lite_at ""
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == = ]]; then :  # bash cuts words at = and :
        elif [[ $word == : ]]; then joined=1
        elif ((joined)); then joined=0
        elif [[ -n $kind ]]; then kind=
        elif ((rest)); then rest+=1
        elif [[ $word == -- ]]; then rest=1
        elif [[ $word == -* ]]; then _cycles_lite_kind "$at $word"
        elif [[ ,$actions, == *,"$word",* ]]; then at=${at:+$at }$word; _cycles_lite_at "$at"
        else place+=1
        fi
    done
    [[ $cur == = ]] && cur=
    if ((joined)) || [[ $cur == : ]]; then kind=any
    elif [[ -n $kind ]]; then :
    elif ((rest == 1)); then kind=command
    elif ((rest)); then kind=file
    elif [[ $cur == -* ]]; then kind=$flags
    elif [[ -n $actions ]]; then kind=$actions
    else
        local -a all
        read -ra all <<< "$places"  # no file's name is put in the place of a pattern
        kind=${all[place]-}
        [[ -z $kind && $places == *"*" ]] && kind=${places##* }
    fi
    case ${kind%%\*} in
        file) return ;;  # readline's own, which knows quotes
        folder) compopt -o dirnames ;;
        command) COMPREPLY=($(compgen -c -- "$cur")) ;;
        any | "") ;;
        *) COMPREPLY=($(compgen -W "${kind//,/ }" -- "$cur")) ;;
    esac
    compopt +o default
} 2> /dev/null  # an old bash has no compopt

complete -o default -F _cycles_lite cycles-lite
"""
)

_ZSH = (
    f"#compdef cycles-lite\n{_LOOKUPS}"
    r"""_cycles_lite() {
    local at= kind= places= word
    local -a actions flags all
    integer i place=0 rest=0
    _cycles_lite_at ""
    for ((i = 2; i < CURRENT; i++)); do
        word=$words[i]
        if [[ -n $kind ]]; then kind=
        elif ((rest)); then ((rest += 1))
        elif [[ $word == -- ]]; then rest=1
        elif [[ $word == --*=* ]]; then :
        elif [[ $word == -* ]]; then _cycles_lite_kind "$at $word"
        elif ((${actions[(I)$word:*]})); then at=${at:+$at }$word; _cycles_lite_at "$at"
        else ((place += 1))
        fi
    done
    if [[ -z $kind && $rest == 0 && $PREFIX == --*=* ]]; then
        _cycles_lite_kind "$at ${PREFIX%%%%=*}"
        compset -P 1 '*='
    fi
    if [[ -n $kind ]]; then :
    elif ((rest == 1)); then kind=command
    elif ((rest)); then kind=file
    elif [[ $PREFIX == -* ]]; then _describe -o option flags; return
    elif (($#actions)); then _describe command actions; return
    else
        all=(${=places})
        kind=${all[place+1]}
        [[ -z $kind && $places == *'*' ]] && kind=${places##* }
    fi
    case ${kind%%\*} in
        file) _files ;;
        folder) _files -/ ;;
        command) _command_names -e ;;
        any | '') ;;
        *) compadd -- ${(s:,:)kind} ;;
    esac
}

if [[ $funcstack[1] == _cycles* ]]; then _cycles_lite "$@"; else compdef _cycles_lite cycles-lite; fi
"""
)

_FISH = r"""# fish completion for cycles-lite
function __cycles_lite_at
    set -l at
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
        else if test "$word" = --
            break
        else if contains -- "$at $word" $__cycles_lite_valued
            set skip 1
        else if contains -- (string trim -- "$at $word") $__cycles_lite_paths
            set at (string trim -- "$at $word")
        end
    end
    test "$at" = "$argv[1]"
end

function __cycles_lite_rest
    set -l words (commandline -opc)
    set -l end (contains -i -- -- $words); or return
    set -e words[1..$end]
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end

set -g __cycles_lite_paths %(paths)s
set -g __cycles_lite_valued %(valued)s
complete -c cycles-lite -f
%(lines)s
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _kinds(commands: Sequence[Command]) -> str:
    """The cases that tell what the value of an option is."""
    found: dict[str, list[str]] = {}
    for one in commands:
        for flag in one.flags:
            if flag.kind:
                found.setdefault(flag.kind, []).extend(_quoted(f"{one.at} {name}") for name in flag.names)
    return "\n".join(f"        {' | '.join(cases)}) kind={kind} ;;" for kind, cases in found.items())


def _bash(commands: Sequence[Command]) -> str:
    lines = []
    for one in commands:
        flags = ",".join(name for flag in one.flags for name in flag.names)
        lines.append(
            f"        '{one.at}') actions={','.join(one.actions)} flags={flags} places='{' '.join(one.places)}' ;;"
        )
    return _BASH % {"at": "\n".join(lines), "kinds": _kinds(commands)}


def _zsh(commands: Sequence[Command]) -> str:
    lines = []
    for one in commands:
        lines.append(f"        '{one.at}')")
        told = {"actions": one.actions, "flags": {name: flag.text for flag in one.flags for name in flag.names}}
        for name, texts in told.items():
            lines += [
                f"            {name}=(",
                *(f"                {_quoted(f'{word}:{text}')}" for word, text in texts.items()),
            ]
            lines.append("            )")
        lines.append(f"            places='{' '.join(one.places)}' ;;")
    return _ZSH % {"at": "\n".join(lines), "kinds": _kinds(commands)}


#: How fish completes each kind of value; words are given to it.
_FISH_KINDS = {
    "file": "-F",
    "folder": "-a '(__fish_complete_directories)'",
    "command": "-a '(__cycles_lite_rest)'",
    "any": "",
}


def _fish(commands: Sequence[Command]) -> str:
    valued = [f"{one.at} {name}" for one in commands for flag in one.flags if flag.kind for name in flag.names]
    told = {"paths": [one.at for one in commands if one.at], "valued": valued}
    listed = {name: " ".join(map(_quoted, words)) for name, words in told.items()}
    return _FISH % {**listed, "lines": "\n".join(line for one in commands for line in _fish_lines(one))}


def _fish_lines(one: Command) -> Iterator[str]:
    start = f"complete -c cycles-lite -n \"__cycles_lite_at '{one.at}'\""
    for name, text in one.actions.items():
        yield f"{start} -a {name} -d {_quoted(text)}"
    for flag in one.flags:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
        value = f" -r {_fish_kind(flag.kind)}" if flag.kind else ""
        yield f"{start} {names}{value} -d {_quoted(flag.text)}"
    for kind in dict.fromkeys(place.rstrip("*") for place in one.places):
        if _fish_kind(kind):
            yield f"{start} {_fish_kind(kind)}"


def _fish_kind(kind: str) -> str:
    return _FISH_KINDS[kind] if kind in _FISH_KINDS else f"-a {_quoted(kind.replace(',', ' '))}"


#: What makes the script of each shell.
SHELLS: Mapping[str, Callable[[Sequence[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
