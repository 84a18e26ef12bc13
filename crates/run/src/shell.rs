//! Commands as a user would type them, and paths as a shell would read them.
//!
//! A shell expands `~` and `$VAR` only where it sees a path of its own: not in a configuration, nor behind `--set data.source=`.
//! Left as they are they would make a directory called `~`.

use std::env;
use std::fmt;

use crate::secrets::{holds_credentials, masked};

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

/// A path or an address that cannot be used as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadPath {
    /// It begins with a variable that is not set.
    Unset {
        /// The path.
        path: String,
        /// The variable's name.
        name: String,
    },
    /// It is an address with a user name or a password, which would be kept with a run and shown.
    Credentials {
        /// The address, without them.
        address: String,
    },
}

impl BadPath {
    /// What is wrong with it, for a message that names the path itself.
    pub fn reason(&self) -> String {
        match self {
            Self::Unset { name, .. } => format!("the environment has no variable {name}"),
            Self::Credentials { .. } => "a user name or a password is in it, expected an address without".to_owned(),
        }
    }

    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Unset { path, name } => {
                format!("set {name}, or write the path out; ./{path} is a file of that name")
            }
            Self::Credentials { .. } => "leave them out: secrets come from the environment, never from a \
                                         configuration or a command, which are kept with the run"
                .to_owned(),
        }
    }
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unset { path, .. } | Self::Credentials { address: path }) = self;
        write!(f, "{path}: {}", self.reason())
    }
}

impl std::error::Error for BadPath {}

/// `path` with a leading `~`, `$VAR` or `${VAR}` replaced, where it is the whole first part of it.
///
/// # Errors
/// The variable is not set, or it is an address with credentials.
pub fn expanded(path: &str) -> Result<String, BadPath> {
    if holds_credentials(path) {
        return Err(BadPath::Credentials { address: masked(path).into_owned() });
    }
    expanded_with(path, |name| match name {
        "~" => env::home_dir().and_then(|home| home.into_os_string().into_string().ok()),
        name => env::var(name).ok(),
    })
}

fn expanded_with(path: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, BadPath> {
    let (first, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
    let variable =
        first.strip_prefix('$').map(|name| name.strip_prefix('{').map_or(name, |name| name.trim_end_matches('}')));
    let is_name = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let name = match variable.filter(is_name) {
        Some(name) => name,
        None if first == "~" => first,
        None => return Ok(path.to_owned()),
    };
    let unset = || BadPath::Unset { path: path.to_owned(), name: if name == "~" { "HOME" } else { name }.to_owned() };
    Ok(value(name).ok_or_else(unset)? + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(path: &str) -> Result<String, BadPath> {
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

    #[test]
    fn an_address_with_a_password_is_refused_without_showing_it() {
        let error = expanded("https://me:secret@host/photos").expect_err("a password");
        assert!(error.to_string().starts_with("https://***@host/photos: a user name or a password"), "{error}");
        assert_eq!(expanded("https://host/photos@2x").as_deref(), Ok("https://host/photos@2x"));
    }
}
