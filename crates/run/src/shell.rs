//! Commands as a user would type them, and paths as a shell would read them.
//!
//! A shell expands `~` and `$VAR` only where it sees a path of its own: not in a configuration, nor behind `--set data.source=`.
//! Left as they are they would make a directory called `~`.

use std::env;

/// The command line of a process of this program, without the program's path.
pub fn command(args: &[String]) -> String {
    let args = args.iter().skip(1).map(|arg| quoted(arg));
    std::iter::once("ddpm".to_owned()).chain(args).collect::<Vec<_>>().join(" ")
}

/// `arg`, quoted where a shell needs it.
pub fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.to_owned() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

/// A path begins with a variable that is not set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: the environment has no variable {name}")]
pub struct UnsetVariable {
    /// The path.
    pub path: String,
    /// The variable's name.
    pub name: String,
}

impl UnsetVariable {
    /// What to do about it.
    pub fn help(&self) -> String {
        let Self { path, name } = self;
        format!("set {name}, or write the path out; ./{path} is a file of that name")
    }
}

/// `path` with a leading `~`, `$VAR` or `${VAR}` replaced, where it is the whole first part of it.
///
/// # Errors
/// The variable is not set.
pub fn expanded(path: &str) -> Result<String, UnsetVariable> {
    expanded_with(path, |name| match name {
        "~" => env::home_dir().and_then(|home| home.into_os_string().into_string().ok()),
        name => env::var(name).ok(),
    })
}

fn expanded_with(path: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, UnsetVariable> {
    let (first, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
    let variable =
        first.strip_prefix('$').map(|name| name.strip_prefix('{').map_or(name, |name| name.trim_end_matches('}')));
    let is_name = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let name = match variable.filter(is_name) {
        Some(name) => name,
        None if first == "~" => first,
        None => return Ok(path.to_owned()),
    };
    let unset = || UnsetVariable { path: path.to_owned(), name: if name == "~" { "HOME" } else { name }.to_owned() };
    Ok(value(name).ok_or_else(unset)? + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(path: &str) -> Result<String, UnsetVariable> {
        expanded_with(path, |name| match name {
            "~" => Some("/home/me".to_owned()),
            "DATA" => Some("/data".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn a_home_and_variables_are_expanded_at_the_start_alone() {
        for (path, want) in [
            ("~", "/home/me"),
            ("~/photos", "/home/me/photos"),
            ("$DATA/a b", "/data/a b"),
            ("${DATA}/x", "/data/x"),
            ("a/~/$DATA", "a/~/$DATA"),
            ("./~", "./~"),
            ("~backup/x", "~backup/x"),
            ("$RECYCLE.BIN/x", "$RECYCLE.BIN/x"),
            ("builtin:fashion10k", "builtin:fashion10k"),
            ("", ""),
        ] {
            assert_eq!(expand(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let error = expand("$PHOTOS/2019").expect_err("not set");
        assert_eq!(error.to_string(), "$PHOTOS/2019: the environment has no variable PHOTOS");
        assert_eq!(error.help(), "set PHOTOS, or write the path out; ./$PHOTOS/2019 is a file of that name");
    }
}
