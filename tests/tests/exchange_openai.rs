//! Checkpoints of improved-diffusion and guided-diffusion (`tests/fixtures/openai`, made by `scripts/make-openai-fixture.py` with
//! their own code): the same outputs, and refusals by name.
#![allow(clippy::unwrap_used)]

use std::fs;

use ddpm_tests::fixtures::read_safetensors;
use ddpm_tests::{Ddpm, Place, empty_place, repository};

const IMPROVED: &str = "--image_size 8 --num_channels 32 --num_res_blocks 1 --learn_sigma True --diffusion_steps 4000 \
                        --noise_schedule cosine";
const GUIDED: &str = "--image_size 8 --num_head_channels 16 --resblock_updown True --use_new_attention_order True \
                      --class_cond True";

/// A place with the fixture as `model.pt`, and its inputs as `in.safetensors`.
fn place(name: &str) -> Place {
    let place = empty_place();
    for (end, to) in [("pt", "model.pt"), ("safetensors", "in.safetensors")] {
        let bytes = fs::read(repository().join(format!("tests/fixtures/openai/{name}.{end}"))).unwrap();
        place.write(to, bytes);
    }
    place
}

fn import(place: &Place, from: &str, flags: &str) -> Ddpm {
    place.ddpm("import model.pt --to runs/mine --from").arg(from).arg("--flags").arg(flags)
}

