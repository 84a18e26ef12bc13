#!/usr/bin/env python3
"""The rivals: images per second of PyTorch's DataLoader with PIL, and of Python's webdataset.

usage: "$(scripts/rival-python)" benches/torch_data.py KIND SOURCE [--size 64] [--draft] ...

KIND is `folder` (SOURCE: a folder of images; DataLoader and PIL) or `shards` (SOURCE: tar shards, a pattern with braces, of a disk
or of a web server; webdataset in a DataLoader). As a user would write it: each image opened, made RGB, cut in the middle and
resized with antialiasing where it is larger, and batched as bytes, with no floats and no normalisation, as ours is. --draft lets
libjpeg decode at a reduced scale, which PIL does where it is asked.

Prints one JSON object: `images_per_s` after the first batches, as `ddpm bench data` measures, and `images_per_s_from_start`, from
before the loader was made to the last image; `images` in all. Imports are not timed.
"""

import argparse
import io
import json
import pathlib
import time

import numpy as np
import torch
import webdataset
from PIL import Image


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["folder", "shards"])
    parser.add_argument("source")
    parser.add_argument("--size", type=int, default=64, help="of the network's images (default: 64)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--warm-up", type=int, default=8, help="batches that are not measured (default: 8)")
    parser.add_argument("--draft", action="store_true", help="decode JPEGs at a reduced scale")
    return parser.parse_args()


class Fit:
    """An opened image as bytes of the network's size."""

    def __init__(self, size, draft):
        self.size, self.draft = size, draft

    def __call__(self, image):
        if self.draft:
            image.draft("RGB", (self.size, self.size))
        image = image.convert("RGB")
        if image.size != (self.size, self.size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side)).resize((self.size, self.size), Image.LANCZOS)
        return torch.from_numpy(np.array(image))


class Folder(torch.utils.data.Dataset):
    """Every image below a folder."""

    def __init__(self, folder, fit):
        self.paths = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        self.fit = fit

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.fit(image)


class Member:
    """The image of a sample of webdataset."""

    def __init__(self, fit):
        self.fit = fit

    def __call__(self, sample):
        return self.fit(Image.open(io.BytesIO(next(sample[key] for key in ("png", "jpg", "webp") if key in sample))))


def batches(args):
    fit, common = Fit(args.size, args.draft), {"num_workers": args.workers, "prefetch_factor": 2}
    if args.kind == "folder":
        return torch.utils.data.DataLoader(Folder(args.source, fit), args.batch_size, shuffle=True, **common)
    shards = webdataset.WebDataset(args.source, shardshuffle=100, nodesplitter=webdataset.split_by_node)
    samples = shards.shuffle(1000).map(Member(fit)).batched(args.batch_size, collation_fn=torch.stack)
    return webdataset.WebLoader(samples, batch_size=None, **common)


def main():
    args = arguments()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    images, measured, warm = 0, 0, begun
    for number, batch in enumerate(batches(args)):
        images += len(batch)
        if number < args.warm_up:
            warm = time.perf_counter()
        else:
            measured += len(batch)
    end = time.perf_counter()
    print(json.dumps({
        "images_per_s": measured / (end - warm), "images_per_s_from_start": images / (end - begun), "images": images,
        "framework": f"PyTorch {torch.__version__}, webdataset {webdataset.__version__}, Pillow {Image.__version__}",
    }))


if __name__ == "__main__":
    main()
