import sys

import pytest

from support.broken_components import BARE, BROKEN, HEAD, NEEDS, TARGETS, code


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A distribution, installed as an installer would, all of whose components are broken."""
    folder = tmp_path_factory.mktemp("broken")
    parts = HEAD + BARE
    parts += "".join(code(name, kind, body) for name, (kind, body, _) in BROKEN.items())
    (folder / "broken_parts.py").write_text(parts)
    (folder / "broken_boom.py").write_text("raise OSError('libfoo is missing')")
    (folder / "broken_exits.py").write_text("import sys; sys.exit(7)")
    kinds = {}
    for name, (kind, *_) in BROKEN.items():
        kinds.setdefault(kind.lower(), []).append(f"broken_parts:{name}")
    kinds["scorer"] += [f"{module}:{name}" for name, (module, _) in TARGETS.items()]
    kinds["scorer"] += [f"broken_parts:{name}" for name in ("NoArgument", *NEEDS)]
    kinds["selector"].append("broken_parts:ManyArguments")
    kinds["merger"].append("broken_parts:ManySlots")
    kinds["pruner"].append("broken_parts:Picky")
    kinds["benchmark"] = ["broken_parts:NoFile", "broken_parts:NoScore"]
    kinds["transform"] = ["broken_parts:Torn", "broken_parts:Lost"]
    kinds["pruner"] += ["broken_parts:NoStages", "broken_parts:NoPipeline"]
    hook = "from vtcframe.registry import hookimpl\n@hookimpl\ndef vtcframe_components():\n    return "
    (folder / "broken_plugin.py").write_text(f"{hook}{kinds!r}\n")
    told = folder / "broken-1.2.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.2\n")
    (told / "entry_points.txt").write_text("[vtcframe]\nbroken = broken_plugin\n")
    from vtcframe import registry

    sys.path.insert(0, str(folder))
    registry._scan.cache_clear()
    import broken_parts

    yield broken_parts
    sys.path.remove(str(folder))
    registry._scan.cache_clear()
    for name in [name for name in sys.modules if name.startswith("broken_")]:
        del sys.modules[name]
