#!/usr/bin/env python3
"""Writes PNGs to train on: smooth shapes with some noise, so that they compress and decode as photographs do.

usage: benches/make_images.py FOLDER SIZE COUNT      (needs numpy and Pillow)
"""

import sys

import numpy as np
from PIL import Image


def main():
    folder, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(f"{folder}/{number:06}.png")


if __name__ == "__main__":
    main()
