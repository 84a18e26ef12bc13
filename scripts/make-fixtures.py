#!/usr/bin/env python3
"""Makes the fixtures that crates/model/tests/diffusers_parity.rs compares our UNet with, by running diffusers itself.

usage: "$(scripts/rival-python)" scripts/make-fixtures.py [--to DIR]

One safetensors file per configuration:

    weight.<key>    every parameter, f32, under diffusers' key
    sample          f32 [N, C, H, W]
    timesteps       i64 [N]
    class_labels    i64 [N], of class-conditional models
    output          f32 [N, C', H, W]
    target, loss, grad.<key>    of some: the mean squared error against `target`, and its gradient

The file's metadata has one entry, `fixture`, a JSON object: the model's `config` as diffusers writes it, the seed and
the versions. (One, because safetensors writes several in any order; so the same versions make the same bytes.)

Weights are random and none of them is zero, so that nothing can be left out unnoticed. Outputs and gradients are
computed in f64 and rounded once: what the comparison finds is then our rounding alone, and the files do not depend on
the CPU they were made on. The time embedding's sinusoids are f32 even then, as diffusers has them.
"""

import argparse
import json
import pathlib

import diffusers
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "crates" / "model" / "tests" / "fixtures"

# Everything that a configuration below does not say. `attention_head_dim` is not diffusers' default (8).
BASE = dict(
    sample_size=16,
    in_channels=3,
    out_channels=3,
    block_out_channels=(8, 12),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    norm_num_groups=4,
)

# Ho et al. 2020: Google's DDPM checkpoints.
HO = dict(flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, downsample_padding=0)

# Nichol & Dhariwal 2021.
IMPROVED = dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4)

# For an option that is the same at any size. (Alone in its group, a channel would lose its bias.)
SMALL = dict(block_out_channels=(4, 8), sample_size=12, norm_num_groups=2)

