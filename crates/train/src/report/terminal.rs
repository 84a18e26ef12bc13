//! What stderr can show.

use std::io::{IsTerminal, stderr};

/// How to write to stderr, decided once at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// A person watches: lines may be redrawn.
    pub interactive: bool,
    /// Colour may be used.
    pub colour: bool,
}

impl Terminal {
    /// From stderr and the environment.
    pub fn detect() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self::decide(stderr().is_terminal(), variable("NO_COLOR").as_deref(), variable("TERM").as_deref())
    }

    /// `NO_COLOR` counts if it is not empty (no-color.org); a `dumb` terminal can neither redraw nor colour.
    fn decide(is_terminal: bool, no_color: Option<&str>, term: Option<&str>) -> Self {
        let interactive = is_terminal && term != Some("dumb");
        Self { interactive, colour: interactive && no_color.is_none_or(str::is_empty) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_needs_a_terminal_and_no_objection() {
        let decide = |is_terminal, no_color, term| {
            let Terminal { interactive, colour } = Terminal::decide(is_terminal, no_color, term);
            (interactive, colour)
        };
        assert_eq!(decide(true, None, Some("xterm")), (true, true));
        assert_eq!(decide(true, Some(""), None), (true, true));
        assert_eq!(decide(true, Some("1"), Some("xterm")), (true, false));
        assert_eq!(decide(true, None, Some("dumb")), (false, false));
        assert_eq!(decide(false, None, Some("xterm")), (false, false));
    }
}
