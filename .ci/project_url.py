#!/usr/bin/env python3
"""Check or change the address of the project's repository: `python3 .ci/project_url.py [NEW_ADDRESS]`.

The address is `Repository` in `[project.urls]` of `pyproject.toml`. `PLACES` lists every file in which it is written,
and how often; the addresses of the repository's pages start with it. Without an argument, the places are compared
with that list. With an argument, the new address is written in all of them.
"""

import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
PLACES = {  # file -> number of times that the address is written in it
    ".github/ISSUE_TEMPLATE/config.yml": 2,
    "CITATION.cff": 1,
    "SECURITY.md": 1,
    "mkdocs.yml": 1,
    "pyproject.toml": 3,
}


def current_address(root: Path = ROOT) -> str:
    """Return the address that `pyproject.toml` names."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def find_places(root: Path = ROOT) -> dict[str, int]:
    """Return each tracked or new text file that contains the current address -> how often."""
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = subprocess.run(listing, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    address = current_address(root).encode()
    counts = {name: (root / name).read_bytes().count(address) for name in names if (root / name).is_file()}
    return {name: count for name, count in sorted(counts.items()) if count}


def check(address: str) -> None:
    """Raise ValueError unless this can be the address of a repository, to which `/issues` can be appended."""
    parts = urlsplit(address)
    if parts.scheme != "https" or not parts.netloc or not parts.path.strip("/"):
        raise ValueError(f"{address!r} is not the address of a repository: write https://HOST/OWNER/NAME")
    if address.endswith(("/", ".git")) or parts.query or parts.fragment:
        raise ValueError(f"{address!r} must end with the repository's name: leave out '/', '.git', '?' and '#'")


def fill(address: str, root: Path = ROOT) -> None:
    """Write a new address in all places. ValueError for what cannot be the address of a repository."""
    check(address)
    before = current_address(root)
    for name in PLACES:
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(text.replace(before, address), encoding="utf-8")


def main() -> int:
    """Run the command of `sys.argv`; return the exit status."""
    if len(sys.argv) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    places = find_places()
    if places != PLACES:
        print(f"the address is written in {places}, but PLACES says {PLACES}: correct one of them", file=sys.stderr)
        return 1
    if sys.argv[1:]:
        try:
            fill(sys.argv[1])
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    print(current_address())
    return 0


if __name__ == "__main__":
    sys.exit(main())
