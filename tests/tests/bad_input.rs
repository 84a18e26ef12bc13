//! Every kind of bad input to `ddpm` gives the right exit code and a message that says what to do, as text and as JSON
//! (`fails_with` checks both), and destroys nothing that was written before.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::{image_folder, png, read_safetensors};
use ddpm_tests::{Finished, Place, empty_place, fresh_run};

// The command line

#[test]
fn a_command_line_that_is_none_says_how_it_goes() {
    let place = empty_place();
    place.ddpm("train").fails_with(2).stderr_has("<CONFIG>").stderr_has("Usage: ddpm train");
    place.ddpm("trian my.toml").fails_with(2).stderr_has("'train'");
    place.ddpm("train my.toml --max-steps 0").fails_with(2).stderr_has("--max-steps");
    place.ddpm("train my.toml --set lr").fails_with(2).stderr_has("expected KEY=VALUE");
}

// The configuration

#[test]
fn a_config_file_that_is_not_there_is_named_and_init_offered() {
    let place = empty_place();
    for command in
        ["train no.toml", "config show no.toml", "config check no.toml", "bench step no.toml", "schedule no.toml"]
    {
        place.ddpm(command).fails_with(2).stderr_has("no.toml").stderr_has("ddpm config init");
    }
    assert_eq!(place.names(""), [""; 0]);
}

#[test]
fn a_config_that_is_not_toml_is_refused_with_its_line() {
    let place = fresh_run(&[]);
    place.write("tiny.toml", "[train]\nsteps = 10\nlr = = 3\n");
    place.train().fails_with(2).stderr_has("tiny.toml:3").stderr_has("not TOML");
    place.write("tiny.toml", b"[train]\nsteps = 10 # caf\xe9\n");
    place.train().fails_with(2).stderr_has("tiny.toml").stderr_has("check that it is a text file");
    std::fs::remove_file(place.path("tiny.toml")).unwrap();
    std::fs::create_dir(place.path("tiny.toml")).unwrap();
    place.train().fails_with(2).stderr_has("tiny.toml").stderr_has("name a config file");
}

