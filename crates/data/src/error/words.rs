//! Names and numbers in the texts that a person reads.

use std::borrow::Cow;
use std::path::Path;

/// A name from outside, for a person: one with control characters is quoted, so that it cannot break a line or clear a screen.
pub fn shown(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_control) { format!("{name:?}").into() } else { name.into() }
}

/// The same of a path.
pub(super) fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy()).into_owned()
}

/// The same of several names.
pub(super) fn listed(names: &[String]) -> String {
    names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ")
}

/// A number of things, for a person: `1 class`, `2 classes`, `3 images`.
pub fn counted(count: usize, thing: &str) -> String {
    let end = match thing {
        _ if count == 1 => "",
        thing if thing.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {thing}{end}")
}
