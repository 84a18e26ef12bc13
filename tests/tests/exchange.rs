//! Models to and from diffusers. `tests/fixtures/diffusers` is what diffusers itself wrote and computed
//! (`scripts/make-exchange-fixture.py`); `scripts/check-diffusers` has diffusers load what we write.
#![allow(clippy::unwrap_used)]

use ddpm_tests::diffusers::{
    WEIGHTS, assert_same_files, document, edit_weights, files, fixture_json, forward_error, published,
};
use ddpm_tests::fixtures::read_safetensors;
use ddpm_tests::{Place, trained_run};
use serde_json::{Value, json};

const LEARNED: [&str; 2] = ["loss.kind=\"hybrid\"", "diffusion.variance_type=\"learned_range\""];

fn trained(settings: &[&str]) -> Place {
    let mut all = vec!["train.steps=4", "checkpoint.every=0", "sample.every=0", "train.warmup_steps=0"];
    all.extend(settings);
    trained_run(&all)
}

#[test]
fn an_export_has_the_files_of_diffusers_and_a_card() {
    let run = trained(&[]);
    let export = run.ddpm("export runs/tiny --to out --samples 2").json();
    let names: Vec<String> = files(&run, "out").into_iter().map(|file| file.0).collect();
    let mut expected =
        ["README.md", "ddpm.json", "model_index.json", "samples.png", "scheduler/scheduler_config.json"].to_vec();
    expected.extend([WEIGHTS, "unet/config.json"]);
    expected.sort_unstable();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(export["files"].as_array().unwrap().len(), expected.len());
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for file in ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"] {
        assert_eq!(
            keys(&document(&run, &format!("out/{file}"))),
            keys(&fixture_json(&format!("model/{file}"))),
            "{file}"
        );
        assert!(run.text(&format!("out/{file}")).ends_with("}\n"));
    }
    let unet = document(&run, "out/unet/config.json");
    assert_eq!((&unet["attention_head_dim"], &unet["sample_size"]), (&json!(8), &json!(16)));
    let header = String::from_utf8_lossy(&run.read(&format!("out/{WEIGHTS}"))[8..]).into_owned();
    assert!(header.contains(r#""format":"pt""#));
    let card = run.text("out/README.md");
    for part in [
        "---\nlibrary_name: diffusers\n",
        "| data | builtin:fashion10k |",
        "| steps | 4 |",
        "| images seen | 16 |",
        "| training loss at the end | ",
        "block_out_channels = [16, 16]",
        "DDPMPipeline.from_pretrained",
        "ddpm sample DIR",
        "](samples.png)",
        "## Licence",
    ] {
        assert!(card.contains(part), "{part:?} in {card}");
    }
    assert!(!card.contains("runs/tiny"), "places of this machine: {card}");
}

#[test]
fn export_import_and_export_again_give_identical_bytes() {
    let classes = ["model.num_class_embeds=11", "loss.label_dropout=0.1"];
    let no_average = ["train.ema_decays=[]", "model.attention_head_dim=\"none\""];
    for settings in [&[][..], &LEARNED, &classes, &no_average] {
        let run = trained(settings);
        run.ddpm("export runs/tiny --to a --samples 2").succeeds();
        run.ddpm("import a --to runs/again").succeeds().stdout_has("ddpm train runs/again/config.toml");
        run.ddpm("export runs/again --to b --samples 2").succeeds();
        assert_same_files(&run, "a", "b");
        run.ddpm("export a --to c --samples 2").succeeds();
        assert_same_files(&run, "a", "c");
    }
}

#[test]
fn what_diffusers_wrote_is_exported_as_it_was() {
    let place = published();
    place.ddpm("import theirs --to runs/mine").succeeds();
    place.ddpm("export runs/mine --to a --samples 1").succeeds();
    place.ddpm("import a --to runs/again").succeeds();
    place.ddpm("export runs/again --to b --samples 1").succeeds();
    assert_same_files(&place, "a", "b");
    assert!(place.text("a/README.md").contains("Not known"));
    for file in ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"] {
        let numbers = |value: &Value| {
            value
                .as_object()
                .unwrap()
                .iter()
                .map(|(k, v)| (k.clone(), v.as_f64().map_or(v.to_string(), |v| v.to_string())))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            numbers(&document(&place, &format!("a/{file}"))),
            numbers(&document(&place, &format!("theirs/{file}")))
        );
    }
    assert!(
        read_safetensors(&place.read(&format!("a/{WEIGHTS}")))
            == read_safetensors(&place.read(&format!("theirs/{WEIGHTS}")))
    );
}

#[test]
fn a_folder_an_import_and_old_layouts_compute_what_diffusers_computed() {
    let place = published();
    place.ddpm("import theirs --to runs/mine").succeeds();
    assert!(forward_error(&place, "theirs") < 1e-5);
    assert!(forward_error(&place, "runs/mine") < 1e-5);
    // As the first published models are: everything in one folder, and the attention's layers by their old names.
    edit_weights(&place, |tensors| {
        for (name, ..) in tensors {
            for (new, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")] {
                *name = name.replace(&format!(".{new}."), &format!(".{old}."));
            }
        }
    });
    for (from, to) in [
        ("unet/config.json", "config.json"),
        (WEIGHTS, &WEIGHTS["unet/".len()..]),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
    ] {
        place.write(&format!("flat/{to}"), place.read(&format!("theirs/{from}")));
    }
    assert!(forward_error(&place, "theirs") < 1e-5);
    assert!(forward_error(&place, "flat") < 1e-5);
}

