//! Commands as a user would type them.

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
