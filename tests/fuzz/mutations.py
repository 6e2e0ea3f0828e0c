"""Mutators: of decoded JSON by its structure, of JSON as it is written, of bytes, and of a program's values.

They begin with something legal and change little of it, so that most of what they make gets past the first checks.
"""

from __future__ import annotations

import copy
import json

INT64_MAX = 2**63 - 1


class Raw:
    """JSON that is written just so, whether or not it is any."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return f"Raw({self.text!r:.80})"

    def __deepcopy__(self, memo):
        return self


class Pairs:
    """An object of which names may come twice."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __repr__(self):
        return f"Pairs({self.pairs!r:.200})"


# ---- JSON ----

NUMBERS = [
    0, 1, -1, 2, 41, 42, 43, 100, 2**31, 2**53 + 1, INT64_MAX, INT64_MAX + 1, -INT64_MAX - 1, -INT64_MAX - 2, 10**30,
    0.0, -0.0, 1.0, 42.0, 1.5, 1e300, 5e-324, True, False,
]  # fmt: skip

TEXTS = [
    "", " ", "a", "0", "42", "true", "null", "COMMITTED", "committed", "RELEASED", "ACTIVE", "APPLIED", "ALLOW", "DENY",
    "ALLOW_WITH_CAPS", "TOKENS", "tokens", "USD_MICROCENTS", "CREDITS", "RISK_POINTS", "EXPIRED", "BUDGET_EXCEEDED",
    "RESERVATION_EXPIRED", "INTERNAL_ERROR", "rsv_1", "tenant:acme", "\x00", "\n", "\x7f", "\x85", "\u2028", "\ufeff",
    "\ud800", "\udfff", "\ud83d\ude00", "e\u0301", "\u202e", "../..", "%2e%2e", "{id}", "x" * 129, "x" * 257,
    "x" * 5000,
]  # fmt: skip

RAWS = [
    "NaN", "Infinity", "-Infinity", "-0", "1E400", "-1e-400", "01", "+1", "1.", ".5", "0x10", "'a'", '"\t"', '"\\u00"',
    '"\\ud800"', '"\\x41"', "tru", "undefined", "None", "[", "]", "{", "}", "[[]", "[,]", '{"a"}', "{1:2}", "/**/1",
    "1" * 700, "9" * 5000, "1" * 19, "[" * 500 + "]" * 500, "[" * 100000, '{"a":' * 3000 + "1" + "}" * 3000,
    '"' + "\\" * 9,
]  # fmt: skip


def odd_json(random):
    """Any JSON value, or what only looks like one."""
    kind = random.randrange(9)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 5:
        return random.choice(TEXTS)
    if kind == 5:
        return None
    if kind == 6:
        return random.choice([[], {}, [None], [[]], {"": None}, [1, "a", None], {"unit": "TOKENS", "amount": 42}])
    if kind == 7:
        return nested(random)
    return Raw(random.choice(RAWS))


def nested(random):
    """Lists and objects in each other, to a depth that is harmless, or not."""
    depth = random.choice([1, 2, 3, 30, 210, 400, 990, 1100])
    if depth > 30:
        return Raw("[" * depth + "]" * depth if random.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth)
    made = random.choice([None, 1, "a"])
    for _ in range(depth):
        made = [made] if random.random() < 0.5 else {"a": made}
    return made


def places(value, found=None):
    """Every container in a JSON value with each key or index in it."""
    found = [] if found is None else found
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(entries):
        found.append((value, key))
        places(below, found)
    return found


def mutated(random, value, most=3):
    """A copy of decoded JSON with 1..most changes of its structure."""
    holder = [copy.deepcopy(value)]
    for _ in range(random.randint(1, most)):
        container, key = random.choice(places(holder))
        _change(random, container, key, holder)
    return holder[0]


