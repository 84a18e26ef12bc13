//! Sources other than folders and Parquet, and `data pack`, as a user meets them.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::png;
use ddpm_tests::{Place, assert_fields, fresh_run};

/// A folder of 8 images of two classes, and one that is torn.
fn photos(settings: &[&str]) -> Place {
    let run = fresh_run(settings);
    for index in 0..8 {
        let class = ["cat", "dog"][index % 2];
        run.write(&format!("photos/{class}/{index}.png"), png(24, index));
    }
    run.write("photos/dog/torn.png", &png(24, 1)[..99]);
    run
}

#[test]
fn a_packed_source_trains_resumes_and_keeps_its_classes() {
    let run = photos(&["data.source=packed", "model.num_class_embeds=2", "train.steps=4", "checkpoint.every=2"]);
    let packed = run.ddpm("data pack photos --size 16 --to packed --shard-images 4").json();
    assert_fields(&packed, "source, shards, kept, images, skipped, unreadable, bytes, notices, to");
    assert_eq!((&packed["shards"], &packed["images"], &packed["skipped"]), (&3.into(), &8.into(), &1.into()));
    run.ddpm("data pack photos --size 16 --to packed --shard-images 4")
        .succeeds()
        .stdout_has("8 images in 3 shards, of which 3 were there")
        .stdout_has("data.source = \"packed\"");
    assert_eq!(run.ddpm("data inspect packed").json()["classes"], serde_json::json!({"cat": 4, "dog": 4}));
    run.train().max_steps(2).succeeds();
    let cached = run.names(".cache/ddpm/shards");
    assert_eq!(cached.len(), 3, "{cached:?}");
    cached.iter().for_each(|name| run.write(&format!(".cache/ddpm/shards/{name}"), "damaged"));
    run.train().succeeds().resumes_at(2);
    run.train().set("data.source=packed/images-{000000..000002}.tar").set("train.steps=6").succeeds().resumes_at(4);
}

#[test]
fn packing_never_writes_into_a_folder_of_another_and_says_what_it_left_out() {
    let run = photos(&[]);
    run.ddpm("data pack photos --to out").fails_with(2).stderr_has("--size").stderr_has("--original");
    run.ddpm("data pack photos --original --to photos").fails_with(2).stderr_has("lies inside the data");
    run.write("full/mine.txt", "mine");
    run.ddpm("data pack photos --original --to full").fails_with(2).stderr_has("it is not empty");
    run.ddpm("data pack photos --original --to out").succeeds().stdout_has("dog/torn.png");
    run.ddpm("data pack photos --size 16 --to out").fails_with(2).stderr_has("it holds images as they are");
    run.ddpm("data pack photos --original --max-pixels 99 --to out").fails_with(2).stderr_has("max_pixels = 268435456");
    run.ddpm("data pack photos --original --fit pad --to new").fails_with(2).stderr_has("--fit");
    run.ddpm("data pack photos --size [[16 --to new").fails_with(2).stderr_has("expected a number, or height,width");
    let refused =
        run.ddpm("data pack photos --size 4097 --to new").fails_with(2).stderr_has("expected 1 to 4096 pixels");
    refused.stderr_has("--size");
    run.ddpm("data pack photos --size 32 --to small")
        .succeeds()
        .stdout_has("note: 8 of the 8 images packed now are smaller");
    assert_eq!(run.names("photos"), ["cat", "dog"]);
}

#[test]
fn a_pack_in_frames_trains_to_the_bits_of_its_source_in_frames() {
    let run = fresh_run(&[]);
    run.ddpm("data pack builtin:fashion10k --split all[:200] --size 32 --upscale false --to packed")
        .succeeds()
        .stdout_has("200 images");
    run.ddpm("data inspect packed").succeeds().stdout_has("32x32 (200)");
    let trained_on = |source: &str, split: &str| {
        let sized =
            ["data.image_size=32", "data.upscale=false", "data.max_corrupt=0.0", "train.steps=2", "sample.every=0"];
        let run = fresh_run(&[&sized[..], &[source, split]].concat());
        run.train().succeeds();
        run.read("runs/tiny/checkpoints/step-000000002/model.safetensors")
    };
    let packed = format!("data.source={}", run.path("packed").display());
    let from_source = trained_on("data.source=builtin:fashion10k", "data.split=all[:200]");
    assert!(from_source == trained_on(&packed, "data.split=all"));
}

#[test]
fn what_is_no_data_is_named_with_what_to_do() {
    let run = fresh_run(&[]);
    run.write("data.zip", "PK");
    run.ddpm("data inspect data.zip").fails_with(2).stderr_has("an archive").stderr_has("unpack it");
    run.write("arrays/x.npz", "PK");
    run.train().set("data.source=arrays").fails_with(3).stderr_has("1 .npz; .npz is NumPy's arrays: save each image");
    run.write("cut.tar", "not a tar file, whatever its name says");
    run.ddpm("data inspect cut.tar").fails_with(3).stderr_has("not a readable tar shard").stderr_has("fetch it again");
    run.ddpm("data inspect x --format zip").fails_with(2).stderr_has("webdataset, arrow, idx or cifar");
}
