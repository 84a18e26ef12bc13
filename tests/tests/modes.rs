//! Who may read and write what is made: files are at most 0644 and directories 0755, and a stricter umask counts.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ddpm_tests::fresh_run;

/// Everything below a directory, with its mode.
fn modes(dir: &Path) -> Vec<(PathBuf, u32, bool)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_symlink() {
            continue;
        }
        if metadata.is_dir() {
            found.extend(modes(&path));
        }
        found.push((path, metadata.permissions().mode() & 0o7777, metadata.is_dir()));
    }
    found
}

#[test]
fn nobody_else_may_write_what_is_made_and_a_strict_umask_counts() {
    for (mask, file, dir) in
        [("000", 0o644, 0o755), ("002", 0o644, 0o755), ("022", 0o644, 0o755), ("077", 0o600, 0o700)]
    {
        let run = fresh_run(&["train.steps=4", "checkpoint.every=2", "run.dir=made/run", "run.name=tiny"]);
        run.train().arg("--trace").arg("made/trace.json").umask(mask).succeeds();
        for line in [
            "sample made/run --num 2 --steps 2 --out made/images/",
            "sample made/run --num 2 --steps 2 --out made/grid.png",
            "export made/run --to made/exported --samples 1",
            "import made/exported --to made/imported",
            "fork made/run --to made/forked",
            "data pack builtin:fashion10k --size 8 --to made/packed",
            "push made/exported --repo me/x --samples 0 --dry-run",
        ] {
            run.ddpm(line).umask(mask).succeeds();
        }
        let made = modes(&run.path("made")).into_iter().chain(modes(&run.path(".cache")));
        for (path, mode, is_dir) in made {
            let want = if is_dir { dir } else { file };
            assert_eq!(mode, want, "umask {mask}: {} has {mode:o}, expected {want:o}", path.display());
        }
    }
}
