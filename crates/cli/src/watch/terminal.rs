//! The terminal while a run is watched: its other screen, without echo, given back whatever happens.
//!
//! Only what changed is written, in one piece, so that a slow line shows whole frames. Escape codes are those that every terminal since
//! the VT100 and xterm knows; colours come from [`Ink`](super::picture::Ink).

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui_core::buffer::{Buffer, Cell};
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// The other screen, without a cursor, empty.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// Back, with all as it was.
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";
/// No terminal is larger, whatever it says.
const LARGEST: (u16, u16) = (500, 200);

/// See the module.
pub(super) struct Terminal {
    before: Termios,
    shown: Buffer,
    /// Set by signals that ask for an end.
    over: Arc<AtomicBool>,
}

impl Terminal {
    /// Takes the terminal of this process.
    ///
    /// # Errors
    /// There is none, or it refuses.
    pub(super) fn take() -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&over))?;
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        // From here on dropping it gives the terminal back.
        let taken = Self { before, shown: Buffer::default(), over };
        write(ENTER)?;
        Ok(taken)
    }

    /// Shows `frame`, which is of the terminal's [`size`].
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn show(&mut self, frame: Buffer) -> io::Result<()> {
        let mut text = String::new();
        if frame.area != self.shown.area {
            text += "\x1b[0m\x1b[2J";
            self.shown = Buffer::empty(frame.area);
        }
        encode(&self.shown.diff(&frame), &mut text);
        self.shown = frame;
        write(&text)
    }

    /// Waits for so long; whether the watch is to end: a key was pressed that says so, the terminal was closed, or a signal came.
    pub(super) fn is_left_within(&self, wait: Duration) -> bool {
        let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let input = stdin();
        let mut waiting = [PollFd::new(&input, PollFlags::IN)];
        let left = match poll(&mut waiting, Some(&wait)) {
            Ok(0) | Err(Errno::INTR) => false,
            Ok(_) => !waiting[0].revents().contains(PollFlags::IN) || is_left(),
            Err(_) => true,
        };
        left || self.over.load(Ordering::Relaxed)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs neither.
        let _ = write(LEAVE);
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Columns and rows of the terminal on stdout, if there is one.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.min(LARGEST.0), size.ws_row.min(LARGEST.1)))
}

/// An empty frame of this size.
pub(super) fn blank((columns, rows): (u16, u16)) -> Buffer {
    Buffer::empty(Rect::new(0, 0, columns, rows))
}

/// Reads what was typed: q and Ctrl-C leave, so does the end of the input.
fn is_left() -> bool {
    let mut typed = [0; 64];
    match rustix::io::read(stdin(), &mut typed) {
        Ok(0) => true,
        Ok(count) => typed[..count].iter().any(|key| matches!(key, b'q' | b'Q' | 3 | 4)),
        Err(error) => error != Errno::INTR && error != Errno::AGAIN,
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// What a terminal has to be told to show these cells.
fn encode(cells: &[(u16, u16, &Cell)], text: &mut String) {
    let (mut place, mut look) = (None, None);
    for (x, y, cell) in cells {
        if place != Some((*x, *y)) {
            let _ = write!(text, "\x1b[{};{}H", y + 1, x + 1);
        }
        let wanted = (cell.fg, cell.bg, cell.modifier.contains(Modifier::BOLD));
        if look != Some(wanted) {
            let bold = if wanted.2 { ";1" } else { "" };
            let _ = write!(text, "\x1b[0{bold}{}{}m", colour(38, wanted.0), colour(48, wanted.1));
            look = Some(wanted);
        }
        text.push_str(cell.symbol());
        // A wide letter moves the cursor further: the next cell is placed anew.
        place = cell.symbol().is_ascii().then_some((x + 1, *y));
    }
}

/// The part of a code that sets a colour, of letters (38) or behind them (48).
fn colour(which: u8, colour: Color) -> String {
    match colour {
        Color::Rgb(r, g, b) => format!(";{which};2;{r};{g};{b}"),
        Color::Indexed(number) => format!(";{which};5;{number}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use ratatui_core::style::Style;

    use super::*;

    #[test]
    fn only_what_changed_is_written_with_its_colours() {
        let mut next = blank((10, 2));
        next.set_string(3, 1, "ab", Style::new().fg(Color::Indexed(45)));
        let mut text = String::new();
        encode(&blank((10, 2)).diff(&next), &mut text);
        assert_eq!(text, "\x1b[2;4H\x1b[0;38;5;45mab");
    }

    #[test]
    fn escape_codes_in_a_name_never_reach_the_terminal() {
        let mut next = blank((20, 1));
        next.set_string(0, 0, "a\x1b[2Jb", Style::new());
        let mut text = String::new();
        encode(&blank((20, 1)).diff(&next), &mut text);
        assert!(!text.contains("\x1b[2J"), "{text:?}");
    }
}
