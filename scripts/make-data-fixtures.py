#!/usr/bin/env python3
"""Writes small data sets as people have them, with the libraries that make them: crates/data/src/format/tests/fixtures/.

usage: PYTHON scripts/make-data-fixtures.py

PYTHON needs webdataset, datasets and Pillow. Sample i is a grey image of 4x4 pixels of value 10 * i, and of class i % 2.
"""

import io
import pathlib
import shutil
import tarfile

import datasets
import webdataset
from PIL import Image

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "crates/data/src/format/tests/fixtures"
CLASSES = ["cat", "dog"]


def picture(i):
    return Image.new("L", (4, 4), 10 * i)


def png(i):
    buffer = io.BytesIO()
    picture(i).save(buffer, "png")
    return buffer.getvalue()


def shards():
    """webdataset's own writer: numbers in .cls, or names in .json beside a caption."""
    folder = FIXTURES / "webdataset"
    folder.mkdir()
    for shard, label in enumerate(["cls", "json"]):
        with webdataset.TarWriter(str(folder / f"train-{shard:06}.tar"), mtime=0) as writer:
            for i in range(3 * shard, 3 * shard + 3):
                value = i % 2 if label == "cls" else {"label": i % 2, "text": "a picture"}
                writer.write({"__key__": f"a/{i:04}", "png": png(i), label: value, "txt": "grey\nand small"})


def archives():
    """Names longer than a header holds, as Python writes them in both ways, and what is no plain file."""
    for name, kind in [("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)]:
        with tarfile.open(FIXTURES / f"{name}.tar", "w", format=kind) as archive:
            folder = tarfile.TarInfo("./folder")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            link = tarfile.TarInfo("./folder/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            for i in range(2):
                for ending, content in [("png", png(i)), ("cls", str(i).encode())]:
                    info = tarfile.TarInfo(f"./{'ü' * 120}/{i}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def tables():
    """datasets.save_to_disk: classes with names, in two files; splits; labels that are texts."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [picture(i) for i in range(6)], "label": [i % 2 for i in range(6)]}
    named = datasets.Dataset.from_dict(rows, features=features)
    named.save_to_disk(FIXTURES / "saved", num_shards=2)
    datasets.DatasetDict({"train": named, "test": named.select([5])}).save_to_disk(FIXTURES / "saved-splits")
    texts = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"id": ["x"] * 6, "image": rows["image"], "label": [CLASSES[i % 2] if i else None for i in range(6)]}
    datasets.Dataset.from_dict(rows, features=texts).save_to_disk(FIXTURES / "saved-texts")


def main():
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir(parents=True)
    shards()
    archives()
    tables()


if __name__ == "__main__":
    main()
