//! `ddpm config init`, `show` and `check`.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use ddpm_train::config::presets::{self, PRESETS, Preset};
use ddpm_train::config::{Entry, Resolved, to_toml};
use serde_json::{Map, Value, json};

use super::args::{InitArgs, ShowArgs};
use super::{Align, Output, Table};
use crate::failure::{ExitCode, Failure};

/// Writes a preset to stdout or to a new file.
pub(super) fn init(args: &InitArgs, output: &Output) -> Result<(), Failure> {
    let preset = presets::find(&args.preset).ok_or_else(|| unknown_preset(&args.preset))?;
    let Some(path) = &args.to else {
        let document = json!({"preset": preset.name, "config": preset.text});
        return output.result(&document, || preset.text.to_owned());
    };
    write_new(path, preset)?;
    let document = json!({"preset": preset.name, "file": path});
    output.result(&document, || {
        let file = path.display();
        format!("{file}: {}\n\nnext:\n  ddpm config check {file}\n  ddpm train {file}", preset.summary)
    })
}

fn unknown_preset(name: &str) -> Failure {
    let mut table = Table::new(&[Align::Left, Align::Left]);
    PRESETS.iter().for_each(|preset| table.row(&[&preset.name, &preset.summary]));
    Failure::new(ExitCode::Usage, format!("there is no preset `{name}`"))
        .hint(format!("the presets are\n{}", table.render().trim_end()))
}

/// Writes a preset into a file that must not exist yet: it could hold the user's own settings.
fn write_new(path: &Path, preset: &Preset) -> Result<(), Failure> {
    let written = fs::File::create_new(path).and_then(|mut file| file.write_all(preset.text.as_bytes()));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            let failure = Failure::new(ExitCode::Usage, format!("{}: this file exists already", path.display()));
            failure.hint("choose another name, or remove it first")
        }
        _ => Failure::caused_by(ExitCode::Other, format!("{}: cannot be written", path.display()), &error)
            .hint("check that the folder exists and that you may write there"),
    })
}

/// Shows every key with its value and origin.
pub(super) fn show(args: &ShowArgs, output: &Output) -> Result<(), Failure> {
    let entries = Resolved::load(&args.config, &args.set)?.entries();
    let document = |entry: &Entry| (entry.key.clone(), json!({"value": entry.value, "origin": entry.origin.kind()}));
    let document: Map<String, Value> = entries.iter().map(document).collect();
    output.result(&document, || show_text(&entries))
}

/// Prints one TOML section after another; a value that was set is followed by its origin.
fn show_text(entries: &[Entry]) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Left]);
    let mut section = "";
    for entry in entries {
        let (entry_section, name) = entry.key.split_once('.').unwrap_or(("", &entry.key));
        if entry_section != section {
            if !section.is_empty() {
                table.row(&[]);
            }
            table.row(&[&format!("[{entry_section}]")]);
            section = entry_section;
        }
        let origin = match entry.origin.kind() {
            "default" => String::new(),
            _ => format!("# {}", entry.origin),
        };
        table.row(&[&name, &format!("= {}", to_toml(&entry.value)), &origin]);
    }
    table.render()
}
