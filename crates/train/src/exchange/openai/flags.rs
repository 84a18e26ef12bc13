//! The flags of `scripts/image_train.py`, with the defaults of `script_util.py`.

use std::collections::BTreeMap;

use ddpm_model::diffusion::{BetaSchedule, DiffusionConfig, PredictionType, VarianceType};

use super::{Origin, Refusal};

/// The ends of the linear schedule at 1000 steps; at others they are scaled by 1000 / T.
const LINEAR: (f64, f64) = (1e-4, 0.02);
/// What t is scaled to.
const SCALED_TO: f64 = 1000.0;

/// Flags that the weights say too: given ones are compared with them. They say too where attention is, but not in these words.
const OF_WEIGHTS: [&str; 7] = [
    "num_channels",
    "num_res_blocks",
    "channel_mult",
    "learn_sigma",
    "class_cond",
    "use_scale_shift_norm",
    "resblock_updown",
];
/// Flags that change neither the network nor the process, but must be what they are.
const WITHOUT_EFFECT: [(&str, Check, &str); 5] = [
    ("attention_resolutions", are_resolutions, "whole numbers above 0 with commas between them"),
    ("timestep_respacing", is_respacing, "numbers of steps with commas between them, or ddim and one"),
    ("use_checkpoint", is_truth, "True or False"),
    ("use_fp16", is_truth, "True or False"),
    ("rescale_learned_sigmas", is_truth, "True or False"),
];
/// Whether a text is a value of a flag.
type Check = fn(&str) -> bool;
/// Flags that guided-diffusion has and improved-diffusion has not, and the other way round.
const GUIDED_ALONE: [&str; 5] =
    ["num_head_channels", "channel_mult", "resblock_updown", "use_fp16", "use_new_attention_order"];
const IMPROVED_ALONE: [&str; 1] = ["sigma_small"];

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Flags {
    /// Whose scripts they are of.
    pub(super) origin: Origin,
    pub(super) image_size: usize,
    pub(super) num_heads: usize,
    /// Channels of a head; none: `num_heads` of them.
    pub(super) num_head_channels: Option<usize>,
    pub(super) dropout: f64,
    pub(super) use_kl: bool,
    /// Queries of all heads, then keys, then values; else those of each head together.
    pub(super) use_new_attention_order: bool,
    /// T.
    pub(super) diffusion_steps: usize,
    schedule: BetaSchedule,
    sigma_small: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    /// Those of [`OF_WEIGHTS`] that were given.
    of_weights: BTreeMap<String, String>,
    /// Those that were not given and that nothing else says, with their defaults.
    assumed: Vec<String>,
}

/// The text's flags while they are taken out one by one.
struct Given {
    left: BTreeMap<String, String>,
    assumed: Vec<String>,
}

impl Given {
    fn new(text: &str) -> Result<Self, Refusal> {
        let words = text.split_whitespace().flat_map(|word| match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => vec![name, value],
            _ => vec![word],
        });
        let words: Vec<&str> = words.collect();
        let mut left = BTreeMap::new();
        for pair in words.chunks(2) {
            let (&[name, value], Some(key)) = (pair, pair[0].strip_prefix("--")) else {
                return Err(format!("`{}`: expected pairs of --NAME VALUE", pair.join(" ")));
            };
            if left.insert(key.to_owned(), value.trim_matches(['"', '\'']).to_owned()).is_some() {
                return Err(format!("{name} is there twice, expected once"));
            }
        }
        Ok(Self { left, assumed: Vec::new() })
    }

    /// The value of a flag, or its default.
    fn take<T: std::fmt::Display>(
        &mut self,
        name: &str,
        default: T,
        read: impl Fn(&str) -> Option<T>,
        expected: &str,
    ) -> Result<T, Refusal> {
        match self.left.remove(name) {
            None => {
                self.assumed.push(format!("{name} = {default}"));
                Ok(default)
            }
            Some(text) => read(&text).ok_or_else(|| format!("{name} = {text}: expected {expected}")),
        }
    }

    fn count(&mut self, name: &str, default: usize) -> Result<usize, Refusal> {
        self.take(name, default, |text| text.parse().ok().filter(|&count| count > 0), "a whole number above 0")
    }

    fn yes(&mut self, name: &str, default: bool) -> Result<bool, Refusal> {
        self.take(name, default, truth, "True or False")
    }

    /// A number of heads or channels where -1 stands for none.
    fn optional(&mut self, name: &str) -> Result<Option<usize>, Refusal> {
        let read = |text: &str| text.parse().ok().filter(|&number: &i64| number == -1 || number > 0);
        let assumed = self.assumed.len();
        let number = self.take(name, -1, read, "a whole number above 0, or -1")?;
        self.assumed.truncate(assumed);
        Ok(usize::try_from(number).ok())
    }
}

