//! What diffusers' `UNet2DModel` can be and this version cannot.

/// Why a name that diffusers knows as a value of `UNet2DModel`'s options is refused here; nothing for other names.
pub fn unsupported(name: &str) -> Option<&'static str> {
    Some(match name {
        "SkipDownBlock2D" | "AttnSkipDownBlock2D" | "SkipUpBlock2D" | "AttnSkipUpBlock2D" => {
            "the blocks of score-based models, which carry the image along and filter it, are not supported"
        }
        "fourier" => "random Fourier features of the noise level belong to score-based models and are not supported",
        "learned" => "a learned row for each timestep is not supported; sinusoids are \"positional\"",
        "identity" => "it takes classes as ready-made embeddings; labels here are numbers, so it is not supported",
        "KDownBlock2D" | "KUpBlock2D" | "KCrossAttnDownBlock2D" | "KCrossAttnUpBlock2D" => {
            "the blocks of k-diffusion's upscaler are not supported"
        }
        "CrossAttnDownBlock2D"
        | "CrossAttnUpBlock2D"
        | "SimpleCrossAttnDownBlock2D"
        | "SimpleCrossAttnUpBlock2D"
        | "UNetMidBlock2DCrossAttn"
        | "UNetMidBlock2DSimpleCrossAttn" => "cross-attention, for conditions on texts, is not supported",
        "DownEncoderBlock2D" | "AttnDownEncoderBlock2D" | "UpDecoderBlock2D" | "AttnUpDecoderBlock2D" => {
            "the blocks of autoencoders are not supported"
        }
        _ => return None,
    })
}
