//! Every command: its JSON document, its text, and the files it leaves.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use ddpm_tests::fixtures::{Tensor, read_safetensors, safetensors_file};
use ddpm_tests::{Place, assert_fields, ddpm_binary, empty_place, fresh_run, trained_run};
use serde_json::Value;

fn trained() -> Place {
    trained_run(&["train.steps=2", "checkpoint.every=0"])
}

/// Width and height of a PNG, from its header.
fn png_size(bytes: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert!(bytes.starts_with(b"\x89PNG"));
    (number(16), number(20))
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let place = empty_place();
    let commands = [
        "train",
        "runs",
        "plot",
        "watch",
        "compare",
        "fork",
        "sample",
        "eval nll",
        "data inspect",
        "data pack",
        "config init",
        "config show",
        "config check",
        "doctor",
        "bench",
        "schedule",
        "forward",
    ];
    let overview = place.ddpm("--help").succeeds();
    for command in commands {
        place
            .ddpm(&format!("{command} --help"))
            .succeeds()
            .stdout_has("Usage: ddpm ")
            .stdout_has("Example")
            .stdout_has("--json");
        overview.clone().stdout_has(command.split(' ').next().unwrap());
    }
    place.ddpm("--version").succeeds().stdout_has("ddpm 0.");
}

#[test]
fn train_says_where_everything_is_and_keeps_progress_off_stdout() {
    let run = fresh_run(&["train.steps=6"]);
    let document = run.train().json();
    assert_fields(&document, "run_dir, step, images, seconds, status, checkpoint, samples");
    for key in ["run_dir", "checkpoint", "samples"] {
        assert!(run.exists(document[key].as_str().unwrap()), "{key} in {document}");
    }
    assert_eq!(document["images"], 24);
    let finished = run.train().set("train.steps=9").succeeds().stderr_has("step 9/9  loss ").stdout_has("done: step 9");
    let finished = finished.stdout_has("ddpm sample runs/tiny").stdout_has("metrics.jsonl");
    finished.expect(!finished.stdout.contains("loss"), "no progress on stdout");
    run.train().set("train.steps=12").arg("-q").succeeds().stderr_lacks("step 12");
}

#[test]
fn runs_are_listed_with_what_became_of_them() {
    let run = trained_run(&["train.steps=4"]);
    run.train().arg("--run-dir=runs/failed").set("train.lr=1e30").set("train.max_bad_steps=0").fails_with(5);
    std::fs::create_dir(run.path("runs/empty")).unwrap();
    run.train().arg("--run-dir=runs/part").arg("--max-steps=2").succeeds();
    let listed = run.ddpm("runs").json();
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|line| (&line["name"], &line["state"])).collect();
    assert_eq!(
        states,
        [(&"failed".into(), &"failed".into()), (&"part".into(), &"stopped".into()), (&"tiny".into(), &"done".into())]
    );
    assert!(listed[0]["error"].as_str().unwrap().contains("diverged"), "{listed}");
    assert_eq!(&listed[0]["step"], 0, "nothing of a run that diverged at once was saved");
    let steps = |line: usize| (&listed[line]["step"], &listed[line]["steps"]);
    assert_eq!((steps(1), steps(2)), ((&2.into(), &4.into()), (&4.into(), &4.into())));
    run.ddpm("runs").succeeds().stdout_has("tiny    done");
    run.ddpm("runs nowhere").fails_with(2).stderr_has("nowhere: no runs can be listed here");
}

#[test]
fn a_name_with_a_line_break_breaks_no_line() {
    let run = fresh_run(&["train.steps=2", "checkpoint.every=0", "sample.every=0"]);
    let trained = run.train().arg("--run-dir").arg("runs/two\nlines").succeeds();
    let _ = trained.stdout_has("runs/two\\nlines/metrics.jsonl");
    assert!(!first_words(&run.ddpm("runs runs").succeeds().stdout).contains(&"lines"));
    let sampled =
        run.ddpm("sample").arg("runs/two\nlines").arg("--out").arg("a\nb.png").arg("--steps").arg("2").succeeds();
    let _ = sampled.stdout_has("\"a\\nb.png\"");
}