/// The words that their scripts take for a truth value.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "t" | "y" | "1" => Some(true),
        "no" | "false" | "f" | "n" | "0" => Some(false),
        _ => None,
    }
}

fn is_truth(text: &str) -> bool {
    truth(text).is_some()
}

fn are_resolutions(text: &str) -> bool {
    text.split(',').all(|side| side.trim().parse::<usize>().is_ok_and(|side| side > 0))
}

fn is_respacing(text: &str) -> bool {
    match text.strip_prefix("ddim") {
        Some(steps) => steps.parse::<usize>().is_ok_and(|steps| steps > 0),
        None => text.is_empty() || are_resolutions(text),
    }
}

impl Flags {
    /// Of `text`, as on the command line of `origin`'s scripts.
    ///
    /// # Errors
    /// There is no such flag, or a value is none of it.
    pub(super) fn parse(origin: Origin, text: &str) -> Result<Self, Refusal> {
        let mut given = Given::new(text)?;
        let improved = origin == Origin::ImprovedDiffusion;
        let foreign: &[&str] = if improved { &GUIDED_ALONE } else { &IMPROVED_ALONE };
        if let Some(name) = foreign.iter().find(|name| given.left.contains_key(**name)) {
            let other = if improved { "guided-diffusion" } else { "improved-diffusion" };
            return Err(format!("{name} is a flag of {other}: expected --from {other}, or no such flag"));
        }
        for (name, is_one, expected) in WITHOUT_EFFECT {
            if let Some(text) = given.left.remove(name).filter(|text| !is_one(text)) {
                return Err(format!("{name} = {text}: expected {expected}"));
            }
        }
        let of_weights =
            OF_WEIGHTS.iter().filter_map(|name| given.left.remove_entry(*name)).collect::<BTreeMap<_, _>>();
        let num_heads = given.count("num_heads", 4)?;
        let upsample = given.optional("num_heads_upsample")?;
        if let Some(heads) = upsample.filter(|&heads| heads != num_heads) {
            return Err(format!(
                "num_heads_upsample = {heads}: expected that of num_heads, {num_heads}: [model] has one number"
            ));
        }
        let cosine = given.take(
            "noise_schedule",
            "linear".to_owned(),
            |text| ["linear", "cosine"].contains(&text).then(|| text.to_owned()),
            "linear or cosine",
        )? == "cosine";
        let flags = Self {
            image_size: given.count("image_size", 64)?,
            num_heads,
            num_head_channels: given.optional("num_head_channels")?,
            dropout: given.take("dropout", 0.0, |text| text.parse().ok(), "a share")?,
            use_kl: given.yes("use_kl", false)?,
            use_new_attention_order: !improved && given.yes("use_new_attention_order", false)?,
            diffusion_steps: given.count("diffusion_steps", 1000)?,
            schedule: if cosine { BetaSchedule::SquaredcosCapV2 } else { BetaSchedule::Linear },
            sigma_small: improved && given.yes("sigma_small", false)?,
            predict_xstart: given.yes("predict_xstart", false)?,
            rescale_timesteps: given.yes("rescale_timesteps", improved)?,
            origin,
            of_weights,
            assumed: given.assumed,
        };
        match given.left.into_keys().next() {
            Some(name) => Err(format!("--{name}: expected flags of the model and of the diffusion alone")),
            None => Ok(flags),
        }
    }

    /// The flags that the file cannot say and that were not given, in a sentence.
    pub(super) fn assumed(&self) -> Option<String> {
        (!self.assumed.is_empty()).then(|| self.assumed.join(", "))
    }

    /// What t is multiplied by.
    pub(super) fn timestep_scale(&self) -> f64 {
        if self.rescale_timesteps { SCALED_TO / self.diffusion_steps as f64 } else { 1.0 }
    }

    /// The process.
    pub(super) fn diffusion(&self, learns_variance: bool) -> DiffusionConfig {
        // The cosine has no ends.
        let linear = self.schedule == BetaSchedule::Linear;
        let scale = if linear { 1000.0 / self.diffusion_steps as f64 } else { 1.0 };
        DiffusionConfig {
            num_train_timesteps: self.diffusion_steps,
            beta_schedule: self.schedule,
            beta_start: LINEAR.0 * scale,
            beta_end: LINEAR.1 * scale,
            prediction_type: if self.predict_xstart { PredictionType::Sample } else { PredictionType::Epsilon },
            variance_type: match (learns_variance, self.sigma_small) {
                (true, _) => VarianceType::LearnedRange,
                (false, true) => VarianceType::FixedSmall,
                (false, false) => VarianceType::FixedLarge,
            },
            ..DiffusionConfig::default()
        }
    }

