#!/usr/bin/env python3
"""What this machine's memory and matrix units do at most, by PyTorch: the two rates of a roofline.

usage: "$(scripts/rival-python)" benches/torch_roofs.py [--device cuda]

A copy of a tensor much larger than any cache, bytes read plus bytes written; and a product of two bf16 matrices of random
numbers, which on zeros would run faster than any work does. Each is warmed up, then timed singly, and the median counts.
Takes about a second on a GPU, beyond PyTorch's start. Prints one JSON object on one line, for `scripts/roofline.py --roofs`.
"""

import argparse
import json
import statistics

import torch

from torch_common import Clock

# Of a CPU only that the program runs is of interest.
COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 64 * 2**20}
SIDE = {"cuda": 8192, "cpu": 256}
WARM_UP, REPEAT = 5, 20


def median_ms(device, work):
    clock, marks = Clock(device), []
    for _ in range(WARM_UP):
        work()
    for _ in range(REPEAT):
        begun = clock.mark()
        work()
        marks.append((begun, clock.mark()))
    clock.finish()
    return statistics.median(clock.ms(*pair) for pair in marks)


def copy_rate(device):
    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device] / median_ms(device, lambda: target.copy_(source)) * 1e3


def product_rate(device):
    a, b = (torch.randn(SIDE[device], SIDE[device], device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * SIDE[device] ** 3 / median_ms(device, lambda: torch.matmul(a, b, out=out)) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="(default: cuda)")
    device = parser.parse_args().device
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps({"device": name, "bytes_per_s": copy_rate(device), "flop_per_s": product_rate(device),
                      "copy_bytes": COPY_BYTES[device], "side": SIDE[device], "framework": f"torch {torch.__version__}"}))


if __name__ == "__main__":
    main()
