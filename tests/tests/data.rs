//! What people have on their disks and type about it: paths with `~`, classes by name, names that a terminal obeys, and files
//! of theirs that nothing may overwrite.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::{image_folder, png};
use ddpm_tests::{Place, fresh_run};

/// Images of 16x16 in the folder `root/class` of each class.
fn classes(place: &Place, root: &str, classes: &[&str]) {
    for (seed, class) in classes.iter().enumerate() {
        (0..3).for_each(|k| place.write(&format!("{root}/{class}/{k}.png"), png(16, 10 * seed + k)));
    }
}

// Paths

#[test]
fn a_home_and_a_variable_are_expanded_wherever_a_path_is_typed() {
    // HOME is the test's directory.
    let run = fresh_run(&["train.steps=2"]);
    image_folder(&run, "photos", 4);
    let train = run.train().set("data.source=~/photos").set("run.dir=$RUNS/a").env("RUNS", "elsewhere");
    train.succeeds().stdout_has("elsewhere/a/checkpoints");
    run.train().set("data.source=${HOME}/photos").arg("--run-dir").arg("~/elsewhere/b").succeeds();
    run.ddpm("data inspect ~/photos --preview ~/look.png").succeeds().stdout_has("4 readable");
    run.ddpm("sample ~/elsewhere/a --steps 2 --num 1 --out ~/drawn.png").succeeds();
    assert!(run.exists("look.png") && run.exists("drawn.png") && !run.exists("~"));
}

#[test]
fn a_variable_that_is_not_set_is_an_error_by_its_name() {
    let run = fresh_run(&[]);
    let place = run.train().set("data.source=$PHOTOS/2019").fails_with(2);
    place.stderr_has("command line: data.source = $PHOTOS/2019: the environment has no variable PHOTOS");
    run.ddpm("data inspect $PHOTOS").fails_with(2).stderr_has("no variable PHOTOS");
    run.ddpm("data inspect file:///photos").fails_with(2).stderr_has("write the path alone");
    assert!(!run.exists("$PHOTOS"));
}

// Sizes

#[test]
fn frames_around_some_images_are_said_and_can_be_had_otherwise() {
    let run = fresh_run(&["train.steps=4", "data.source=photos", "data.upscale=false", "sample.every=0"]);
    (0..4).for_each(|k| run.write(&format!("photos/{k}.png"), png(if k == 0 { 8 } else { 20 }, k)));
    let said = "1 of the first 4 images are smaller than data.image_size = 16 and get a frame";
    run.train().succeeds().stderr_has(said).stderr_has("data.upscale = true");
    // Another size is another run.
    run.train().set("data.upscale=true").fails_with(2).stderr_has("data.upscale: false in the checkpoint, true now");
    let other = run.train().set("data.upscale=true").set("data.background=grey").set("data.fit=pad");
    other.arg("--run-dir").arg("runs/other").succeeds().stderr_lacks("get a frame");
    run.train().set("data.background=pink").fails_with(2).stderr_has("expected black, grey, white or #rrggbb");
}

// Outputs

#[test]
fn looking_at_data_writes_nothing_unasked_and_nothing_into_it() {
    let run = fresh_run(&[]);
    classes(&run, "photos", &["cats", "dogs"]);
    let before = (run.files("photos"), run.names(""));
    run.ddpm("data inspect photos").succeeds().stdout_has("2 classes");
    let inside = run.ddpm("data inspect photos --preview photos/new/look.png").fails_with(2);
    inside.stderr_has("lies inside the data, photos");
    run.ddpm("data inspect photos --preview tiny.toml").fails_with(2).stderr_has("ends in .png");
    assert!((run.files("photos"), run.names("")) == before);
    // A picture that cannot be written costs no result.
    let lost = run.ddpm("data inspect photos --preview /proc/look.png").run().has_code(1);
    lost.stdout_has("6 readable").stderr_has("cannot write the picture");
}

#[test]
fn drawing_without_a_place_takes_a_free_name_outside_of_the_data() {
    let run = fresh_run(&["train.steps=2"]);
    run.train().succeeds();
    run.write("samples.png", "mine");
    let sample = run.ddpm("sample runs/tiny --steps 2 --num 1");
    assert_eq!(sample.json()["files"][0], "samples-2.png");
    assert_eq!(sample.json()["files"][0], "samples-3.png");
    assert_eq!(run.read("samples.png"), b"mine");
    std::fs::remove_file(run.path("samples.png")).unwrap();
    run.train().set("data.source=.").arg("--run-dir").arg("runs/here").succeeds();
    run.ddpm("sample runs/here --steps 2 --num 1").fails_with(2).stderr_has("lies inside the data").stderr_has("--out");
}

#[test]
fn a_folder_with_pictures_of_another_run_is_refused() {
    let run = fresh_run(&["train.steps=2"]);
    run.train().succeeds();
    let sample = |num: u32| run.ddpm(&format!("sample runs/tiny --steps 2 --num {num} --out drawn"));
    sample(5).succeeds();
    let before = run.files("drawn");
    sample(5).fails_with(2).stderr_has("--out drawn: 00000.png is there already").stderr_has("nothing is overwritten");
    assert!(run.files("drawn") == before);
    sample(3).fails_with(2).stderr_has("--out drawn: 00003.png and 1 more would stay beside the 3 new images");
}