    /// Refuses a given flag that says something else than the weights.
    pub(super) fn compare(&self, name: &str, of_weights: impl std::fmt::Display) -> Result<(), Refusal> {
        let found = of_weights.to_string();
        match self.of_weights.get(name) {
            Some(given) if truth(given).map_or(*given != found, |given| truth(&found) != Some(given)) => {
                Err(format!("its weights have {name} = {found}, expected {given}, as the flags say"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(origin: Origin, text: &str) -> Result<Flags, Refusal> {
        Flags::parse(origin, text)
    }

    #[test]
    fn the_flags_of_their_readme_are_understood() {
        let flags = "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True --diffusion_steps 4000 \
                     --noise_schedule=cosine --use_kl False";
        let flags = parse(Origin::ImprovedDiffusion, flags).unwrap();
        assert_eq!((flags.image_size, flags.num_heads, flags.diffusion_steps), (64, 4, 4000));
        assert_eq!(flags.timestep_scale(), 0.25);
        let diffusion = flags.diffusion(true);
        assert_eq!(diffusion.beta_schedule, BetaSchedule::SquaredcosCapV2);
        assert_eq!(diffusion.variance_type, VarianceType::LearnedRange);
        assert_eq!(
            flags.assumed().unwrap(),
            "num_heads = 4, dropout = 0, sigma_small = false, predict_xstart = false, rescale_timesteps = true"
        );
    }

    #[test]
    fn what_is_left_out_is_as_in_the_scripts_of_each() {
        let improved = parse(Origin::ImprovedDiffusion, "--diffusion_steps 500").unwrap();
        let guided = parse(Origin::GuidedDiffusion, "--diffusion_steps 500 --num_head_channels 64").unwrap();
        assert_eq!((improved.timestep_scale(), guided.timestep_scale()), (2.0, 1.0));
        assert_eq!((improved.num_head_channels, guided.num_head_channels), (None, Some(64)));
        let diffusion = improved.diffusion(false);
        assert_eq!((diffusion.beta_start, diffusion.beta_end), (2e-4, 0.04));
        assert_eq!(diffusion.variance_type, VarianceType::FixedLarge);
    }

    #[test]
    fn flags_without_effect_may_have_any_of_their_values() {
        let text = "--attention_resolutions 32,16,8 --timestep_respacing ddim25 --use_fp16 True --use_checkpoint=False";
        parse(Origin::GuidedDiffusion, text).unwrap();
        parse(Origin::ImprovedDiffusion, "--timestep_respacing 10,15,20 --rescale_learned_sigmas no").unwrap();
        parse(Origin::ImprovedDiffusion, "--timestep_respacing=").unwrap();
    }

    #[test]
    fn a_flag_that_is_none_or_cannot_be_expressed_is_named() {
        for (origin, text, want) in [
            (Origin::ImprovedDiffusion, "--image_size", "`--image_size`: expected pairs of --NAME VALUE"),
            (Origin::ImprovedDiffusion, "image_size 64", "`image_size 64`: expected pairs of --NAME VALUE"),
            (Origin::ImprovedDiffusion, "--num_head_channels 64", "num_head_channels is a flag of guided-diffusion"),
            (Origin::GuidedDiffusion, "--sigma_small True", "sigma_small is a flag of improved-diffusion"),
            (
                Origin::GuidedDiffusion,
                "--num_heads_upsample 2",
                "num_heads_upsample = 2: expected that of num_heads, 4",
            ),
            (Origin::GuidedDiffusion, "--noise_schedule sqrt", "noise_schedule = sqrt: expected linear or cosine"),
            (Origin::GuidedDiffusion, "--use_kl maybe", "use_kl = maybe: expected True or False"),
            (Origin::GuidedDiffusion, "--lr 1e-4", "--lr: expected flags of the model and of the diffusion alone"),
            (
                Origin::GuidedDiffusion,
                "--attention_resolutions nonsense",
                "attention_resolutions = nonsense: expected whole numbers above 0 with commas",
            ),
            (Origin::GuidedDiffusion, "--attention_resolutions 16,,8", "attention_resolutions = 16,,8"),
            (Origin::GuidedDiffusion, "--use_fp16 maybe", "use_fp16 = maybe: expected True or False"),
            (
                Origin::ImprovedDiffusion,
                "--timestep_respacing ddim10,20",
                "timestep_respacing = ddim10,20: expected numbers",
            ),
            (Origin::ImprovedDiffusion, "--timestep_respacing often", "timestep_respacing = often: expected numbers"),
            (Origin::GuidedDiffusion, "--use_kl 1 --use_kl 0", "--use_kl is there twice"),
        ] {
            let error = parse(origin, text).unwrap_err();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }
}
