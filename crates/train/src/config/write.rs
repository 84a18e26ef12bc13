//! The resolved configuration as a file: what a run directory keeps.

use std::fmt::Write as _;

use super::layers::Resolved;
use super::toml_source::to_toml;

impl Resolved {
    /// TOML that reads back as the same configuration, with every key, defaults too.
    ///
    /// Optional keys that are not set are left out, as they have to be.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = String::new();
        for entry in self.entries().iter().filter(|entry| !entry.value.is_null()) {
            let Some((entry_section, name)) = entry.key.split_once('.') else { continue };
            if entry_section != section {
                section = entry_section.to_owned();
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}[{section}]");
            }
            let _ = writeln!(text, "{name} = {}", to_toml(&entry.value));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::presets::PRESETS;
    use std::path::Path;

    #[test]
    fn a_written_config_reads_back_as_the_same() {
        for preset in &PRESETS {
            let path = Path::new("configs").join(preset.name);
            let resolved = Resolved::from_layers(&path, preset.text, [], &[]).unwrap();
            let written = resolved.to_toml();
            let again = Resolved::from_layers(Path::new("config.toml"), &written, [], &[]).unwrap();
            assert_eq!(again.config, resolved.config, "{written}");
        }
    }
}
