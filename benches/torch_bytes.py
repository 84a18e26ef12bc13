#!/usr/bin/env python3
"""What a training step costs PyTorch, counted on a machine without a GPU: the bytes that torch.compile would move, by its own
count, those it keeps from forward for backward, and the calls that eager mode makes. Or what a step of DDIM costs.

usage: "$(scripts/rival-python)" benches/torch_bytes.py CONFIG --batch N [--sampling]

Takes diffusers' network in bf16, channels_last, as far as Inductor's scheduler, which knows what it fuses and counts the bytes
that its kernels read and write; weights, convolutions and products included. No code is compiled; the graphs then run as they
were. The bytes are nearly a straight line in the batch: two small batches give that of any. Lowered for a CPU: what is fused
for a GPU may differ. Calls are those that reach an operation, forward and backward; views compute nothing. Dropout, the
optimizer and autocast's conversions are not in either.
"""

import argparse
import json
import pathlib

import diffusers
import torch
import torch_common as common
from torch._functorch.aot_autograd import aot_module, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "slice", "split", "expand", "unsqueeze", "squeeze", "select",
         "as_strided", "detach", "alias", "_reshape_alias"}


def counter(name, counts):
    """A compiler that lowers a graph, schedules it, counts, and gives it back as it was."""
    def count(module, inputs):
        with V.set_fake_mode(detect_fake_mode(inputs)):
            graph = GraphLowering(module, is_backward=name == "backward", is_inference=False)
            with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
                graph.run(*inputs)
                graph.init_wrapper_code()
                graph._update_scheduler()
                counts[name] = graph.count_bytes()[0]
                if name == "forward":
                    output = next(node for node in module.graph.nodes if node.op == "output")
                    kept = [node.meta["val"] for node in output.args[0][1:]]  # the first is the network's own output
                    storages = {s._cdata: s.nbytes() for s in (v.untyped_storage() for v in kept if isinstance(v, torch.Tensor))}
                    counts["kept"] = sum(storages.values())
        return make_boxed_func(module.forward)
    return count


class Calls(TorchDispatchMode):
    """Counts what is called."""

    def __init__(self):
        super().__init__()
        self.computing = self.views = self.of_images = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        view = function.overloadpacket.__name__ in VIEWS
        self.views, self.computing = self.views + view, self.computing + (not view)
        result = function(*args, **(kwargs or {}))
        self.of_images += not view and isinstance(result, torch.Tensor) and result.dim() > 0
        return result


def labels(config, timesteps):
    """Of class 0, where there are classes."""
    return torch.zeros_like(timesteps) if config["model"].get("num_class_embeds") else None


def calls(config):
    """Of one step in eager mode, on tensors that hold nothing."""
    size, channels = config["data"]["image_size"], config["data"]["channels"]
    with torch.device("meta"):
        network = common.build(config).bfloat16()
        images, timesteps = torch.zeros(1, channels, size, size, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.long)
    with Calls() as counted:
        network(images, timesteps, class_labels=labels(config, timesteps)).sample.float().square().mean().backward()
    return {"computing": counted.computing, "views": counted.views}


def scheduler_calls(config):
    """Of one step of diffusers' DDIM, which is not compiled, beside the network: those that touch images."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=config["diffusion"]["num_train_timesteps"])
    scheduler.set_timesteps(50)
    t, x_t = scheduler.timesteps.tolist()[0], torch.zeros(1, 3, 8, 8)
    with torch.inference_mode(), Calls() as counted:
        scheduler.step(x_t, t, x_t, return_dict=False)
    return {"computing": counted.of_images}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path, metavar="CONFIG")
    parser.add_argument("--batch", type=common.positive, default=2, metavar="N", help="(default: 2)")
    parser.add_argument("--sampling", action="store_true", help="a step of DDIM: the network forward, and the scheduler's calls")
    args = parser.parse_args()
    config = common.read(args.config)
    config["model"]["dropout"] = 0.0
    network = common.build(config).to(torch.bfloat16).to(memory_format=torch.channels_last)
    counts = {}
    compiled = aot_module(network, fw_compiler=counter("forward", counts), bw_compiler=counter("backward", counts),
                          partition_fn=min_cut_rematerialization_partition, decompositions=select_decomp_table())
    size, channels = config["data"]["image_size"], config["data"]["channels"]
    images = torch.randn(args.batch, channels, size, size).bfloat16().to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(not args.sampling):
        timesteps = torch.zeros(args.batch, dtype=torch.long)
        output = compiled(images, timesteps, class_labels=labels(config, timesteps))
    if args.sampling:
        counts.pop("kept", None)
        counted = scheduler_calls(config)
    else:
        (output.sample if hasattr(output, "sample") else output[0]).float().square().mean().backward()
        counted = calls(config)
    print(json.dumps({"config": args.config.name, "batch_size": args.batch, "bytes": counts, "calls": counted}))


if __name__ == "__main__":
    main()
