"""The bundled model and questions."""

from importlib.resources import files
from pathlib import Path

from vtcframe.errors import UsageError

BUNDLED = "vtcframe:"


def bundled(path: str) -> str:
    """Return the folder that `vtcframe:NAME` stands for, and any other path as it is. UsageError for other names."""
    if not path.startswith(BUNDLED):
        return path
    assets = Path(str(files("vtcframe") / "assets"))
    names = sorted(folder.name for folder in assets.iterdir() if folder.is_dir())
    if (name := path.removeprefix(BUNDLED)) not in names:
        raise UsageError(f"nothing bundled is called {path!r}: use {', '.join(BUNDLED + name for name in names)}")
    return str(assets / name)
