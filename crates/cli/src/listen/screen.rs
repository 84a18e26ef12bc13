//! stderr: its capabilities, and whole lines above a progress bar.

use std::borrow::Cow;
use std::fmt;
use std::io::{IsTerminal, Write, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How to write to stderr, decided once at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// It is a terminal: lines may be redrawn.
    pub(crate) interactive: bool,
    /// Colour may be used.
    pub(crate) colour: bool,
}

impl Terminal {
    /// From stderr and the environment.
    pub(crate) fn detect() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self::decide(stderr().is_terminal(), variable("NO_COLOR").as_deref(), variable("TERM").as_deref())
    }

    /// `NO_COLOR` counts if it is not empty (no-color.org); a `dumb` terminal can neither redraw nor colour.
    fn decide(is_terminal: bool, no_color: Option<&str>, term: Option<&str>) -> Self {
        let interactive = is_terminal && term != Some("dumb");
        Self { interactive, colour: interactive && no_color.is_none_or(str::is_empty) }
    }
}

/// `text` without control characters but line feeds and tabs: a name from outside must not move the cursor.
pub(crate) fn tame(text: &str) -> Cow<'_, str> {
    let is_wild = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_wild) {
        return text.into();
    }
    text.chars().map(|c| if is_wild(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// The label at the start of a warning or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// In yellow.
    Warning,
    /// In red.
    Error,
}

/// stderr, for all threads.
pub(crate) struct Screen {
    terminal: Terminal,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    bar: Option<ProgressBar>,
}

impl Screen {
    /// The process's stderr.
    pub(crate) fn stderr() -> Self {
        Self::new(Terminal::detect(), Box::new(stderr()))
    }

    /// Any writer.
    pub(crate) fn new(terminal: Terminal, out: Box<dyn Write + Send>) -> Self {
        Self { terminal, state: Mutex::new(State { out, bar: None }) }
    }

    /// Writes a line, above the bar if there is one. A closed stderr must not end a run.
    pub(crate) fn line(&self, text: &str) {
        self.raw_line(&tame(text));
    }

    fn raw_line(&self, text: &str) {
        let State { out, bar } = &mut *self.lock();
        let mut write = || {
            let _ = writeln!(out, "{text}");
        };
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Writes a line that begins with a label, coloured if colours are allowed.
    pub(crate) fn labelled(&self, label: Label, text: &str) {
        let (word, colour) = match label {
            Label::Warning => ("warning:", 33),
            Label::Error => ("error:", 31),
        };
        let text = tame(text);
        if self.terminal.colour {
            self.raw_line(&format!("\x1b[1;{colour}m{word}\x1b[0m {text}"));
        } else {
            self.raw_line(&format!("{word} {text}"));
        }
    }

    /// Shows a bar below the lines from now on, if this is a terminal; returns it.
    pub(crate) fn show_bar(&self, first: u64, total: u64) -> Option<ProgressBar> {
        if !self.terminal.interactive {
            return None;
        }
        let bar = bar(self.terminal.colour, first, total);
        self.lock().bar = Some(bar.clone());
        Some(bar)
    }

    /// Leaves the bar in its last state and continues below it.
    pub(crate) fn leave_bar(&self) {
        let bar = self.lock().bar.take();
        if let Some(bar) = bar {
            bar.abandon();
            // indicatif leaves the cursor behind the bar.
            self.line("");
        }
    }

    /// Removes the bar.
    pub(crate) fn clear_bar(&self) {
        let bar = self.lock().bar.take();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

fn bar(colour: bool, first: u64, total: u64) -> ProgressBar {
    let template = if colour { "{pos}/{len} {bar:20.cyan/dim} {wide_msg}" } else { "{pos}/{len} {bar:20} {wide_msg}" };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_position(first);
    bar
}

#[cfg(test)]
pub(super) mod testing {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::sync::Arc;

    use super::*;

    /// The output of a screen that is no terminal.
    #[derive(Clone, Default)]
    pub(in super::super) struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        pub(in super::super) fn screen(&self) -> Arc<Screen> {
            Arc::new(Screen::new(Terminal { interactive: false, colour: false }, Box::new(self.clone())))
        }

        pub(in super::super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::testing::Page;
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

    #[test]
    fn labels_are_painted_where_colours_show() {
        let (plain, coloured) = (Page::default(), Page::default());
        plain.screen().labelled(Label::Warning, "disk full");
        assert_eq!(plain.text(), "warning: disk full\n");
        let screen = Screen::new(Terminal { interactive: true, colour: true }, Box::new(coloured.clone()));
        screen.labelled(Label::Error, "no disk");
        assert_eq!(coloured.text(), "\x1b[1;31merror:\x1b[0m no disk\n");
    }

    #[test]
    fn escape_codes_of_names_do_not_reach_a_terminal() {
        let page = Page::default();
        page.screen().line("a\x1b[2Jb\tc\r");
        page.screen().labelled(Label::Warning, "two\nlines \u{9b}31m");
        assert_eq!(page.text(), "a\\u{1b}[2Jb\tc\\r\nwarning: two\nlines \\u{9b}31m\n");
    }

    #[test]
    fn the_templates_of_the_bar_are_valid() {
        for colour in [false, true] {
            let bar = bar(colour, 3, 10);
            assert_eq!((bar.position(), bar.length()), (3, Some(10)));
        }
        ProgressStyle::with_template("{pos}/{len} {bar:20.cyan/dim} {wide_msg}").unwrap();
        ProgressStyle::with_template("{pos}/{len} {bar:20} {wide_msg}").unwrap();
    }
}
