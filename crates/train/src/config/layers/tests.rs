#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::error::shown;
use crate::config::types::ImageSize;

fn resolve(text: &str, environment: &[(&str, &str)], settings: &[&str]) -> Result<Resolved, ConfigError> {
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let settings: Vec<Setting> = settings.iter().map(|text| text.parse().unwrap()).collect();
    Resolved::from_layers(Path::new("configs/my.toml"), text, environment, &settings)
}

/// The whole text a user would see.
fn refusal(text: &str, environment: &[(&str, &str)], settings: &[&str]) -> String {
    shown(&resolve(text, environment, settings).unwrap_err())
}

#[test]
fn each_layer_covers_the_one_below_and_is_named_as_origin() {
    let file = "[train]\nlr = 1e-3\nsteps = 10\nbatch_size = 4\n";
    let environment =
        [("DDPM_TRAIN__STEPS", "20"), ("DDPM_TRAIN__BATCH_SIZE", "8"), ("DDPM_CACHE", "x"), ("HOME", "y")];
    let resolved = resolve(file, &environment, &["train.batch_size=16"]).unwrap();
    let train = &resolved.config.train;
    assert_eq!((train.lr, train.steps, train.batch_size), (1e-3, 20, 16));
    assert_eq!(resolved.origin("train.lr").to_string(), "configs/my.toml:2");
    assert_eq!(resolved.origin("train.steps").to_string(), "DDPM_TRAIN__STEPS");
    assert_eq!(resolved.origin("train.batch_size").to_string(), "command line");
    assert_eq!(resolved.origin("train.eps").to_string(), "default");
}

#[test]
fn values_outside_a_file_need_no_quotes() {
    let settings =
        ["train.lr_schedule=cosine", "run.name=17", "train.betas=[0.8, 0.9]", "data.crop=none", "data.source=a=b"];
    let config = resolve("", &[], &settings).unwrap().config;
    assert_eq!(config.train.lr_schedule, super::super::types::LrSchedule::Cosine);
    assert_eq!((config.run.name.as_str(), config.data.source.as_str()), ("17", "a=b"));
    assert_eq!(config.train.betas, [0.8, 0.9]);
}

#[test]
fn none_unsets_an_optional_key() {
    let file = "[model]\nnum_class_embeds = 10\n";
    let resolved = resolve(file, &[], &["model.num_class_embeds=none"]).unwrap();
    assert_eq!(resolved.config.model.num_class_embeds, None);
}

#[test]
fn shape_classes_and_name_follow_from_the_rest() {
    let file = "[data]\nimage_size = 64\nchannels = 1\n[model]\nnum_class_embeds = 10\n";
    let config = resolve(file, &[], &[]).unwrap().config;
    assert_eq!(
        (config.model.sample_size, config.model.in_channels, config.model.out_channels),
        (Some(ImageSize::square(64)), Some(1), Some(1))
    );
    assert_eq!(config.data.num_classes, 10);
    assert_eq!(resolve(file, &[], &["loss.label_dropout=0.1"]).unwrap().config.data.num_classes, 9);
    assert_eq!((config.run.name.as_str(), config.run.dir.as_str()), ("my", "runs/my"));
}

#[test]
fn every_key_is_listed_with_its_origin() {
    let entries = resolve("[train]\nlr = 1e-3\n", &[], &[]).unwrap().entries();
    let lr = entries.iter().find(|entry| entry.key == "train.lr").unwrap();
    assert_eq!((&lr.value, lr.origin.kind()), (&json!(1e-3), "file"));
    assert!(entries.iter().any(|entry| entry.key == "model.num_class_embeds" && entry.value.is_null()));
}

