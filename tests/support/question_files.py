"""Pictures and tables in files of questions."""

import base64
import csv
import io
import json

from PIL import Image

from vtcframe.data.decode import load_sample


def picture(level=0):
    """The bytes of a PNG of this brightness."""
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (level, level, level)).save(out, format="PNG")
    return out.getvalue()


def encoded(level=0):
    return base64.b64encode(picture(level)).decode()


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def table(path, *rows, header=None):
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, header or list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        lines.writeheader()
        lines.writerows(rows)
    return path


def levels(sample):
    """The brightness of each picture of a sample."""
    loaded = load_sample(sample)
    assert loaded.error is None
    return [one.getpixel((0, 0))[0] for one in loaded.pictures]