/// The first word of each line.
fn first_words(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn a_run_directory_holds_what_the_interface_promises() {
    let run = trained_run(&["train.steps=4", "log.every=2"]);
    let files = ["LOCK", "config.toml", "log.jsonl", "metrics.jsonl", "run.json", "status.json"];
    let names = run.names("runs/tiny");
    let is_directory = |name: &&String| ["checkpoints", "events", "samples"].contains(&name.as_str());
    assert_eq!(names.iter().filter(|name| !is_directory(name)).collect::<Vec<_>>(), files);
    assert_eq!(names.len(), files.len() + 3);
    let record: Value = serde_json::from_slice(&run.read("runs/tiny/run.json")).unwrap();
    assert_fields(&record, "id, created, restarts, host, device, command");
    let line: Value = serde_json::from_str(&run.metrics()[1]).unwrap();
    assert_fields(&line, "step, images, loss, loss_quartile, lr, grad_norm");
    let checkpoint = run.names("runs/tiny/checkpoints/step-000000004");
    let files =
        ["MANIFEST.json", "ema-0.9.safetensors", "ema-0.99.safetensors", "model.safetensors", "optimizer.safetensors"];
    assert!(files.iter().all(|file| checkpoint.contains(&(*file).to_owned())), "{checkpoint:?}");
}

#[test]
fn every_zero_means_never_and_the_end_is_saved_all_the_same() {
    let run =
        trained_run(&["train.steps=5", "checkpoint.every=0", "sample.every=0", "log.every=0", "log.tensorboard=false"]);
    assert_eq!(run.checkpoints(), ["step-000000005"]);
    assert!(run.metrics().is_empty() && run.names("runs/tiny/samples").is_empty(), "{:?}", run.metrics());
    assert!(run.names("runs/tiny/events").is_empty());
    run.ddpm("sample runs/tiny --num 1 --steps 1").succeeds();
}

#[test]
fn a_dry_run_does_everything_once_and_leaves_nothing() {
    let run = fresh_run(&[]);
    assert_fields(&run.train().arg("--dry-run").json(), "status, step, seconds");
    run.train().arg("--dry-run").succeeds().stdout_has("all well");
    assert_eq!(run.names(""), ["tiny.toml"]);
}

#[test]
fn sample_draws_a_grid_or_single_images() {
    let run = trained();
    let document = run.ddpm("sample runs/tiny --num 5 --steps 2 --out grid.png").json();
    assert_fields(&document, "files, seconds, images_per_s, sampler, steps, seed");
    assert_eq!(document["files"], serde_json::json!(["grid.png"]));
    // 5 images of 16 pixels, four times as large, in 3 columns and 2 rows with margins of 2.
    assert_eq!(png_size(&run.read("grid.png")), (3 * (64 + 2) + 2, 2 * (64 + 2) + 2));
    run.ddpm("sample runs/tiny --num 3 --steps 2 --out single/").succeeds().stdout_has("3 images");
    assert_eq!(run.names("single"), ["00000.png", "00001.png", "00002.png"]);
    assert_eq!(png_size(&run.read("single/00000.png")), (16, 16));
}

#[test]
fn an_image_depends_on_its_seed_and_number_and_not_on_how_many_there_are() {
    let run = trained();
    let draw = |options: &str, out: &str| {
        run.ddpm(&format!("sample runs/tiny --steps 2 {options} --out {out}/")).succeeds();
        run.files(out).into_values().collect::<Vec<_>>()
    };
    for sampler in ["--sampler ddim", "--sampler ddim --eta 1", "--sampler ddpm"] {
        let name = sampler.replace(['-', ' '], "");
        let many = draw(&format!("{sampler} --num 9"), &format!("{name}9"));
        let few = draw(&format!("{sampler} --num 2"), &format!("{name}2"));
        assert!(few[..] == many[..2], "{sampler}");
        assert!(many[0] != many[1], "{sampler}: two images are equal");
        let other = draw(&format!("{sampler} --num 2 --seed 1"), &format!("{name}s"));
        assert!(few[0] != other[0], "{sampler}: the seed does nothing");
    }
}

#[test]
fn sample_takes_averaged_weights_unless_told_otherwise() {
    let run = trained();
    let weights = |options: &str, out: &str| {
        run.ddpm(&format!("sample runs/tiny --num 1 --steps 2 {options} --out {out}")).succeeds();
        run.read(out)
    };
    assert!(weights("", "ema.png") != weights("--raw", "raw.png"));
    run.ddpm("sample runs/tiny --num 1000000000000000 --out many/").fails_with(4).stderr_has("do not fit into memory");
    run.ddpm("sample runs/tiny --num 1000000 --out page.png")
        .fails_with(2)
        .stderr_has("--num 1000000")
        .stderr_has("fewer");
    run.ddpm("sample runs/tiny --class 1").fails_with(2).stderr_has("has no classes");
    run.ddpm("sample runs/tiny --guidance 1").fails_with(2).stderr_has("loss.label_dropout");
    run.ddpm("sample runs/tiny --steps 2000").fails_with(2).stderr_has("2000").stderr_has("1000");
}

#[test]
fn a_class_and_guidance_change_the_image() {
    let run =
        trained_run(&["train.steps=2", "model.num_class_embeds=11", "loss.label_dropout=0.1", "train.ema_decays=[]"]);
    let mut images: Vec<Vec<u8>> = Vec::new();
    for (k, options) in ["--class 1", "--class 2", "--class 2 --guidance 3"].into_iter().enumerate() {
        run.ddpm(&format!("sample runs/tiny --num 1 --steps 3 {options} --out {k}.png")).succeeds();
        images.push(run.read(&format!("{k}.png")));
    }
    assert!(images[0] != images[1] && images[1] != images[2]);
    run.ddpm("sample runs/tiny --class 10").fails_with(2).stderr_has("classes 0 to 9");
}

#[test]
fn data_inspect_counts_the_emoji() {
    let place = Place::of_repository();
    let inspect = place.ddpm("data inspect assets/emoji32.parquet --preview faces.png");
    let document = inspect.json();
    assert_fields(&document, "images, readable, unreadable, classes, sizes, formats, images_per_s");
    assert_eq!((&document["images"], &document["readable"]), (&3786.into(), &3786.into()));
    assert_eq!((&document["sizes"]["32x32"], &document["formats"]["png"]), (&3786.into(), &3786.into()));
    let classes = document["classes"].as_object().unwrap();
    assert_eq!((classes.len(), classes.values().filter_map(Value::as_u64).sum::<u64>()), (10, 3786));
    assert_eq!(png_size(&place.read("faces.png")).0, 10 * (64 + 2) + 2);
    inspect.succeeds().stdout_has("10 classes").stdout_has("faces.png");
}

#[test]
fn doctor_reports_what_this_machine_has() {
    let document = empty_place().ddpm("doctor").json();
    assert_fields(&document, "version, findings");
    empty_place().ddpm("doctor").succeeds().stdout_has("vectors").stdout_has("memory");
}

#[test]
fn bench_measures_a_step_by_phases() {
    let place = fresh_run(&[]);
    let document = place.ddpm("bench step tiny.toml --repeat 2").json();
    let fields =
        "parameters, batch_size, precision, device, threads, median_ms, min_ms, max_ms, images_per_s, peak_bytes";
    assert_fields(&document, fields);
    assert_fields(&document["phases_ms"], "data, forward, backward, optimizer");
    assert_eq!((&document["batch_size"], &document["threads"]), (&4.into(), &2.into()));
    place.ddpm("bench tiny.toml --repeat 2").succeeds().stdout_has("images/s").stdout_has("backward");
    assert_eq!(place.names(""), ["tiny.toml"]);
}

#[test]
fn bench_measures_sampling_reading_and_operations() {
    let place = fresh_run(&[]);
    let sample = place.ddpm("bench sample tiny.toml --repeat 1 --set sample.num=2 --set sample.steps=3").json();
    assert_fields(&sample, "images_per_s, median_ms, steps, batch_size, peak_bytes");
    assert_eq!((&sample["batch_size"], &sample["steps"]), (&2.into(), &3.into()));
    let data = place.ddpm("bench data tiny.toml --repeat 2").json();
    assert_fields(
        &data,
        "images_per_s, bytes_per_s, workers, median_batch_ms, file_bytes_per_s, reading, decoding, decoder_images_per_s",
    );
    // A line for each as soon as it is timed, then all of them.
    let stdout = place.ddpm("bench ops tiny.toml --repeat 1 --device cpu --json").succeeds().stdout;
    let mut lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let document = lines.pop().unwrap();
    assert_fields(&document, "device, precision, batch_size, ops");
    let ops = document["ops"].as_array().unwrap();
    assert_eq!(lines.iter().map(|line| &line["op"]).collect::<Vec<_>>(), ops.iter().collect::<Vec<_>>());
    for op in ops {
        assert_fields(op, "name, shape, count, ms, bytes, flop");
        assert!(op["ms"].as_f64().unwrap() > 0.0 && op["bytes"].as_u64().unwrap() > 0, "{op}");
    }
    for name in ["conv2d forward", "conv2d backward", "group_norm backward", "linear forward"] {
        assert!(ops.iter().any(|op| op["name"] == name), "{name}");
    }
    place.ddpm("bench data tiny.toml --repeat 1").succeeds().stdout_has("workers");
    place.ddpm("bench ops tiny.toml --repeat 1").succeeds().stdout_has("conv2d forward");
}

#[test]
fn schedule_has_the_published_numbers() {
    let place = fresh_run(&[]);
    let document = place.ddpm("schedule tiny.toml").json();
    let fields = "timesteps, betas, alphas_cumprod, snr, posterior_variance, posterior_log_variance_clipped, \
                  posterior_mean_coef1, posterior_mean_coef2";
    assert_fields(&document, fields);
    for field in fields.split(", ") {
        assert_eq!(document[field].as_array().unwrap().len(), 1000, "{field}");
    }
    // diffusers' DDPMScheduler with its defaults, computed in float64.
    let last = document["alphas_cumprod"][999].as_f64().unwrap();
    assert!((last / 4.035829765375676e-5 - 1.0).abs() < 1e-12, "{last:e}");
    assert_eq!(place.ddpm("schedule tiny.toml --steps 4").json()["timesteps"], serde_json::json!([0, 250, 500, 750]));
}

#[test]
fn schedule_reads_a_config_a_run_and_a_checkpoint_and_draws() {
    let run = trained();
    let of_config = run.ddpm("schedule tiny.toml --steps 10").succeeds().stdout;
    for model in ["runs/tiny", "runs/tiny/checkpoints/step-000000002"] {
        assert_eq!(run.ddpm(&format!("schedule {model} --steps 10")).succeeds().stdout, of_config);
    }
    run.ddpm("schedule tiny.toml --plot plot.png").succeeds().stdout_has("alpha_bar").stdout_has("plot.png");
    assert_eq!(png_size(&run.read("plot.png")), (1100, 560));
}

#[test]
fn forward_gives_the_output_the_loss_and_a_gradient_for_every_weight() {
    let run = trained();
    let image = |seed: f32| (0..2 * 256).map(|k| (k as f32 * seed).sin()).collect::<Vec<_>>();
    let floats: [Tensor<'_, f32>; 2] =
        [("sample", vec![2, 1, 16, 16], image(0.3)), ("target", vec![2, 1, 16, 16], image(0.7))];
    run.write("in.safetensors", safetensors_file(&floats, &[("timesteps", vec![2], vec![3, 900])]));
    let forward = run.ddpm("forward runs/tiny --input in.safetensors --to out.safetensors --raw");
    forward.succeeds().stdout_has("1 tensors");
    let plain = read_safetensors(&run.read("out.safetensors"));
    assert_eq!((plain.len(), &plain["output"].0), (1, &vec![2, 1, 16, 16]));

    let document = forward.arg("--gradients").json();
    let outputs = read_safetensors(&run.read("out.safetensors"));
    assert_eq!(outputs["output"], plain["output"]);
    let pairs = outputs["output"].1.iter().zip(&floats[1].2);
    let loss = pairs.map(|(y, target)| f64::from(y - target).powi(2)).sum::<f64>() / 512.0;
    assert!((f64::from(outputs["loss"].1[0]) / loss - 1.0).abs() < 1e-5, "{loss}");
    assert!((document["loss"].as_f64().unwrap() / loss - 1.0).abs() < 1e-5, "{document}");
    let weights = read_safetensors(&run.read("runs/tiny/checkpoints/step-000000002/model.safetensors"));
    assert_eq!(outputs.len(), weights.len() + 2);
    for (key, (shape, _)) in &weights {
        let (gradient_shape, gradient) = &outputs[&format!("grad.{key}")];
        assert_eq!(gradient_shape, shape, "{key}");
        assert!(gradient.iter().all(|value| value.is_finite()), "{key}");
    }
    assert!(outputs["grad.conv_in.weight"].1.iter().any(|value| *value != 0.0));
}

#[test]
fn forward_refuses_an_input_that_does_not_fit() {
    let run = trained();
    let forward = run.ddpm("forward runs/tiny --input in.safetensors --to out.safetensors");
    forward.fails_with(2).stderr_has("in.safetensors");
    let sample = |shape: [usize; 4]| ("sample", shape.to_vec(), vec![0.0; shape.iter().product()]);
    run.write("in.safetensors", safetensors_file(&[sample([1, 1, 16, 16])], &[]));
    forward.fails_with(2).stderr_has("timesteps");
    run.write("in.safetensors", safetensors_file(&[sample([1, 3, 16, 16])], &[("timesteps", vec![1], vec![0])]));
    forward.fails_with(2).stderr_has("3");
    assert!(!run.exists("out.safetensors"));
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let place = fresh_run(&[]);
    let script =
        r#"for command in "schedule tiny.toml --json" "config init" "--help"; do "$DDPM" $command | head -c 1; done"#;
    let output =
        Command::new("bash").args(["-c", script]).env("DDPM", ddpm_binary()).current_dir(place.path("")).output();
    let output = output.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.stdout.len(), 3);
}
