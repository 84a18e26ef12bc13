"""Folders of PNGs to train on, made once by benches/make_images.py."""

import sys
import tomllib

from .programs import Failed


def folder(machine, config, count):
    """Images of a configuration's size; there are at least 512, so that the order matters."""
    size = tomllib.loads((machine.directory / config).read_text())["data"]["image_size"]
    place = machine.scratch / f"images-{size}"
    count = max(count, 32 if machine.rehearse else 512)
    if place.is_dir() and sum(1 for _ in place.iterdir()) >= count:
        return place
    place.mkdir(exist_ok=True)
    outcome = machine.run([sys.executable, "benches/make_images.py", place, size, count], 60)
    if outcome.code:
        raise Failed(f"no images could be made: {outcome.why()}")
    return place
