//! Turns serde's errors about a value into errors that a user can act on.

use ddpm_model::unet::unsupported;
use serde_json::Value;

use super::error::{ConfigError, Origin};
use super::schema;
use super::toml_source::to_toml;

/// From this similarity on, a key is suggested for a misspelt one; keys are short.
const SIMILAR_KEYS: f64 = 0.6;
/// The same for values. `SkipDownBlock2D` (0.73) is not a misspelt `AttnDownBlock2D`.
const SIMILAR_NAMES: f64 = 0.75;

/// The error for a key that does not exist, with the nearest one that does.
pub(super) fn unknown_key(key: &str, origin: &Origin) -> ConfigError {
    let help = key_help(key);
    ConfigError::UnknownKey { place: origin.to_string(), key: key.to_owned(), help }
}

/// Refuses a key that does not exist; `place` is where it stands.
///
/// # Errors
/// There is no such key.
pub fn check_key(key: &str, place: &str) -> Result<(), ConfigError> {
    if schema::keys().any(|known| known == key) {
        return Ok(());
    }
    Err(ConfigError::UnknownKey { place: place.to_owned(), key: key.to_owned(), help: key_help(key) })
}

fn key_help(key: &str) -> String {
    let sections = schema::sections();
    let name = key.rsplit('.').next().unwrap_or(key);
    let section = key.split('.').next().unwrap_or(key);
    let elsewhere = schema::keys().find(|known| known.rsplit('.').next() == Some(name));
    if let Some(known) = elsewhere {
        return format!("did you mean `{known}`?");
    }
    if !key.contains('.') {
        let names = sections.iter().map(|&(section, _)| section);
        return match closest(key, names.clone(), SIMILAR_KEYS) {
            Some(section) => format!("did you mean the section [{section}]?"),
            None => format!("the sections are [{}]", names.collect::<Vec<_>>().join("], [")),
        };
    }
    let known_section = sections.iter().find(|(known, _)| *known == section);
    let in_section = known_section.and_then(|(_, keys)| closest(name, keys.iter().copied(), SIMILAR_KEYS));
    if let Some(known) = in_section {
        return format!("did you mean `{section}.{known}`?");
    }
    let keys: Vec<String> = schema::keys().collect();
    match (closest(key, keys.iter().map(String::as_str), SIMILAR_KEYS), known_section) {
        (Some(known), None) => format!("did you mean `{known}`?"),
        (_, Some((section, keys))) => format!("keys of [{section}]: {}", keys.join(", ")),
        (None, None) => String::new(),
    }
}

/// The candidate that is most like `word`, if one is at least `least` like it (1: equal).
fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>, least: f64) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(word, candidate);
    candidates
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|&(likeness, _)| likeness >= least)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The error for a value that its key does not accept. `complaint` is serde's message; `about_names` is its message for a
/// string there, which lists the names if the key takes names.
pub(super) fn type_error(
    key: &str,
    found: &Value,
    complaint: &str,
    about_names: Option<&str>,
    origin: &Origin,
) -> ConfigError {
    let names = [Some(complaint), about_names].into_iter().flatten().find_map(variants);
    let (expected, help) = match names {
        Some((wrong, names)) => explain_names(&wrong, &names, found),
        None => (expected_type(complaint), None),
    };
    ConfigError::Type { place: origin.to_string(), key: key.to_owned(), found: to_toml(found), expected, help }
}

/// The wrong name and the right ones in serde's "unknown variant `x`, expected one of `a`, `b`".
fn variants(complaint: &str) -> Option<(String, Vec<String>)> {
    let mut quoted = complaint.strip_prefix("unknown variant `")?.split('`').step_by(2).map(str::to_owned);
    Some((quoted.next()?, quoted.filter(|name| !name.is_empty()).collect()))
}

fn explain_names(wrong: &str, names: &[String], found: &Value) -> (String, Option<String>) {
    let list = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let expected = match (found, names.len()) {
        (Value::Array(_), _) if !wrong.is_empty() => format!("names that exist; \"{wrong}\" is not one of {list}"),
        (_, 1) => list,
        _ => format!("one of {list}"),
    };
    let similar = || closest(wrong, names.iter().map(String::as_str), SIMILAR_NAMES);
    let help = match unsupported(wrong) {
        Some(why) => Some(format!("{wrong}: {why}")),
        None => similar().map(|name| format!("did you mean \"{name}\"?")),
    };
    (expected, help)
}

/// What serde expected, in words.
fn expected_type(complaint: &str) -> String {
    let Some((_, expected)) = complaint.rsplit_once("expected ") else { return complaint.to_owned() };
    match expected {
        "u64" | "usize" | "u32" => "a whole number, 0 or more".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "a text in quotes".to_owned(),
        "a sequence" => "a list".to_owned(),
        other => match other.strip_prefix("an array of length ") {
            Some(length) => format!("a list of {length}"),
            None => other.to_owned(),
        },
    }
}