#[test]
fn the_network_has_both_sides_of_the_images_and_a_square_is_one_number() {
    let of = |size: &str| resolve(&format!("[data]\nimage_size = {size}\n"), &[], &[]).unwrap();
    let wide = of("[48, 80]");
    assert_eq!(wide.config.model.sample_size, Some(ImageSize { height: 48, width: 80 }));
    assert!(wide.to_toml().contains("image_size = [48, 80]\n"), "{}", wide.to_toml());
    assert_eq!(of("[64, 64]").to_toml(), of("64").to_toml());
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    assert_eq!(
        refusal("[train]\nbatchsize = 3\n", &[], &[]),
        "error: configs/my.toml:2: unknown key `train.batchsize`\n  help: did you mean `train.batch_size`?"
    );
    assert_eq!(
        refusal("[trian]\n", &[], &[]),
        "error: configs/my.toml:1: unknown key `trian`\n  help: did you mean the section [train]?"
    );
    assert_eq!(
        refusal("[train]\nseed = 3\n", &[], &[]),
        "error: configs/my.toml:2: unknown key `train.seed`\n  help: did you mean `run.seed`?"
    );
    assert_eq!(
        refusal("", &[("DDPM_TRAIN__LRR", "1")], &[]),
        "error: DDPM_TRAIN__LRR: unknown key `train.lrr`\n  help: did you mean `train.lr`?"
    );
    assert_eq!(refusal("", &[], &["lr=1"]), "error: command line: unknown key `lr`\n  help: did you mean `train.lr`?");
    assert_eq!(
        refusal("", &[], &["train.zzzzzzzz=1"]),
        "error: command line: unknown key `train.zzzzzzzz`\n  help: keys of [train]: steps, batch_size, micro_batch, lr, betas, eps, weight_decay, lr_schedule, warmup_steps, clip_grad_norm, max_bad_steps, spike_factor, max_rollbacks, precision, allow_tf32, gradient_checkpointing, deterministic, ema_decays, ema_warmup"
    );
}

#[test]
fn a_value_of_another_type_is_refused_with_what_the_key_takes() {
    assert_eq!(
        refusal("[train]\n\nsteps = 1.5\n", &[], &[]),
        "error: configs/my.toml:3: train.steps = 1.5: expected a whole number, 0 or more"
    );
    assert_eq!(refusal("", &[], &["train.lr=fast"]), "error: command line: train.lr = \"fast\": expected a number");
    assert_eq!(
        refusal("[train]\nlr_schedule = \"cosin\"\n", &[], &[]),
        "error: configs/my.toml:2: train.lr_schedule = \"cosin\": expected one of \"constant\", \"cosine\", \"linear\"\n  help: did you mean \"cosine\"?"
    );
    assert_eq!(
        refusal("[train]\nlr_schedule = 3\n", &[], &[]),
        "error: configs/my.toml:2: train.lr_schedule = 3: expected one of \"constant\", \"cosine\", \"linear\""
    );
    assert_eq!(
        refusal("[train]\nbetas = [0.9]\n", &[], &[]),
        "error: configs/my.toml:2: train.betas = [0.9]: expected a list of 2"
    );
    assert_eq!(
        refusal("[data]\nflip = \"yes\"\n", &[], &[]),
        "error: configs/my.toml:2: data.flip = \"yes\": expected true or false"
    );
    let size = "expected a whole number, or [height, width]";
    for (given, found) in [("48x80", "\"48x80\""), ("[48]", "[48]"), ("[48, 80, 3]", "[48, 80, 3]"), ("-1", "-1")] {
        let message = refusal("", &[], &[&format!("data.image_size={given}")]);
        assert_eq!(message, format!("error: command line: data.image_size = {found}: {size}"));
    }
    assert_eq!(
        refusal("[train]\nsteps = -3\n", &[], &[]),
        "error: configs/my.toml:2: train.steps = -3: expected a whole number, 0 or more"
    );
}

#[test]
fn what_only_diffusers_has_is_refused_by_name() {
    assert_eq!(
        refusal("[model]\ndown_block_types = [\"DownBlock2D\", \"SkipDownBlock2D\"]\n", &[], &[]),
        "error: configs/my.toml:2: model.down_block_types = [\"DownBlock2D\", \"SkipDownBlock2D\"]: expected names that exist; \"SkipDownBlock2D\" is not one of \"DownBlock2D\", \"AttnDownBlock2D\", \"ResnetDownsampleBlock2D\"\n  help: SkipDownBlock2D: the blocks of score-based models, which carry the image along and filter it, are not supported"
    );
    assert_eq!(
        refusal("[model]\ntime_embedding_type = \"fourier\"\n", &[], &[]),
        "error: configs/my.toml:2: model.time_embedding_type = \"fourier\": expected \"positional\"\n  help: fourier: random Fourier features of the noise level belong to score-based models and are not supported"
    );
    assert_eq!(
        refusal("", &[], &["model.class_embed_type=identity"]),
        "error: command line: model.class_embed_type = \"identity\": expected \"timestep\"\n  help: identity: it takes classes as ready-made embeddings; labels here are numbers, so it is not supported"
    );
}

#[test]
fn a_file_much_longer_than_a_config_is_refused_unread() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let refused = shown(&Resolved::load_file(file.path()).unwrap_err());
    assert!(refused.contains("longer than 1048576 bytes"), "{refused}");
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    let text = refusal("[train]\nlr = = 3\n", &[], &[]);
    assert!(text.starts_with("error: configs/my.toml:2: this is not TOML: "), "{text}");
}