// Names

#[test]
fn names_cannot_move_the_cursor_or_forge_a_line() {
    let run = fresh_run(&["train.steps=2", "data.source=images", "data.max_corrupt=1", "model.num_class_embeds=1"]);
    run.write("images/a\n\u{1b}[2Jb/1.png", png(16, 1));
    run.write("images/a\n\u{1b}[2Jb/torn\nerror: forged\u{1b}[2J.png", "no picture");
    let shown = run.ddpm("data inspect images").succeeds();
    let shown = shown.stdout_has(r#""a\n\u{1b}[2Jb""#).stdout_has(r"torn\nerror: forged");
    shown.expect(!shown.stdout.contains('\u{1b}'), "no escape code");
    let trained = run.train().succeeds().stderr_has(r"torn\nerror: forged");
    trained.expect(!trained.stderr.contains('\u{1b}'), "no escape code");
    let list = String::from_utf8(run.read("runs/tiny/unreadable.jsonl")).unwrap();
    assert_eq!(list.lines().count(), 1, "{list}");
}

// Classes

#[test]
fn labels_follow_the_classes_names_and_not_their_places() {
    let run = fresh_run(&["train.steps=4", "data.source=three", "model.num_class_embeds=3"]);
    classes(&run, "three", &["ant", "bee", "cat"]);
    for class in ["bee", "cat"] {
        (0..3).for_each(|k| run.write(&format!("two/{class}/{k}.png"), run.read(&format!("three/{class}/{k}.png"))));
    }
    classes(&run, "cows", &["bee", "cow"]);
    run.train().succeeds();
    let nll = |data: &str| run.ddpm(&format!("eval nll runs/tiny --data {data} --steps 3"));
    nll("two").succeeds().stderr_has("of the model's 3 classes there are no images of ant");
    nll("cows").fails_with(2).stderr_has("cow is no class of the model, which knows ant, bee, cat");
    // A folder of one class is not always the first: the same images under two names are judged as two classes.
    for class in ["ant", "cat"] {
        (0..3).for_each(|k| run.write(&format!("one-{class}/{class}/{k}.png"), png(16, k)));
    }
    let bits = |data: &str| nll(data).json()["bits_per_dim"].clone();
    assert_ne!(bits("one-ant"), bits("one-cat"));
    // Going on with fewer classes keeps the labels of the others.
    let fewer = run.train().set("data.source=two").set("train.steps=6");
    fewer.fails_with(2).stderr_has("(6 now, 9 then)");
    fewer.arg("--accept-data").succeeds().stderr_has("no images of ant");
    nll("three").succeeds().stderr_lacks("no images of");
}

#[test]
fn names_of_classes_travel_with_the_model_and_can_be_drawn() {
    let run = fresh_run(&["train.steps=2", "data.source=numbers", "model.num_class_embeds=4"]);
    classes(&run, "numbers", &["1", "10", "2", "cat"]);
    run.train().succeeds();
    let drawn = |model: &str, class: &str| {
        let document = run.ddpm(&format!("sample {model} --steps 2 --num 1 --class {class}")).json();
        (document["class"].as_u64(), document["class_name"].as_str().unwrap_or_default().to_owned())
    };
    // A name counts more than a number.
    assert_eq!(drawn("runs/tiny", "2"), (Some(2), "2".to_owned()));
    assert_eq!(drawn("runs/tiny", "1"), (Some(0), "1".to_owned()));
    assert_eq!(drawn("runs/tiny", "3"), (Some(3), "cat".to_owned()));
    run.ddpm("sample runs/tiny --steps 2 --num 1 --class cat").succeeds().stdout_has("1 image of class 3, cat");
    run.ddpm("sample runs/tiny --class dog").fails_with(2).stderr_has("classes 0 to 3: 1, 10, 2, cat");
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    assert!(run.text("out/README.md").contains("| classes | 0: 1; 1: 10; 2: 2; 3: cat |"));
    assert_eq!(drawn("out", "cat"), (Some(3), "cat".to_owned()));
    // Fine-tuning on a folder without some of them.
    run.ddpm("import out --to runs/mine").succeeds();
    classes(&run, "less", &["10", "cat"]);
    let tune = run.ddpm("train runs/mine/config.toml --max-steps 1 --set data.source=less");
    tune.succeeds().stderr_has("there are no images of 1, 2");
    assert_eq!(drawn("runs/mine", "10"), (Some(1), "10".to_owned()));
}

#[test]
fn more_classes_in_the_model_than_in_the_data_is_a_warning() {
    let run = fresh_run(&["train.steps=2", "data.source=photos", "model.num_class_embeds=5"]);
    classes(&run, "photos", &["cats", "dogs"]);
    let warning = "model.num_class_embeds: the model has 5 classes and the data 2: classes 2 to 4 are never trained";
    run.train().succeeds().stderr_has(warning);
    let settings = "--set data.source=photos --set model.num_class_embeds=5";
    run.ddpm(&format!("config check tiny.toml {settings}")).succeeds().stdout_has(warning);
}
