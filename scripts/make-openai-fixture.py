#!/usr/bin/env python3
"""Makes tests/fixtures/openai: small checkpoints of OpenAI's networks, and what their own code computes with them.

usage: git clone https://github.com/openai/guided-diffusion DIR
       "$(scripts/rival-python)" scripts/make-openai-fixture.py --repo DIR

    <name>.pt            a state_dict as their train_util.py saves it, in f16
    <name>.safetensors   sample, timesteps, class_labels where there are classes, and the output, in f32 as they compute

guided-diffusion's network with improved-diffusion's options is improved-diffusion's, under the same keys, so one repository is
enough. The weights are random. All of a file are views of one storage, each with another start, so that files are
small; t is scaled before it is given to the network, as their _WrappedModel does.
"""

import argparse
import collections
import pathlib
import sys
import types
import zlib

import torch
from safetensors.torch import save_file

TO = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "openai"
SIZE = 8

# Their normalisation has 32 groups, so no level is narrower.
COMMON = dict(image_size=SIZE, in_channels=3, model_channels=32, num_res_blocks=1)
FIXTURES = {
    # A number of heads that is the same at 32 and 64 channels, rows in the old order, t scaled from 4000 to 1000.
    "improved": dict(
        network=dict(out_channels=6, channel_mult=(1, 2), attention_resolutions=(1, 2), num_heads=4, use_scale_shift_norm=True),
        timesteps=(7, 3901),
        scale=1000.0 / 4000,
    ),
    # Heads of a fixed width, rows in the new order, resampling in residual blocks, classes.
    "guided": dict(
        network=dict(
            out_channels=3, channel_mult=(1, 1), attention_resolutions=(2,), num_head_channels=16, resblock_updown=True,
            use_new_attention_order=True, num_classes=10,
        ),
        timesteps=(7, 901),
        scale=1.0,
    ),
}


def their_network(repo):
    """unet.py alone: the package's other modules want MPI."""
    sys.path.insert(0, str(repo))
    package = types.ModuleType("guided_diffusion")
    package.__path__ = [str(repo / "guided_diffusion")]
    sys.modules["guided_diffusion"] = package
    from guided_diffusion.unet import UNetModel

    return UNetModel


def weights(network, seed):
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    largest = max(shape.numel() for shape in shapes.values())
    torch.manual_seed(seed)
    storage = (torch.randn(largest + 997) * 0.1).half()
    start = {key: zlib.crc32(key.encode()) % 997 for key in shapes}
    views = ((key, storage[start[key] :][: shape.numel()].view(shape)) for key, shape in shapes.items())
    return collections.OrderedDict(views)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, type=pathlib.Path)
    UNetModel = their_network(parser.parse_args().repo)
    TO.mkdir(parents=True, exist_ok=True)
    for seed, (name, fixture) in enumerate(FIXTURES.items()):
        network = UNetModel(**COMMON, **fixture["network"]).eval()
        state = weights(network, seed)
        torch.save(state, TO / f"{name}.pt")
        network.load_state_dict({key: tensor.float() for key, tensor in state.items()})
        sample = torch.randn(2, 3, SIZE, SIZE)
        inputs = dict(sample=sample, timesteps=torch.tensor(fixture["timesteps"]))
        labels = {}
        if "num_classes" in fixture["network"]:
            inputs["class_labels"] = torch.tensor([3, 9])
            labels = dict(y=inputs["class_labels"])
        with torch.no_grad():
            output = network(sample, inputs["timesteps"] * fixture["scale"], **labels)
        save_file(dict(inputs, output=output), TO / f"{name}.safetensors")
        size = (TO / f"{name}.pt").stat().st_size
        print(f"{name}: {size} bytes, output from {output.min():.3f} to {output.max():.3f}")


if __name__ == "__main__":
    main()