#[test]
fn the_first_loss_of_a_fine_tuning_is_that_of_diffusers() {
    let place = published();
    let expected = fixture_json("expected.json");
    place.ddpm("import theirs --to runs/mine").succeeds().stdout_has("ddpm train runs/mine/config.toml");
    place.ddpm("train runs/mine/config.toml").fails_with(2).stderr_has("data.source is not set");
    let train = |steps: u64| {
        let settings = ["data.source=images", "log.every=1", "sample.every=0", "sample.num=1", "sample.steps=1"];
        let batch = format!("train.batch_size={}", expected["batch_size"]);
        let free = [batch.as_str(), "train.lr=1e-4", "train.ema_decays=[0.5]", "model.dropout=0.0", "data.flip=false"];
        let train = place.ddpm("train runs/mine/config.toml").max_steps(steps);
        settings.iter().chain(&free).fold(train, |train, setting| train.set(setting))
    };
    train(1).succeeds().resumes_at(0);
    let metrics: Value = serde_json::from_str(place.text("runs/mine/metrics.jsonl").lines().next().unwrap()).unwrap();
    let (got, want) = (metrics["loss"].as_f64().unwrap(), expected["loss"].as_f64().unwrap());
    assert!((got / want - 1.0).abs() < 1e-4, "{got}, diffusers {want}");
    // From then on it is a run like any other: its training data is fixed.
    train(2).succeeds().resumes_at(1);
    train(3).set("train.lr=1e-3").fails_with(2).stderr_has("the configuration has changed").stderr_has("train.lr");
    place.ddpm("export runs/mine --to tuned --samples 0").succeeds();
    let card = place.text("tuned/README.md");
    assert!(card.contains("| fine-tuned from | theirs |") && card.contains("| steps | 2 |"), "{card}");
}

#[test]
fn an_import_keeps_its_network_and_its_process() {
    let place = published();
    place.ddpm("import theirs --to runs/mine").succeeds();
    for setting in ["model.norm_num_groups=2", "diffusion.beta_end=0.03"] {
        let train = place.ddpm("train runs/mine/config.toml").set("data.source=images").set(setting);
        train.fails_with(2).stderr_has("the configuration has changed").stderr_has(setting.split('=').next().unwrap());
    }
}

#[test]
fn a_diffusers_folder_is_a_model_as_a_run_is() {
    let run = trained(&[]);
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    let draw = |model: &str, out: &str| {
        run.ddpm(&format!("sample {model} --num 3 --steps 3 --sampler ddpm --out {out}/")).succeeds();
        files(&run, out)
    };
    assert!(draw("runs/tiny", "x") == draw("out", "y"));
    let bits = |model: &str| {
        let nll = format!("eval nll {model} --data builtin:fashion10k --num 2 --steps 4");
        run.ddpm(&nll).json()["bits_per_dim"].clone()
    };
    assert_eq!(bits("runs/tiny"), bits("out"));
    let schedule = |model: &str| run.ddpm(&format!("schedule {model}")).json();
    assert_eq!(schedule("runs/tiny"), schedule("out"));
    run.ddpm("export runs/tiny --to raw --samples 0 --raw").succeeds();
    assert!(run.read(&format!("raw/{WEIGHTS}")) != run.read(&format!("out/{WEIGHTS}")));
    assert!(run.text("raw/README.md").contains("those of the last step"));
}

#[test]
fn epsilon_only_leaves_the_variance_out() {
    let run = trained(&LEARNED);
    run.ddpm("export runs/tiny --to both --samples 0").succeeds();
    run.ddpm("export runs/tiny --to epsilon --samples 0 --epsilon-only").succeeds();
    let variance =
        |folder: &str| document(&run, &format!("{folder}/scheduler/scheduler_config.json"))["variance_type"].clone();
    assert_eq!((variance("both"), variance("epsilon")), (json!("learned_range"), json!("fixed_small")));
    let channels = |folder: &str| document(&run, &format!("{folder}/unet/config.json"))["out_channels"].clone();
    assert_eq!((channels("both"), channels("epsilon")), (json!(2), json!(1)));
    let (both, epsilon) =
        ["both", "epsilon"].map(|folder| read_safetensors(&run.read(&format!("{folder}/{WEIGHTS}")))).into();
    assert_eq!(epsilon["conv_out.weight"].0, [1, 16, 3, 3]);
    for (name, (_, values)) in &epsilon {
        assert!(both[name].1.starts_with(values), "{name}");
    }
    run.ddpm("sample epsilon --num 1 --steps 2").succeeds();
    assert!(run.text("epsilon/README.md").contains("the variance head"));
    run.ddpm("import epsilon --to runs/again").succeeds();
    run.ddpm("export runs/again --to again --samples 0").succeeds();
    assert_same_files(&run, "epsilon", "again");
    run.ddpm("export epsilon --to no --epsilon-only")
        .fails_with(2)
        .stderr_has("fixed_small")
        .stderr_has("leave --epsilon-only");
    assert!(!run.exists("no"));
}

#[test]
fn guidance_survives_an_export() {
    let run = trained(&["model.num_class_embeds=11", "loss.label_dropout=0.1"]);
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    run.ddpm("sample out --num 1 --steps 2 --class 9 --guidance 1").succeeds();
    run.ddpm("sample out --num 1 --steps 2 --class 10").fails_with(2).stderr_has("classes 0 to 9");
}
