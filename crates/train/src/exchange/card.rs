//! Writes README.md of an exported model, the hub's model card, from facts alone.
//!
//! The front matter is the hub's (<https://huggingface.co/docs/hub/model-cards>): it makes the page searchable and names the
//! library that loads the model.

use std::fmt::Write as _;
use std::path::Path;

use ddpm_data::ImageSize;
use ddpm_hub::SCHEME;
use ddpm_model::diffusion::{BetaSchedule, DiffusionConfig};
use ddpm_model::unet::UNetConfig;

use super::{Facts, Measured, SAMPLES_FILE};
use crate::config::{Resolved, TrainConfig};

/// How the samples on the card are drawn.
const SAMPLE_STEPS: usize = 50;
/// Classes on the card; more of them are counted.
const NAMED_CLASSES: usize = 100;

/// The contents of the card.
pub(super) struct Card<'a> {
    pub(super) facts: Option<&'a Facts>,
    /// The network and the process in the folder.
    pub(super) shape: (&'a UNetConfig, &'a DiffusionConfig),
    pub(super) parameters: usize,
    /// Images in `samples.png`.
    pub(super) samples: usize,
    /// Its name on the hub.
    pub(super) repo: Option<&'a str>,
    /// Its licence, as the hub names it.
    pub(super) licence: Option<&'a str>,
    /// Its measured quality.
    pub(super) measured: Option<&'a Measured>,
}

const USE: &str = r#"## Use

From Python, with [diffusers](https://github.com/huggingface/diffusers):

```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("{DIR}"){WHAT}
pipeline(batch_size=4, num_inference_steps=ALL).images[0].save("sample.png")
```
"#;

const USE_DDIM: &str = r#"
In fewer steps:

```python
from diffusers import DDIMPipeline, DDIMScheduler

pipeline = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
pipeline(batch_size=4, num_inference_steps=FEW).images[0].save("sample.png")
```
"#;

const USE_LEARNED: &str = r#"
It learned its variance, so it has twice the output channels; samplers that know only epsilon (`DDIMScheduler`) need the
folder of `ddpm export --epsilon-only`.
"#;

const USE_CLASSES: &str = r#"From Python, with [diffusers](https://github.com/huggingface/diffusers); its pipelines pass no labels, so:

```python
from diffusers import DDPMPipeline
import torch

pipeline = DDPMPipeline.from_pretrained("{DIR}"){WHAT}
unet, scheduler = pipeline.unet, pipeline.scheduler
scheduler.set_timesteps(ALL)
x = torch.randn(4, unet.config.in_channels, {SIDES})
labels = torch.zeros(4, dtype=torch.long)
for t in scheduler.timesteps:
    with torch.no_grad():
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
```
"#;

const USE_DDPM: &str = r#"
With ddpm, without Python:

```sh
ddpm sample {MODEL} --num 16 --out samples.png
ddpm import {MODEL} --to runs/mine    # and train on: a fine-tuning
```
"#;

/// The text of the card.
pub(super) fn card(card: &Card<'_>) -> String {
    let (unet, diffusion) = card.shape;
    let size = unet.sample_size.unwrap_or_default().width_x_height();
    let channels = unet.in_channels.unwrap_or_default();
    let kind = if unet.num_class_embeds.is_some() { "class-conditional" } else { "unconditional" };
    let name = card.facts.map(|facts| facts.config.run.name.as_str()).filter(|name| !name.is_empty());
    let mut text = front_matter(unet.num_class_embeds.is_some(), card.licence);
    let _ = write!(
        text,
        "\n# {}\n\nA diffusion model (DDPM) of {size} images with {channels} channel{}, {kind}: {} parameters.\n",
        name.map_or("A diffusion model".to_owned(), escaped),
        if channels == 1 { "" } else { "s" },
        card.parameters
    );
    if card.samples > 0 {
        let _ = write!(
            text,
            "\n![{} samples]({SAMPLES_FILE})\n\n{} samples of seed 0, DDIM, {} steps; not selected.\n",
            card.samples,
            card.samples,
            sample_steps(diffusion.num_train_timesteps)
        );
    }
    text += "\n";
    text += &usage(unet, diffusion, card.repo);
    text += &training(card.facts);
    text += &quality(card.measured);
    text += "\n## Licence\n\n";
    text += &card.licence.map_or_else(
        || {
            "Not stated: whoever publishes this model has to choose one, with the data's own licence in mind.\n"
                .to_owned()
        },
        |licence| format!("{}\n", escaped(licence)),
    );
    text += card.facts.map_or("", |facts| credit(&facts.config.data.source));
    text
}

/// Steps of the samples of a model with so many timesteps.
pub(super) fn sample_steps(timesteps: usize) -> usize {
    SAMPLE_STEPS.min(timesteps)
}

/// The origin of the shipped images (assets/README.md).
fn credit(source: &str) -> &'static str {
    match source {
        "builtin:fashion10k" => "The images are Fashion-MNIST by Zalando Research, MIT.\n",
        path if path.ends_with("emoji32.parquet") => {
            "The images are Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0: credit them.\n"
        }
        _ => "",
    }
}

fn front_matter(has_classes: bool, licence: Option<&str>) -> String {
    let task = if has_classes { "" } else { "pipeline_tag: unconditional-image-generation\n" };
    let licence = licence.map_or_else(String::new, |licence| format!("license: {licence}\n"));
    format!("---\nlibrary_name: diffusers\n{licence}{task}tags:\n- ddpm\n- diffusion\n- image-generation\n---\n")
}

