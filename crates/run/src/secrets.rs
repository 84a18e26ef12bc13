//! Secrets stay out of what is shown or kept. A token is read from the environment or the hub's file and goes into a request's
//! header alone; but people also put one where it does not belong: into an address (`https://me:PASSWORD@host`), or behind
//! an option. Every message, log line and recorded command goes through [`masked`] at the edge of the program.

use std::borrow::Cow;

/// What stands in a secret's place.
const MASK: &str = "***";
/// How a token of the hub begins, and the fewest letters and digits that follow.
const TOKEN: (&str, usize) = ("hf_", 16);

/// `text` without the user names and passwords of addresses and without tokens of the hub.
pub fn masked(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((start, end)) = first_secret(rest) {
        shown.push_str(&rest[..start]);
        shown.push_str(MASK);
        rest = &rest[end..];
    }
    if shown.is_empty() && rest.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned(shown + rest) }
}

/// Whether an address holds a user name or a password.
pub fn holds_credentials(address: &str) -> bool {
    credentials(address).is_some()
}

/// Where the first secret is.
fn first_secret(text: &str) -> Option<(usize, usize)> {
    [credentials(text), token(text)].into_iter().flatten().min()
}

/// What stands between `://` and the last `@` before the host's end.
fn credentials(text: &str) -> Option<(usize, usize)> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`' | '<' | '>');
    let starts = text.match_indices("://").map(|(at, scheme)| at + scheme.len());
    let found = starts.filter_map(|start| {
        let authority = text[start..].split(ends).next().unwrap_or_default();
        let end = start + authority.rfind('@')?;
        (end > start && &text[start..end] != MASK).then_some((start, end))
    });
    found.min()
}

/// A token, from its first letter after the prefix on.
fn token(text: &str) -> Option<(usize, usize)> {
    let (prefix, least) = TOKEN;
    let found = text.match_indices(prefix).filter_map(|(at, _)| {
        let start = at + prefix.len();
        let is_word = text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
        let length = text[start..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        (is_word && length >= least).then_some((start, start + length))
    });
    found.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_a_host_and_tokens_are_masked_and_nothing_else_is() {
        for (text, want) in [
            ("https://me:secret@host/x.tar: no such file", "https://***@host/x.tar: no such file"),
            ("ftp://me@host, and http://a:b@c@d/", "ftp://***@host, and http://***@d/"),
            ("HF_TOKEN=hf_AbCdEfGhIjKlMnOpQr ddpm", "HF_TOKEN=hf_*** ddpm"),
            ("s3://hf_AbCdEfGhIjKlMnOpQr@bucket hf_AbCdEfGhIjKlMnOpQr", "s3://***@bucket hf_***"),
            ("https://host/@me/x, hf://me/model@main", "https://host/@me/x, hf://me/model@main"),
            ("half_hf_x and hf_transfer, self_hf_AbCdEfGhIjKlMnOpQr2", "half_hf_x and hf_transfer, self_hf_***"),
            ("://@host", "://@host"),
            ("", ""),
        ] {
            assert_eq!(masked(text), want);
            assert_eq!(masked(want), want, "again");
        }
    }

    #[test]
    fn an_address_with_credentials_is_recognised() {
        assert!(holds_credentials("https://me:secret@host/x") && holds_credentials("https://me@host"));
        assert!(!holds_credentials("https://host/a@b") && !holds_credentials("/data/me:x@y"));
    }
}
