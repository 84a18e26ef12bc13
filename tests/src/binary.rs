//! The binary under test: built by the first test that needs it, with the profile of the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The binary `ddpm`. Cargo has no way to depend on another package's binary, so it is asked to build it here; when nothing has
/// changed, that takes a fraction of a second. `DDPM_TEST_BINARY` names another binary, such as one to be shipped.
pub fn ddpm_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("DDPM_TEST_BINARY").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).stderr(Stdio::piped());
    // For the whole workspace: for its own package alone, dependencies would be built once more, with fewer features.
    command.args(["build", "--quiet", "--workspace", "--bin", "ddpm", "--message-format=json-render-diagnostics"]);
    command.args(["--profile", profile()]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let executable = messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    executable.unwrap_or_else(|| panic!("{command:?} named no executable:\n{messages}"))
}

/// The profile this test was built under.
fn profile() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}
