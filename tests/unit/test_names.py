"""Names say what a thing is, and a public name means one thing in the whole library."""

import ast
import re
from collections import Counter, defaultdict

from support.distributions import ROOT

FOLDERS = "vtcframe", "plugins", "perf", "tiny"
BANNED = set(
    "asked found given held here known left made mine more one ours own paid read said seen shown some taken theirs "
    "there told wanted whose".split()
)  # pronouns, participles and adverbs: none of them says what a value is
ALLOWED: dict[str, int] = {}  # file -> how many banned names it still has; a number may only shrink
MAY_RECUR = {"main"}  # the function of each command


def definitions(tree):
    """Names of variables, parameters, functions, classes and attributes, where they are given a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name != "read":  # a verb
            yield node.name, node.lineno


def banned_names(source):
    """Line and name of what a file defines under a banned name; "left" beside "top" or "right" is a side."""
    lines = source.splitlines()
    return [
        (line, name)
        for name, line in definitions(ast.parse(source))
        if name.strip("_").lower() in BANNED
        and not (name.lower() == "left" and re.search("top|right", lines[line - 1], re.IGNORECASE))
    ]


def public_definitions(source):
    """Names of the public classes and functions of a module."""
    nodes = ast.parse(source).body
    named = (node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [name for name in named if not name.startswith("_")]


def modules():
    return sorted((ROOT / "vtcframe").rglob("*.py"))


def test_names_are_nouns_and_verbs():
    problems = []
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        lines = banned_names(path.read_text(encoding="utf-8"))
        if len(lines) > ALLOWED.get(name, 0):
            problems += [f"{name}:{line} defines {word!r}" for line, word in lines]
        elif len(lines) < ALLOWED.get(name, 0):
            problems.append(f"{name} has fewer banned names now: write {len(lines)} for it in ALLOWED")
    assert not problems, "\n".join(["name it after what it is or does:", *problems])


def test_a_public_name_is_defined_once():
    places = defaultdict(list)
    for path in modules():
        for name in public_definitions(path.read_text(encoding="utf-8")):
            places[name].append(path.relative_to(ROOT).as_posix())
    recurring = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in MAY_RECUR}
    assert not recurring


def test_no_module_is_named_as_what_it_exports():
    same = [path.name for path in modules() if path.stem in public_definitions(path.read_text(encoding="utf-8"))]
    assert not same


def test_the_checks_find_what_they_look_for():
    source = "class Found: pass\ndef told(given): own.read = [one for one in given]\n"
    source += "left_padding = kept = 1\ntop = left = 0\ndef read(): left = 1\n"
    assert Counter(name for _, name in banned_names(source)) == Counter(
        ["Found", "told", "given", "read", "one", "left"]
    )
    assert public_definitions("class A: pass\ndef _b(): pass\ndef c(): pass\n") == ["A", "c"]