RESNET_RESAMPLING = dict(
    down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
    up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
)
ATTENTION_BELOW = dict(
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
ATTENTION_EVERYWHERE = dict(
    down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
)

# Name: (config, with gradients). Multiples of 16 channels reach our fastest convolutions, the others their general kin.
CONFIGS = {
    "plain": (dict(), False),
    "no-attention": (dict(add_attention=False, in_channels=1, out_channels=1, sample_size=20), False),
    "ho": (dict(block_out_channels=(16, 16), sample_size=24, **ATTENTION_BELOW, **HO), True),
    "improved": (
        dict(
            block_out_channels=(8, 8),
            layers_per_block=2,
            out_channels=6,
            attention_head_dim=4,
            num_class_embeds=5,
            **ATTENTION_BELOW,
            **IMPROVED,
        ),
        True,
    ),
    "quickstart": (
        dict(
            in_channels=1,
            out_channels=1,
            sample_size=32,
            block_out_channels=(8, 16, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            **IMPROVED,
        ),
        False,
    ),
    "scale-shift-without-attention-norm": (dict(resnet_time_scale_shift="scale_shift", attention_head_dim=4), True),
    "attention-everywhere": (dict(attention_head_dim=4, sample_size=12, **ATTENTION_EVERYWHERE), False),
    "attention-on-one-way": (
        dict(down_block_types=("AttnDownBlock2D", "DownBlock2D"), add_attention=False, attention_head_dim=8),
        False,
    ),
    "three-levels-odd-widths": (
        dict(
            sample_size=24,
            block_out_channels=(4, 20, 8),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            downsample_padding=0,
        ),
        False,
    ),
    "odd-size-below": (
        dict(sample_size=18, downsample_padding=0, attn_norm_num_groups=3, norm_num_groups=2, **ATTENTION_BELOW),
        False,
    ),
    "one-level": (
        dict(
            block_out_channels=(8,),
            down_block_types=("AttnDownBlock2D",),
            up_block_types=("UpBlock2D",),
            sample_size=7,
            norm_num_groups=1,
        ),
        False,
    ),
    "classes": (dict(num_class_embeds=3, freq_shift=1, dropout=0.1), False),
    "sin-before-cos": (dict(flip_sin_to_cos=False, norm_eps=1e-2, in_channels=6), False),
    "resnet-resampling": (dict(block_out_channels=(8, 16), **RESNET_RESAMPLING), True),
    "resnet-resampling-scale-shift": (
        dict(
            block_out_channels=(4, 8, 12),
            norm_num_groups=2,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=4,
            num_class_embeds=3,
            class_embed_type="timestep",
            **IMPROVED,
        ),
        True,
    ),
    "attention-resnet-resampling": (
        dict(downsample_type="resnet", upsample_type="resnet", attention_head_dim=4, **SMALL, **ATTENTION_EVERYWHERE),
        False,
    ),
    "resampling-of-two-kinds": (
        dict(
            down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D"),
            upsample_type="resnet",
            downsample_padding=0,
            layers_per_block=2,
            dropout=0.2,
            **SMALL,
        ),
        False,
    ),
    "mid-block-scale": (dict(mid_block_scale_factor=1.7, attention_head_dim=4, **SMALL), True),
    "mid-block-scale-without-attention": (dict(mid_block_scale_factor=0.6, add_attention=False, **SMALL), False),
    "centred": (dict(center_input_sample=True, time_embedding_dim=20, **SMALL), False),
    "classes-as-numbers": (dict(class_embed_type="timestep", freq_shift=1, flip_sin_to_cos=False, **SMALL), False),
    "mish": (dict(act_fn="mish", **SMALL, **IMPROVED), False),
    "gelu": (dict(act_fn="gelu", num_class_embeds=2, **SMALL), True),
    "relu": (dict(act_fn="relu", **SMALL), False),
    "swish": (dict(act_fn="swish", add_attention=False, **SMALL), False),
    "not-square": (
        dict(downsample_padding=0, attention_head_dim=4, **{**SMALL, **ATTENTION_BELOW, "sample_size": (12, 20)}),
        True,
    ),
    "not-square-resnet-resampling": (
        dict(
            downsample_type="resnet",
            upsample_type="resnet",
            **{**SMALL, **ATTENTION_EVERYWHERE, "sample_size": (22, 10)},
        ),
        False,
    ),
}

# The least and the most noisy step, and one between.
TIMESTEPS = (0, 999, 421)


def random_weights(model, generator):
    """Of the usual size, and none of them zero: norms are not ones, biases not zeros."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            value = (1.0 if name.endswith(".weight") else 0.0) + 0.2 * noise
        elif name == "class_embedding.weight":
            value = noise
        else:
            value = noise / parameter[0].numel() ** 0.5
        assert value.count_nonzero() == value.numel(), name
        parameter.data.copy_(value)


def run(model, tensors):
    if model.config.class_embed_type == "timestep" and not model.class_embedding._forward_pre_hooks:
        # diffusers casts the sinusoids of the time to the model's type, but not those of the class.
        model.class_embedding.register_forward_pre_hook(lambda module, args: (args[0].to(model.dtype),))
    labels = tensors.get("class_labels")
    return model(tensors["sample"].to(model.dtype), tensors["timesteps"], class_labels=labels).sample


def relative_error(got, want):
    return ((got.double() - want).abs().max() / want.abs().max()).item()


def make(config, gradients, seed):
    """The tensors of one fixture, its metadata, and how far diffusers in f32 is from them."""
    generator = torch.Generator().manual_seed(seed)
    model = UNet2DModel(**{**BASE, **config}).eval()
    random_weights(model, generator)
    c = model.config
    n = len(TIMESTEPS)
    tensors = {f"weight.{key}": value.clone() for key, value in model.state_dict().items()}
    # Height and width.
    sides = c.sample_size if isinstance(c.sample_size, (tuple, list)) else (c.sample_size, c.sample_size)
    tensors["sample"] = torch.randn((n, c.in_channels, *sides), generator=generator)
    tensors["timesteps"] = torch.tensor(TIMESTEPS)
    if c.num_class_embeds or c.class_embed_type:
        # The last class, and one of them twice: its gradients add up.
        tensors["class_labels"] = torch.tensor([(c.num_class_embeds or 8) - 1, 1, 1])

    with torch.no_grad():
        single = run(model, tensors)
    model.double()
    output = run(model, tensors)
    tensors["output"] = output.detach().float()
    if gradients:
        target = torch.randn(output.shape, generator=generator)
        loss = torch.nn.functional.mse_loss(output, target.double())
        loss.backward()
        tensors.update(target=target, loss=loss.detach().float())
        tensors.update((f"grad.{key}", p.grad.float()) for key, p in model.named_parameters())

    config = json.loads(model.to_json_string())
    fixture = dict(config=config, seed=seed, torch=torch.__version__, diffusers=diffusers.__version__)
    return tensors, {"fixture": json.dumps(fixture)}, relative_error(single, output.detach())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=pathlib.Path, default=FIXTURES, metavar="DIR")
    to = parser.parse_args().to
    to.mkdir(parents=True, exist_ok=True)
    total = 0
    for seed, (name, (config, gradients)) in enumerate(CONFIGS.items()):
        tensors, metadata, error = make(config, gradients, seed)
        path = to / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        size = path.stat().st_size
        total += size
        parameters = sum(value.numel() for key, value in tensors.items() if key.startswith("weight."))
        print(f"{name:<36} {parameters:>8} parameters {size:>9} bytes; diffusers in f32 is off by {error:.1e}")
    print(f"{len(CONFIGS)} files, {total} bytes, in {to}")


if __name__ == "__main__":
    main()