def _change(random, container, key, holder):
    there = container[key]
    step = random.randrange(10)
    if step == 0 and container is not holder:
        del container[key]
    elif step == 1:
        container[key] = None
    elif step == 2 and isinstance(there, dict):
        there[random.choice(["extra", "", "status", "amount", "unit", "a" * 300, "\ud800"])] = odd_json(random)
    elif step == 3 and isinstance(there, list):
        there.insert(random.randint(0, len(there)), odd_json(random))
    elif step == 4:
        container[key] = [there]
    elif step == 5:
        container[key] = retyped(random, there)
    elif step == 6:
        other, name = random.choice(places(holder))
        if not any(below is container for below in [other[name], *_below(other[name])]):  # no cycle
            container[key] = copy.deepcopy(other[name])
    elif step == 7 and isinstance(container, dict):
        container[random.choice([key.upper(), key + " ", key[:-1], "x" + key])] = container.pop(key)
    else:
        container[key] = odd_json(random)


def _below(value):
    return [container[key] for container, key in places(value)]


def retyped(random, value):
    """Nearly the same value, of another type."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return random.choice([float(value) if abs(value) < 2**900 else 0.0, str(value), bool(value), -value, value + 1])
    if isinstance(value, str):
        return random.choice([[value], value.lower(), value + "\n", value.encode("utf-8", "replace").hex(), len(value)])
    if isinstance(value, dict):
        return random.choice([list(value.items()), list(value), json.dumps(value, default=repr), Pairs([])])
    if isinstance(value, list):
        return random.choice([dict(zip(map(str, range(9)), value)), value * 3, value[:1], len(value)])
    return random.choice([0, "", False])


def written(random, value):
    """JSON as text, with what an encoder may do: blanks, escapes, and names that come twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, (dict, Pairs)):
        pairs = value.pairs if isinstance(value, Pairs) else list(value.items())
        if pairs and random.random() < 0.02:
            name, entry = random.choice(pairs)
            pairs = [*pairs, (name, random.choice([entry, None, odd_json(random)]))]
        blank = random.choice(["", "", "", " ", "\r\n\t"])
        inside = [f"{quoted(random, str(name))}:{blank}{written(random, entry)}" for name, entry in pairs]
        return "{" + blank + ("," + blank).join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([written(random, entry) for entry in value]) + "]"
    if isinstance(value, str):
        return quoted(random, value)
    return json.dumps(value)


def quoted(random, text):
    return json.dumps(text, ensure_ascii=random.random() < 0.7)


def encoded(random, text):
    """Text as bytes: nearly always UTF-8."""
    way = random.randrange(40)
    if way == 0:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
    if way == 1:
        return text.encode(random.choice(["utf-16", "utf-32", "latin-1", "utf-16-le"]), "replace")
    if way == 2:
        return mutated_bytes(random, text.encode("utf-8", "surrogatepass"))
    return text.encode("utf-8", "surrogatepass")


def body(random, value):
    """A body that holds the JSON value, or what is left of it."""
    return encoded(random, written(random, value))


# ---- Bytes ----

PIECES = [
    b"\x00",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\r\n",
    b"\n",
    b'"',
    b"{",
    b"}",
    b"\\",
    b"0",
]


def mutated_bytes(random, data, most=4):
    """The bytes with 1..most changes: flipped, cut, doubled, replaced."""
    made = bytearray(data)
    for _ in range(random.randint(1, most)):
        at, length = random.randint(0, len(made)), random.choice([1, 1, 2, 4, 16, 100])
        step = random.randrange(7)
        if step == 0 and made:
            made[at % len(made)] ^= 1 << random.randrange(8)
        elif step == 1 and made:
            made[at % len(made)] = random.randrange(256)
        elif step == 2:
            del made[at : at + length]
        elif step == 3:
            made[at:at] = made[at : at + length]
        elif step == 4:
            made[at:at] = random.choice(PIECES)
        elif step == 5 and random.random() < 0.3:
            del made[at:]
        else:
            made[at : at + length] = bytes(random.randrange(256) for _ in range(length))
    return bytes(made)