/// The largest error of the output of `model`, relative to the largest of what their code computed.
#[track_caller]
fn error(place: &Place, model: &str) -> f32 {
    place.ddpm(&format!("forward {model} --input in.safetensors --to out.safetensors")).succeeds();
    let [found, want] =
        ["out.safetensors", "in.safetensors"].map(|file| read_safetensors(&place.read(file))["output"].1.clone());
    let largest = want.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    assert!(found.len() == want.len() && found.iter().all(|value| value.is_finite()));
    found.iter().zip(&want).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn a_checkpoint_of_improved_diffusion_computes_what_it_did_there() {
    let place = place("improved");
    let imported = import(&place, "improved-diffusion", IMPROVED).succeeds();
    let _ = imported.stderr_has("the file does not say, so it is as in their scripts: num_heads = 4, dropout = 0");
    let config = place.text("runs/mine/config.toml");
    for line in [
        "num_attention_heads = 4",
        "timestep_scale = 0.25",
        "block_out_channels = [32, 64]",
        "resnet_time_scale_shift = \"scale_shift\"",
        "beta_schedule = \"squaredcos_cap_v2\"",
        "variance_type = \"learned_range\"",
        "num_train_timesteps = 4000",
        "kind = \"hybrid\"",
    ] {
        assert!(config.contains(line), "{line} in {config}");
    }
    assert!(error(&place, "runs/mine") < 1e-4, "{}", error(&place, "runs/mine"));
}

#[test]
fn a_checkpoint_of_guided_diffusion_computes_what_it_did_there() {
    let place = place("guided");
    import(&place, "guided-diffusion", GUIDED).succeeds();
    let config = place.text("runs/mine/config.toml");
    for line in ["attention_head_dim = 16", "downsample_type = \"resnet\"", "num_class_embeds = 10", "fixed_large"] {
        assert!(config.contains(line), "{line} in {config}");
    }
    assert!(error(&place, "runs/mine") < 1e-4, "{}", error(&place, "runs/mine"));
}

/// What the file does not say matters: each of these gives another network.
#[test]
fn wrong_flags_are_another_network() {
    let improved = place("improved");
    for (flags, dir) in [("--num_heads 2", "two"), ("--rescale_timesteps False", "unscaled")] {
        let flags = format!("{IMPROVED} {flags}");
        improved.ddpm("import model.pt --from improved-diffusion --to").arg(dir).arg("--flags").arg(flags).succeeds();
        assert!(error(&improved, dir) > 1e-3, "{dir}");
    }
    let guided = place("guided");
    import(&guided, "guided-diffusion", &GUIDED.replace("order True", "order False")).succeeds();
    assert!(error(&guided, "runs/mine") > 1e-3);
}

#[test]
fn what_was_imported_is_trained_on_drawn_and_evaluated() {
    let place = place("improved");
    import(&place, "improved-diffusion", IMPROVED).succeeds();
    let settings = ["data.source=builtin:fashion10k", "train.batch_size=2", "sample.every=0"];
    let train = place.ddpm("train runs/mine/config.toml --max-steps 2");
    settings.iter().fold(train, |train, setting| train.set(setting)).succeeds();
    place.ddpm("sample runs/mine --num 1 --steps 2 --out one.png").succeeds();
    place.ddpm("eval nll runs/mine --data builtin:fashion10k --num 1 --steps 2").succeeds();
}

#[test]
fn what_diffusers_has_no_key_for_is_not_exported_and_the_rest_is() {
    let place = place("improved");
    import(&place, "improved-diffusion", IMPROVED).succeeds();
    let refused = place.ddpm("export runs/mine --to out --samples 0").fails_with(6);
    refused.stderr_has("model.timestep_scale = 0.25, expected 1: diffusers' UNet2DModel has no such key");
    let unscaled = format!("{IMPROVED} --rescale_timesteps False");
    place.ddpm("import model.pt --from improved-diffusion --to two --flags").arg(unscaled).succeeds();
    let refused = place.ddpm("export two --to out --samples 0").fails_with(6);
    refused.stderr_has("model.num_attention_heads = 4, expected attention at levels of one width");
    assert!(!place.exists("out"));
    let guided = self::place("guided");
    import(&guided, "guided-diffusion", GUIDED).succeeds();
    guided.ddpm("export runs/mine --to out --samples 0").succeeds();
    assert!(error(&guided, "out") < 1e-4);
    assert!(!guided.text("out/unet/config.json").contains("timestep_scale"));
}

#[test]
fn flags_that_do_not_fit_the_weights_or_do_not_exist_are_named() {
    let place = place("improved");
    for (from, flags, code, message) in [
        (
            "improved-diffusion",
            "--num_channels 64",
            6,
            "its weights have num_channels = 32, expected 64, as the flags say",
        ),
        ("improved-diffusion", "--learn_sigma False", 6, "its weights have learn_sigma = true, expected False"),
        ("improved-diffusion", "--image_size 9", 6, "images of 9 x 9 pixels cannot be halved"),
        ("improved-diffusion", "--num_heads 5", 6, "model.num_attention_heads = 5 does not divide"),
        (
            "improved-diffusion",
            "--num_heads_upsample 2",
            2,
            "--flags: num_heads_upsample = 2: expected that of num_heads, 4",
        ),
        ("improved-diffusion", "--lr 1e-4", 2, "--flags: --lr: expected flags of the model and of the diffusion alone"),
        ("guided-diffusion", "--sigma_small True", 2, "--flags: sigma_small is a flag of improved-diffusion"),
        ("openai", "", 2, "expected improved-diffusion or guided-diffusion"),
    ] {
        import(&place, from, flags).fails_with(code).stderr_has(message);
        assert!(!place.exists("runs"));
    }
}

#[test]
fn what_is_no_such_file_is_refused_and_nothing_is_run() {
    let place = place("improved");
    let whole = place.read("model.pt");
    place.ddpm("import model.pt --to runs/mine").fails_with(6).stderr_has("not a directory").stderr_has("--from");
    for (bytes, message) in [
        (b"no zip".to_vec(), "no file of PyTorch"),
        (whole[..whole.len() / 2].to_vec(), "no file of PyTorch"),
        (Vec::new(), "no file of PyTorch"),
    ] {
        place.write("model.pt", bytes);
        import(&place, "improved-diffusion", IMPROVED).fails_with(6).stderr_has(message).stderr_has("torch.save");
    }
    place.ddpm("import gone.pt --from improved-diffusion --to runs/mine").fails_with(6).stderr_has("gone.pt");
    // Damage in the part that describes the tensors, which comes first.
    let pickle = (0..4000).filter(|at| at % 7 == 0);
    for at in pickle.take(40) {
        let mut damaged = whole.clone();
        damaged[at * 20] ^= 0x55;
        place.write("model.pt", damaged);
        let ended = import(&place, "improved-diffusion", IMPROVED).run();
        ended.expect(matches!(ended.code, Some(0 | 6)), "an import or a refusal");
        if ended.code == Some(0) {
            fs::remove_dir_all(place.path("runs")).unwrap();
        }
    }
}
