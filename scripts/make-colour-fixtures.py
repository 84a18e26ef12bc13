#!/usr/bin/env python3
"""Writes images with colour profiles, and what Pillow (Little CMS) makes of them: crates/data/src/decode/fixtures/colour/.

usage: PYTHON scripts/make-colour-fixtures.py --profiles DIR

PYTHON needs Pillow. DIR is a clone of saucecontrol/Compact-ICC-Profiles, whose profiles are in the public domain (CC0). Beside
`NAME.png` lies `NAME-srgb.png`, the same in sRGB, without a profile.
"""

import argparse
import io
import pathlib
import struct

from PIL import Image, ImageCms

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "crates/data/src/decode/fixtures/colour"
WIDTH, HEIGHT = 24, 16
COLOURS = {"srgb": "sRGB-v2-micro", "display-p3": "DisplayP3-v4", "adobe": "AdobeCompat-v2", "rec2020": "Rec2020-v2-micro"}


def colours():
    """A bit of everything, without the most saturated colours, which are cut off at the end of sRGB's."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            grey = 40 + 9 * x
            image.putpixel((x, y), (min(grey + 3 * y, 255), grey, max(grey - 5 * (y % 8), 0)))
    return image


def grey_profile(gamma):
    """A profile of version 2 with a curve for grey: its header, a table of tags, and their contents."""

    def text(kind, words):
        if kind == b"desc":
            return b"desc" + bytes(4) + struct.pack(">I", len(words) + 1) + words + b"\0" + bytes(78)
        return b"text" + bytes(4) + words + b"\0"

    d50 = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    tags = {
        b"desc": text(b"desc", b"grey"),
        b"cprt": text(b"cprt", b"CC0"),
        b"wtpt": b"XYZ " + bytes(4) + d50,
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)),
    }
    table, contents = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    size = start + len(contents)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50
    return header + bytes(128 - len(header)) + table + contents


def in_srgb(image, profile):
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, profile, srgb, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=pathlib.Path, required=True, metavar="DIR")
    profiles = parser.parse_args().profiles / "profiles"
    FIXTURES.mkdir(parents=True, exist_ok=True)
    pairs = [(name, colours(), (profiles / f"{file}.icc").read_bytes()) for name, file in COLOURS.items()]
    pairs.append(("grey", colours().convert("L"), grey_profile(1.4)))
    for name, image, profile in pairs:
        image.save(FIXTURES / f"{name}.png", icc_profile=profile)
        in_srgb(image, profile).convert(image.mode).save(FIXTURES / f"{name}-srgb.png", icc_profile=None)
    inks = (profiles / "CGATS001Compat-v2-micro.icc").read_bytes()
    colours().convert("CMYK").save(FIXTURES / "cmyk.jpg", icc_profile=inks)


if __name__ == "__main__":
    main()
