"""Folders of PNGs to train on: smooth shapes with some noise, so that they compress and decode as photographs do."""

import sys
import tomllib

from .machine import Failed

PYTHON = sys.executable

# numpy and Pillow come with PyTorch's machines; a process of its own, for the runner itself needs neither.
SCRIPT = """
import sys
import numpy as np
from PIL import Image
folder, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(0)
for number in range(count):
    coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC), dtype=np.int16)
    noisy = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(f"{folder}/{number:06}.png")
"""


def folder(machine, config, count):
    """Images of a configuration's size, made once; there are at least 512, so that the order matters."""
    size = tomllib.loads((machine.directory / config).read_text())["data"]["image_size"]
    place = machine.scratch / f"images-{size}"
    count = max(count, 32 if machine.rehearse else 512)
    if place.is_dir() and sum(1 for _ in place.iterdir()) >= count:
        return place
    place.mkdir(exist_ok=True)
    code, _ = machine.run([PYTHON, "-c", SCRIPT, place, size, count], 60)
    if code:
        raise Failed("no images could be made: numpy or Pillow is missing (see gpu-check.log)")
    return place
