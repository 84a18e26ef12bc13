//! The text of every refusal, as a user sees it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use crate::config::error::shown;
use crate::config::{Resolved, TrainPlan};

/// The plan's error for `settings`, added to a valid config.
fn refusal(settings: &[&str]) -> String {
    let settings: Vec<_> = settings.iter().map(|setting| setting.parse().unwrap()).collect();
    let text = "[data]\nsource = \"builtin:fashion10k\"\n";
    let resolved = Resolved::from_layers(Path::new("configs/my.toml"), text, [], &settings).unwrap();
    let error = TrainPlan::new(&resolved).unwrap_err();
    shown(&error)
}

#[track_caller]
fn is_refused(settings: &[&str], message: &str, help: &str) {
    assert_eq!(refusal(settings), format!("error: command line: {message}\n  help: {help}"));
}

#[test]
fn the_place_is_the_line_of_the_file_or_the_file() {
    let refusal = |text: &str| {
        let resolved = Resolved::from_layers(Path::new("configs/my.toml"), text, [], &[]).unwrap();
        shown(&TrainPlan::new(&resolved).unwrap_err())
    };
    assert_eq!(
        refusal("[model]\nblock_out_channels = [80, 160, 160]\nnorm_num_groups = 32\n[data]\nsource = \"x\"\n"),
        "error: configs/my.toml:3: model.norm_num_groups = 32 does not divide model.block_out_channels[0] = 80\n  \
         help: use a divisor of 80 (40, 20, 16), or widen the level to 96"
    );
    assert_eq!(
        refusal("[model]\nblock_out_channels = [80, 160, 160]\n[data]\nsource = \"x\"\n"),
        "error: configs/my.toml: model.norm_num_groups = 32 does not divide model.block_out_channels[0] = 80\n  \
         help: use a divisor of 80 (40, 20, 16), or widen the level to 96"
    );
    assert_eq!(
        refusal("[train]\nsteps = 5\n"),
        "error: configs/my.toml: data.source is not set\n  \
         help: write the path of a folder of images or of a .parquet file, or \"builtin:fashion10k\""
    );
}

#[test]
fn a_device_that_does_not_exist_is_refused() {
    is_refused(
        &["run.device=gpu"],
        "run.device = \"gpu\": expected auto, cpu, cuda or cuda:N",
        "auto takes a GPU if there is one",
    );
}

#[test]
fn impossible_data_settings_are_refused() {
    let image_size = "32 trains fast; 64 and more want a GPU";
    is_refused(&["data.image_size=0"], "data.image_size = 0: expected at least 1", image_size);
    is_refused(&["data.image_size=[32, 0]"], "data.image_size = [32, 0]: expected at least 1", image_size);
    let digit = "is there a digit too many?";
    is_refused(&["data.image_size=[8192, 32]"], "data.image_size = [8192, 32]: expected at most 4096", digit);
    is_refused(&["data.channels=4"], "data.channels = 4: expected 1 (grey) or 3 (RGB)", "use 1 or 3");
    let max_corrupt = "0.01 lets one image in a hundred be skipped";
    is_refused(&["data.max_corrupt=1.5"], "data.max_corrupt = 1.5: expected a share in [0, 1]", max_corrupt);
    is_refused(&["data.prefetch=0"], "data.prefetch = 0: expected at least 1", "4 batches ahead hide an uneven disk");
}

#[test]
fn classes_of_data_and_model_must_agree() {
    is_refused(
        &["data.num_classes=10"],
        "data.num_classes = 10, but model.num_class_embeds is not set",
        "set model.num_class_embeds, or leave data.num_classes out to ignore labels",
    );
    is_refused(
        &["data.num_classes=10", "model.num_class_embeds=12"],
        "model.num_class_embeds = 12: expected data.num_classes = 10",
        "count the classes of the data",
    );
    is_refused(
        &["data.num_classes=10", "model.num_class_embeds=10", "loss.label_dropout=0.1"],
        "model.num_class_embeds = 10: expected data.num_classes = 10 and one more for a hidden label (loss.label_dropout)",
        "count the classes of the data and one more",
    );
    is_refused(
        &["loss.label_dropout=0.1"],
        "loss.label_dropout = 0.1, but model.num_class_embeds is not set",
        "set model.num_class_embeds, or leave loss.label_dropout out",
    );
    is_refused(
        &["model.class_embed_type=timestep"],
        "model.class_embed_type is set, but model.num_class_embeds is not",
        "set model.num_class_embeds too: training must know how many classes there are",
    );
}

#[test]
fn impossible_networks_are_refused() {
    is_refused(
        &["data.image_size=30"],
        "images of 30 x 30 pixels cannot be halved 2 times (model.block_out_channels has 3 levels)",
        "set data.image_size = 32 (a multiple of 4), or use fewer levels",
    );
    is_refused(
        &["data.image_size=[48, 50]"],
        "images of 50 x 48 pixels cannot be halved 2 times (model.block_out_channels has 3 levels)",
        "set data.image_size = [48, 52] (multiples of 4), or use fewer levels",
    );
    is_refused(
        &["model.attention_head_dim=48"],
        "model.attention_head_dim = 48 does not divide model.block_out_channels[1] = 128",
        "use a divisor of 128 (64, 32, 16), or widen the level to 144",
    );
    is_refused(
        &["model.down_block_types=[\"DownBlock2D\"]"],
        "model.down_block_types has 1 entries, but model.block_out_channels has 3",
        "give exactly 3, one for each level",
    );
    is_refused(&["model.layers_per_block=0"], "model.layers_per_block = 0", "use at least 1");
}