fn usage(unet: &UNetConfig, diffusion: &DiffusionConfig, repo: Option<&str>) -> String {
    let learned = unet.out_channels != unet.in_channels;
    let mut text = if unet.num_class_embeds.is_some() { format!("## Use\n\n{USE_CLASSES}") } else { USE.to_owned() };
    // diffusers' DDIMScheduler has no sigmoid schedule.
    let ddim_knows = diffusion.beta_schedule != BetaSchedule::Sigmoid;
    match (unet.num_class_embeds, learned) {
        (None, true) => text += USE_LEARNED,
        (None, false) if ddim_knows => text += USE_DDIM,
        _ => {}
    }
    let timesteps = diffusion.num_train_timesteps;
    text = text.replace("ALL", &timesteps.to_string()).replace("FEW", &sample_steps(timesteps).to_string());
    text += USE_DDPM;
    let square = unet.sample_size.is_none_or(ImageSize::is_square);
    let sides = if square { "unet.config.sample_size, unet.config.sample_size" } else { "*unet.config.sample_size" };
    text = text.replace("{SIDES}", sides);
    let words = match repo {
        Some(repo) => [("{DIR}", repo), ("{MODEL}", &format!("{SCHEME}{repo}")), ("{WHAT}", "")],
        None => [("{DIR}", "DIR"), ("{MODEL}", "DIR"), ("{WHAT}", "  # this folder, or its name on the hub")],
    };
    text = words.iter().fold(text, |text, (word, value)| text.replace(word, value));
    let _ = write!(
        text,
        "\nThe noise schedule is {}, over {} timesteps; the network predicts {}; the variance is {}.\n",
        plain(&diffusion.beta_schedule),
        diffusion.num_train_timesteps,
        plain(&diffusion.prediction_type),
        diffusion.variance_type.name()
    );
    text
}

/// Text from someone else's file, made safe: on one line, and without Markdown or HTML.
fn escaped(text: &str) -> String {
    let mut words = String::new();
    for letter in text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        match letter {
            '<' => words += "&lt;",
            '>' => words += "&gt;",
            '[' | ']' | '|' | '`' | '*' | '_' | '#' | '\\' => words.extend(['\\', letter]),
            other => words.push(other),
        }
    }
    words
}

fn plain(value: &impl serde::Serialize) -> String {
    serde_json::json!(value).as_str().unwrap_or_default().to_owned()
}

fn training(facts: Option<&Facts>) -> String {
    let Some(facts) = facts else {
        return "\n## Training\n\nNot known: the weights came without a record of their training.\n".to_owned();
    };
    let TrainConfig { data, train, loss, .. } = &facts.config;
    let mut text = String::from("\n## Training\n\n| | |\n| --- | --- |\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    let split = if data.split.is_empty() { String::new() } else { format!(", split {}", escaped(&data.split)) };
    row("data", format!("{}{split}", escaped(ddpm_data::without_query(&data.source))));
    if let Some(classes) = &facts.classes {
        row("classes", listed(classes));
    }
    row("steps", facts.step.to_string());
    row("images seen", facts.images.to_string());
    row("batch size", train.batch_size.to_string());
    row("loss", plain(&loss.kind));
    if let Some(loss) = facts.loss {
        row("training loss at the end", format!("{loss:.5}"));
    }
    row("weights", escaped(&facts.weights));
    if facts.epsilon_only {
        row("left out", "the variance head: the model had 2C output channels, of which C remain".to_owned());
    }
    if let Some(source) = &facts.fine_tuned_from {
        row("fine-tuned from", escaped(source));
    }
    row("trained with", escaped(&format!("ddpm {}", facts.program_version)));
    let config = Resolved::from_config(Path::new("config.toml"), facts.config.clone()).to_toml();
    let _ = write!(
        text,
        "\n<details><summary>The exact configuration</summary>\n\n{}\n</details>\n",
        fenced("toml", &config)
    );
    if let Some(command) = &facts.command {
        let _ = write!(text, "\nThe run began with\n\n{}", fenced("sh", command));
    }
    text
}

/// The names of classes with their numbers, which is what a pipeline takes.
fn listed(classes: &[String]) -> String {
    let named =
        classes.iter().take(NAMED_CLASSES).enumerate().map(|(label, name)| format!("{label}: {}", escaped(name)));
    let more = match classes.len().saturating_sub(NAMED_CLASSES) {
        0 => String::new(),
        more => format!("; and {more} more in ddpm.json"),
    };
    named.collect::<Vec<_>>().join("; ") + &more
}

fn quality(measured: Option<&Measured>) -> String {
    let Some(Measured { bits_per_dim, standard_error, images, steps, data }) = measured else {
        return "\nNo measure of quality was computed beside the training loss; `ddpm eval nll` gives bits per dimension.\n"
            .to_owned();
    };
    let error = standard_error.map_or_else(String::new, |error| format!(" +- {error:.4} (standard error)"));
    format!(
        "\n## Quality\n\n{bits_per_dim:.4}{error} bits per dimension, an upper bound: {images} of the images of {}, {steps} \
         timesteps.\n",
        escaped(data)
    )
}

/// A block of code, in a fence longer than any run of backticks in it, so that its text cannot end the block.
fn fenced(language: &str, code: &str) -> String {
    let code = code.trim_end_matches('\n');
    let fence = "`".repeat(3.max(1 + code.split(|letter| letter != '`').map(str::len).max().unwrap_or(0)));
    format!("{fence}{language}\n{code}\n{fence}\n")
}
