//! An error and its causes, as text.

use std::error::Error;

/// An error and its causes, in one line.
pub(crate) fn in_one_line(error: &(dyn Error + 'static)) -> String {
    chain(Some(error)).join(": ")
}

/// The messages of an error and its sources, outermost first.
///
/// Many libraries repeat the text of the source in their own; such a repetition is left out.
pub fn chain(first: Option<&(dyn Error + 'static)>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut next = first;
    while let Some(error) = next {
        let text = error.to_string();
        if causes.last().is_none_or(|last| !last.ends_with(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_cause_that_repeats_its_source_is_reported_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading: {0}")]
        struct Repeats(#[source] io::Error);
        let error = Repeats(io::Error::other("gone"));
        assert_eq!(chain(Some(&error)), ["reading: gone"]);
    }
}
