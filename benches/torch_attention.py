#!/usr/bin/env python3
"""Attention of one layer in PyTorch, forward and backward, by each of its backends: cuDNN's, the flash one, the frugal one.

usage: "$(scripts/rival-python)" benches/torch_attention.py [--device cuda] [--shape N,HEADS,TOKENS,WIDTH]

Queries, keys and values lie together as one product makes them, `[N, tokens, 3, heads, width]`, as ours do. Whether heads of 256
channels should go to cuDNN was predicted (docs/performance.md, 'Attention') and is decided by these times beside those of
`ddpm bench ops`. A backend that refuses the shape says why. Prints one JSON object on one line.
"""

import argparse
import json
import statistics
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_common import Clock

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "math": SDPBackend.MATH}
CIFAR10 = "128,1,256,256"
WARM_UP, REPEAT = 5, 20
# Some 50 ms of a GPU's cycles, in which the host queues all that is timed: it takes longer to queue than to compute.
HEAD_START = 100_000_000


def median_us(device, works):
    """Of each of the works, done one after the other again and again."""
    clock, marks = Clock(device), []
    for turn in range(WARM_UP + REPEAT):
        if turn == WARM_UP and device == "cuda":
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START)
        places = [clock.mark()]
        for work in works:
            work()
            places.append(clock.mark())
        if turn >= WARM_UP:
            marks.append(places)
    clock.finish()
    return [statistics.median(clock.ms(places[at], places[at + 1]) for places in marks) * 1e3 for at in range(len(works))]


def measure(device, shape, backend):
    n, heads, tokens, width = shape
    qkv = torch.randn(n, tokens, 3, heads, width, device=device, dtype=torch.bfloat16)
    # Leaves, so that their gradients are not put together again, which is no part of attention.
    q, k, v = (part.transpose(1, 2).detach().requires_grad_() for part in qkv.unbind(2))
    dy = torch.randn(n, heads, tokens, width, device=device, dtype=torch.bfloat16)
    last = []

    def forward():
        last[:] = [F.scaled_dot_product_attention(q, k, v)]

    def backward():
        torch.autograd.grad(last.pop(), (q, k, v), dy)

    with sdpa_kernel(backend):
        forward_us, backward_us = median_us(device, [forward, backward])
    return {"forward_us": forward_us, "backward_us": backward_us}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="(default: cuda)")
    parser.add_argument("--shape", type=lambda text: [int(word) for word in text.split(",")], default=CIFAR10, metavar="LIST",
                        help=f"(default: CIFAR-10's, {CIFAR10})")
    args = parser.parse_args()
    found = {}
    for name, backend in BACKENDS.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found[name] = measure(args.device, args.shape, backend)
            except RuntimeError as error:
                found[name] = {"error": str(error).splitlines()[0], "why": [str(warning.message).splitlines()[0] for warning in said]}
    print(json.dumps({"shape": args.shape, "backends": found, "framework": f"torch {torch.__version__}"}))


if __name__ == "__main__":
    main()
