"""Rows and run.json of vtcframe 0.1, which named methods by their repr, read as data."""

import ast
from collections.abc import Callable, Mapping
from typing import Any


def method_data(text: str) -> dict[str, Any]:
    """Read a repr, "VtcCls(last=3)", as {"name": "VtcCls", "last": 3}; "unpruned" is {"name": "unpruned"}.

    Several pruners joined by " + " become stages without sites. ValueError for any other text: nothing is evaluated
    but literals.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no method as vtcframe 0.1 wrote it") from error
    if isinstance(tree, ast.Name):
        return {"name": tree.id}
    parts: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        parts.insert(0, tree.right)
        tree = tree.left
    pruners = [_component(part, text) for part in (tree, *parts)]
    return pruners[0] if len(pruners) == 1 else {"stages": [{"pruner": pruner} for pruner in pruners]}


def run_data(text: str) -> dict[str, Any]:
    """Read an entry of `model.runs`, "unpruned" or the reprs of stages, as {"stages": [...]}. ValueError as above."""
    if text == "unpruned":
        return {"name": "unpruned"}
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} are no stages as vtcframe 0.1 wrote them") from error
    assert isinstance(tree, ast.List)
    stages = [_component(stage, text) for stage in tree.elts]
    return {"stages": [{key: value for key, value in stage.items() if key != "name"} for stage in stages]}


def convert_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with `method` as data and its text as `label`; rows of today are returned as they are."""
    if "label" in row:
        return dict(row)
    label = row.get("method")
    return {**row, "label": label, "method": None if label is None else _or_name(method_data, label)}


BUNDLED_GROUPS = {"attributes": ["color", "shape", "letter", "exist"]}  # the fixed column of vtcframe 0.1


def convert_run(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the "run" of a run.json with methods and transforms as data, and with the groups of question types.

    A run.json of today is returned as it is.
    """
    converted = dict(identity)
    for key, convert in (("model.runs", run_data), ("data.transforms", method_data)):
        values = identity.get(key) or []
        converted[key] = [_or_name(convert, value) if isinstance(value, str) else value for value in values]
    if "data.groups" not in identity:
        converted["data.groups"] = BUNDLED_GROUPS if identity.get("data.path") == "vtcframe:questions" else {}
    return converted


def _or_name(convert: Callable[[str], dict[str, Any]], text: str) -> dict[str, Any]:
    """Convert a text; what is no repr that vtcframe 0.1 wrote stands as the name of something unknown."""
    try:
        return convert(text)
    except ValueError:
        return {"name": text}


def _component(node: ast.expr, text: str) -> dict[str, Any]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args):
        raise ValueError(f"{text!r} is no method as vtcframe 0.1 wrote it")
    options = {keyword.arg: _value(keyword.value, text) for keyword in node.keywords if keyword.arg is not None}
    options = {key: value for key, value in options.items() if value is not None}
    if node.func.id == "Budget":
        return {key: value for key, value in options.items() if (key, value) != ("per", "sample")}
    return {"name": node.func.id, **options}


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _component(node, text)
    if isinstance(node, ast.Tuple | ast.List):
        return [_value(item, text) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{text!r} is no method as vtcframe 0.1 wrote it") from error