#[test]
fn the_shape_of_data_and_model_must_agree() {
    is_refused(
        &["model.sample_size=64"],
        "model.sample_size = 64, but data.image_size = 32",
        "leave model.sample_size out: it follows the rest of the config",
    );
    is_refused(
        &["model.sample_size=64", "data.image_size=[64, 48]"],
        "model.sample_size = 64, but data.image_size = [64, 48]",
        "leave model.sample_size out: it follows the rest of the config",
    );
    is_refused(
        &["model.in_channels=1"],
        "model.in_channels = 1, but data.channels = 3",
        "leave model.in_channels out: it follows the rest of the config",
    );
    is_refused(
        &["model.out_channels=6"],
        "model.out_channels = 6, but data.channels and diffusion.variance_type make 3",
        "leave model.out_channels out: it follows the rest of the config",
    );
}

#[test]
fn impossible_schedules_and_losses_are_refused() {
    is_refused(
        &["diffusion.beta_end=1.0"],
        "diffusion.beta_end = 1: expected a number from diffusion.beta_start (0.0001) to below 1",
        "0.02 is usual with 1000 timesteps",
    );
    is_refused(
        &["loss.kind=hybrid"],
        "loss.kind = hybrid: expected diffusion.variance_type = \"learned_range\" beside it",
        "set diffusion.variance_type = \"learned_range\", or loss.kind = \"simple\"",
    );
}

#[test]
fn impossible_optimizer_settings_are_refused() {
    is_refused(&["train.steps=0"], "train.steps = 0: expected at least 1", "a first try takes some thousands");
    is_refused(&["train.batch_size=0"], "train.batch_size = 0: expected at least 1", "32 to 128 are usual");
    is_refused(
        &["train.batch_size=8", "train.micro_batch=16"],
        "train.micro_batch = 16 is larger than train.batch_size = 8",
        "leave it out, or use a part of the batch",
    );
    is_refused(&["train.lr=0"], "train.lr = 0: expected above 0", "2e-4 is usual");
    is_refused(&["train.eps=-1e-8"], "train.eps = -0.00000001: expected above 0", "1e-8 is usual");
    is_refused(
        &["train.weight_decay=-1"],
        "train.weight_decay = -1: expected 0 or more",
        "0 is usual for diffusion models",
    );
    is_refused(
        &["train.clip_grad_norm=-1"],
        "train.clip_grad_norm = -1: expected 0 or more",
        "1 is usual; 0 turns clipping off",
    );
    is_refused(
        &["train.betas=[0.9, 1.0]"],
        "train.betas = [0.9, 1.0]: expected two numbers in [0, 1)",
        "[0.9, 0.999] is usual",
    );
}

#[test]
fn impossible_averages_are_refused() {
    is_refused(
        &["train.ema_decays=[0.999, 1.0]"],
        "train.ema_decays = [0.999, 1.0]: expected numbers in [0, 1)",
        "[0.9999] is usual",
    );
    is_refused(
        &["train.ema_decays=[0.99, 0.99]"],
        "train.ema_decays = [0.99, 0.99]: expected different numbers",
        "[0.9999] is usual",
    );
}

#[test]
fn more_averages_than_a_gpu_keeps_are_refused() {
    is_refused(
        &["train.ema_decays=[0.1, 0.2, 0.3, 0.4, 0.5]", "run.device=cuda:0"],
        "train.ema_decays has 5 entries: a GPU keeps 4 averages at most",
        "leave some out; samples use the first",
    );
}

#[test]
fn what_this_version_cannot_do_is_refused_before_it_begins() {
    is_refused(
        &["hub.repo=model"],
        if cfg!(feature = "hub") {
            "hub.repo = \"model\": expected owner/name"
        } else {
            "hub.repo = \"model\": this program was built without the feature `hub`"
        },
        if cfg!(feature = "hub") {
            "name a repository of yours on the hub, or leave hub.repo out"
        } else {
            "leave hub.repo out; the run directory keeps everything"
        },
    );
    is_refused(
        &["log.metrics_addr=localhost"],
        "log.metrics_addr = \"localhost\": expected host:port, or a port of this machine alone",
        "\"127.0.0.1:9100\" serves this machine, \"0.0.0.0:9100\" everyone who reaches it",
    );
}

#[test]
fn impossible_reports_are_refused() {
    is_refused(
        &["checkpoint.keep_last=0"],
        "checkpoint.keep_last = 0: expected at least 1",
        "2 or more survive a damaged newest one",
    );
    is_refused(&["sample.num=0"], "sample.num = 0: expected at least 1", "16 fill a grid of 4 x 4");
    is_refused(
        &["sample.steps=2000"],
        "sample.steps = 2000: expected 1 to diffusion.num_train_timesteps (1000)",
        "50 is usual with ddim",
    );
}

#[test]
fn numbers_that_would_only_exhaust_memory_are_refused() {
    let keys = ["data.image_size", "data.prefetch", "model.layers_per_block", "train.batch_size", "sample.num"];
    for key in keys {
        let text = refusal(&[&format!("{key}=1000000000000")]);
        assert!(text.contains(&format!("{key} = 1000000000000: expected at most ")), "{text}");
    }
    is_refused(
        &["model.block_out_channels=[64, 64, 640000000]"],
        "model.block_out_channels = 640000000: expected at most 65536",
        "is there a digit too many?",
    );
}
