#!/usr/bin/env python3
"""What a training step takes of a GPU's memory in PyTorch, told without a GPU.

usage: "$(scripts/rival-python)" benches/torch_memory.py CONFIG [--batch N] [--precision bf16]

The step is that of torch_step.py in eager mode, on tensors that hold nothing: every operation runs as far as the shapes of its
results, and PyTorch's own tracker adds up what is alive. What a GPU does otherwise is made so: autocast computes group norms
in f32 there, and dropout keeps a mask of bytes. Not in it: cuDNN's scratch space, and what the allocator holds beyond what
tensors take. What torch.compile takes is not told.

Prints one JSON object on one line: the peak of the second step, when moments and averages are there, and its parts.
"""

import argparse
import json
import pathlib
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import torch_common as common
import torch_step
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path, metavar="CONFIG")
    parser.add_argument("--batch", type=common.positive, metavar="N", help="images (default: train.batch_size)")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16", help="(default: bf16)")
    return parser.parse_args()


def as_on_a_gpu():
    """Operations that take other memory on a CPU."""
    group_norm = F.group_norm
    F.group_norm = lambda x, *rest, **named: group_norm(x.float(), *rest, **named)
    F.dropout = lambda x, p=0.5, training=True, inplace=False: torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def main():
    args = arguments()
    config = common.read(args.config)
    batch = args.batch or config["train"]["batch_size"]
    as_on_a_gpu()
    # A network of such tensors cannot be moved, so it is made in the layout it has.
    build = common.build
    common.build = lambda config: keep_in_place(build(config))
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = torch_step.Step(config, batch, SimpleNamespace(device="cpu", mode="plain", precision=args.precision))
        step()
        tracker = MemTracker()
        averages = [average for averages in step.averages for average in averages]
        tracker.track_external(step.model, step.optimizer, *averages)
        with tracker:
            step()
        peak = tracker.get_tracker_snapshot("peak")
    _, parts = max(peak.items(), key=lambda item: item[1]["Total"])
    print(json.dumps({"framework": f"torch {torch.__version__}", "config": args.config.name, "batch_size": batch,
                      "precision": args.precision, "peak_bytes": parts["Total"],
                      "parts": {str(name): size for name, size in parts.items() if size}}))


def keep_in_place(network):
    network.to = lambda *_, **__: network
    return network


if __name__ == "__main__":
    main()