#[test]
fn an_unknown_key_is_refused_with_the_one_that_was_meant() {
    let place = fresh_run(&[]);
    place.write("my.toml", "[train]\nsteps = 10\nlearning_rate = 1e-3\nbatchsize = 3\n");
    place.ddpm("train my.toml").fails_with(2).stderr_has("my.toml:3: unknown key `train.learning_rate`");
    place.train().set("train.batchsize=3").fails_with(2).stderr_has("did you mean `train.batch_size`?");
    place.train().env("DDPM_TRAIN__STEP", "3").fails_with(2).stderr_has("DDPM_TRAIN__STEP").stderr_has("`train.steps`");
    place.train().set("lr=3").fails_with(2).stderr_has("did you mean `train.lr`?");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_the_right_one() {
    let run = fresh_run(&[]);
    run.train().set("train.steps=many").fails_with(2).stderr_has("train.steps = \"many\": expected a whole number");
    run.train().set("train.steps=-3").fails_with(2).stderr_has("train.steps = -3: expected a whole number, 0 or more");
    run.train().set("log.jsonl=1").fails_with(2).stderr_has("log.jsonl = 1: expected true or false");
    run.train().set("train.lr_schedule=cosin").fails_with(2).stderr_has("did you mean \"cosine\"?");
    run.train().set("sample.sampler=ddmi").fails_with(2).stderr_has("expected ddpm, ddim or dpm");
}

#[test]
fn an_impossible_model_is_refused_with_one_that_is_possible() {
    let run = fresh_run(&[]);
    let groups = run.train().set("model.norm_num_groups=5").fails_with(2);
    groups.stderr_has("model.norm_num_groups = 5").stderr_has("model.block_out_channels[0] = 16").stderr_has("8, 4, 2");
    let size = run.train().set("data.image_size=15").fails_with(2);
    size.stderr_has("15").stderr_has("help: ").stderr_has("16");
    let blocks = run.train().set("model.block_out_channels=[16, 16, 16]").fails_with(2);
    blocks.stderr_has("down_block_types").stderr_has("3");
    assert!(!run.exists("runs"), "a config that is refused leaves nothing behind");
}

#[test]
fn sixteen_bits_on_the_cpu_are_computed_in_32_with_a_warning() {
    let run = fresh_run(&["train.steps=2"]);
    run.train()
        .set("train.precision=bf16")
        .succeeds()
        .stderr_has("train.precision: \"bf16\" is for GPUs; the CPU computes in f32");
    let tf32 = run.train().set("train.precision=bf16").set("train.allow_tf32=true");
    tf32.succeeds().stderr_has("train.allow_tf32: has no effect");
}

#[test]
fn a_gpu_that_is_not_there_is_a_device_problem() {
    let run = fresh_run(&[]);
    run.train().arg("--device").arg("cuda:7").fails_with(4).stderr_has("cuda:7").stderr_has("--device cpu");
    run.train().set("run.device=gpu").fails_with(2).stderr_has("run.device = \"gpu\"").stderr_has("cuda");
}

// The data

#[test]
fn data_that_is_not_there_is_named() {
    let run = fresh_run(&[]);
    run.train()
        .set("data.source=photos")
        .fails_with(3)
        .stderr_has("data.source = photos")
        .stderr_has("relative paths start at");
    run.ddpm("data inspect photos").fails_with(3).stderr_has("photos");
    run.train().set("data.source=builtin:fashion").fails_with(2).stderr_has("builtin:fashion10k");
    run.train().set("data.source=").fails_with(2).stderr_has("data.source is not set");
}

#[test]
fn data_without_images_is_refused() {
    let run = fresh_run(&[]);
    std::fs::create_dir(run.path("images")).unwrap();
    run.train().set("data.source=images").fails_with(3).stderr_has("no images").stderr_has("png");
    run.write("images/notes.txt", "no picture");
    run.train().set("data.source=images").fails_with(3).stderr_has("no images");
    run.write("half.parquet", "PAR1 and then nothing");
    run.train().set("data.source=half.parquet").fails_with(3).stderr_has("half.parquet").stderr_has("fetch it again");
}

#[test]
fn splits_are_no_classes_and_what_is_left_out_is_said() {
    let run = fresh_run(&["data.source=images", "train.steps=2"]);
    for name in ["train/a/1", "train/b/2", "test/a/3"] {
        run.write(&format!("images/{name}.png"), png(16, 1));
    }
    run.train().succeeds().stderr_has("warning: data.source: data.split is not set").stderr_has("1 of test are not");
    assert_eq!(run.ddpm("data inspect images").json()["images"], 2);
    run.ddpm("data inspect images").succeeds().stdout_has("note: data.split is not set").stdout_has("2 classes");
    run.ddpm("data inspect images --split all").succeeds().stdout_has("3 readable");
}

/// A run on 200 images of which `corrupt` are cut short.
fn run_on_corrupt_images(corrupt: usize) -> Place {
    let run = fresh_run(&["data.source=images", "train.batch_size=32", "train.steps=10"]);
    image_folder(&run, "images", 200);
    (0..corrupt).for_each(|index| run.truncate(&format!("images/{:03}.png", 17 + index * 4)));
    run
}

#[test]
fn a_corrupt_image_is_skipped_and_named_and_training_goes_on() {
    let run = run_on_corrupt_images(1);
    run.train().succeeds().stderr_has("warning: ").stderr_has("017.png").stderr_has("another image takes its place");
    let list = String::from_utf8(run.read("runs/tiny/unreadable.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&line["index"], &line["sample"]), (&17.into(), &"017.png".into()));
    // Over the end of an epoch, at a second start: it stands in the list and is not named again.
    run.train().set("train.steps=20").succeeds().stderr_lacks("017.png").stderr_has("unreadable.jsonl");
    assert_eq!(String::from_utf8(run.read("runs/tiny/unreadable.jsonl")).unwrap(), list);
    let inspected = run.ddpm("data inspect images").json();
    assert_eq!((&inspected["images"], &inspected["readable"]), (&200.into(), &199.into()));
    assert!(inspected["unreadable"][0]["id"].as_str().unwrap().ends_with("017.png"), "{inspected}");
}

#[test]
fn a_corrupt_image_ends_the_run_where_that_is_asked_for_and_the_steps_before_are_saved() {
    let run = run_on_corrupt_images(1);
    let failed = run.train().set("data.on_corrupt=fail").run().has_code(3);
    let failed = failed.stderr_has("017.png").stderr_has("data.on_corrupt = \"skip\"");
    failed.expect(run.checkpoints().len() == 1, "the steps before the corrupt image are saved");
    run.train().set("data.on_corrupt=fail").fails_with(3).stderr_has("017.png");
}

#[test]
fn too_many_corrupt_images_end_the_run_and_raising_the_limit_lets_it_go_on() {
    let run = run_on_corrupt_images(40);
    let failed = run.train().fails_with(3);
    failed.stderr_has("data.max_corrupt = 0.01").stderr_has("ddpm data inspect").stderr_has("raise data.max_corrupt");
    run.train().set("data.max_corrupt=0.5").succeeds();
}

#[test]
fn corrupt_images_that_are_repaired_are_accepted_by_the_run_that_they_ended() {
    let run = run_on_corrupt_images(1);
    let train = run.train().set("data.on_corrupt=fail");
    let failed = train.run().has_code(3).stderr_has("017.png").stderr_has("--accept-data");
    failed.expect(run.checkpoints().len() == 1, "the steps before the corrupt image are saved");
    run.write("images/017.png", png(16, 200));
    train
        .fails_with(2)
        .stderr_has("200 as then, with other names, sizes, labels or versions")
        .stderr_has("--accept-data");
    train.arg("--accept-data").succeeds().stderr_has("going on from");
}

#[test]
fn an_image_too_large_for_no_crop_is_cut_at_the_next_start() {
    let run = fresh_run(&["data.source=images", "train.batch_size=2", "train.steps=10", "data.crop=none"]);
    image_folder(&run, "images", 20);
    run.write("images/900.png", png(40, 1));
    run.train().fails_with(2).stderr_has("40x40 pixels").stderr_has("set data.crop to");
    run.train().set("data.crop=center").succeeds().stderr_has("going on from");
    run.train().set("data.crop=none").fails_with(2).stderr_has("data.crop: \"center\" in the checkpoint");
}

#[test]
fn labels_that_do_not_fit_the_model_are_refused() {
    let run = fresh_run(&["data.source=images", "model.num_class_embeds=2"]);
    image_folder(&run, "images", 4);
    run.train().fails_with(2).stderr_has("has no labels");
    for class in ["a", "b", "c"] {
        run.write(&format!("classes/{class}/1.png"), png(16, 1));
    }
    run.train().set("data.source=classes").fails_with(2).stderr_has("label 2").stderr_has("at least 3");
}

// The run directory

#[test]
fn a_read_only_place_is_refused() {
    // No user can create anything there, not even root.
    let run = fresh_run(&[]);
    run.train()
        .arg("--run-dir")
        .arg("/sys/ddpm-run")
        .fails_with(1)
        .stderr_has("/sys/ddpm-run")
        .stderr_has("not writable");
    run.write("file", "");
    run.train().arg("--run-dir").arg("file").fails_with(1).stderr_has("a file stands where a directory is needed");
}

#[test]
fn a_second_process_on_the_same_run_is_refused_and_the_first_goes_on() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1", "checkpoint.every=0"]);
    let mut first = run.train().spawn();
    first.wait_for_stderr("step 2/");
    run.train().fails_with(8).stderr_has("held by process").stderr_has("--run-dir");
    run.ddpm("sample runs/tiny").fails_with(6).stderr_has("holds no checkpoint");
    first.signal("TERM");
    let done = first.wait(std::time::Duration::from_secs(30)).has_code(75);
    done.expect(run.checkpoints().len() == 1, "the first saved as if nothing had been");
}

// Training

#[test]
fn a_run_that_diverges_ends_and_the_checkpoints_before_it_stay() {
    // The learning rate grows with each step until it is too large, some steps later.
    let run = fresh_run(&["train.lr=1e4", "train.warmup_steps=20", "train.clip_grad_norm=0", "checkpoint.every=1"]);
    run.train().run().has_code(5).stderr_has("training diverged at step").stderr_has("lower train.lr");
    let (names, before) = (run.checkpoints(), run.files("runs/tiny/checkpoints"));
    assert!(names.len() == 2, "{names:?}");
    run.train().fails_with(5).stderr_has("going on from").stderr_has("training diverged at step");
    assert!(run.files("runs/tiny/checkpoints") == before);
    for name in names {
        let weights = read_safetensors(&run.read(&format!("runs/tiny/checkpoints/{name}/model.safetensors")));
        assert!(weights.values().flat_map(|(_, values)| values).all(|value| value.is_finite()), "{name}");
    }
}

fn sample(run: &Place) -> Finished {
    run.ddpm("sample runs/tiny --num 1 --steps 2").fails_with(6)
}

#[test]
fn a_model_that_is_none_is_refused() {
    let run = fresh_run(&[]);
    sample(&run).stderr_has("runs/tiny: no such directory");
    std::fs::create_dir_all(run.path("runs/tiny/checkpoints")).unwrap();
    sample(&run).stderr_has("holds no checkpoint that verifies");
    run.write("empty/notes.txt", "");
    run.ddpm("sample empty").fails_with(6).stderr_has("no MANIFEST.json");
}
