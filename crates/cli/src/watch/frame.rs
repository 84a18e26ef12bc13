//! One frame: what is seen of a run, laid out in cells. The same for a terminal and for plain text.

use std::time::Duration;

use ddpm_run::RunState;
use ddpm_run::metrics::waits_for;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::{Constraint, Layout, Rect};
use ratatui_core::style::{Modifier, Style};
use ratatui_core::symbols::Marker;
use ratatui_core::text::{Line, Span};
use ratatui_core::widgets::Widget as _;
use ratatui_widgets::block::Block;
use ratatui_widgets::chart::{Axis, Chart, Dataset, GraphType};
use ratatui_widgets::gauge::LineGauge;

use super::picture::{self, Ink};
use super::seen::Seen;
use crate::curves::axis::{Scale, ends, label};
use crate::curves::curve::{Curve, Points};
use crate::listen::format_duration;
use crate::listen::screen::tame;

/// A running process that has not written its status for so long is worth a word.
const SILENT: Duration = Duration::from_secs(60);
/// The smallest chart that can be read, in cells.
const CHART: (u16, u16) = (30, 6);

const BLUE: [u8; 3] = [86, 180, 233];
const GREY: [u8; 3] = [120, 120, 120];
const ORANGE: [u8; 3] = [230, 159, 0];
const GREEN: [u8; 3] = [0, 158, 115];
const RED: [u8; 3] = [213, 94, 0];

/// Draws what is seen into all of `buffer`.
pub(super) fn draw(seen: &Seen, ink: Ink, buffer: &mut Buffer) {
    let area = buffer.area;
    let warnings = seen.warnings.len().min(usize::from(area.height / 5).max(1)) as u16;
    let foot = if warnings == 0 { 0 } else { warnings + 1 };
    let [head, bar, numbers, middle, below] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Min(0),
        Constraint::Length(foot),
    ])
    .areas(area);
    draw_head(seen, ink, head, buffer);
    draw_bar(seen, ink, bar, buffer);
    draw_numbers(seen, ink, numbers, buffer);
    let side = picture_width(seen, middle);
    let [chart, sample] = Layout::horizontal([Constraint::Min(0), Constraint::Length(side)]).areas(middle);
    draw_losses(seen, ink, chart, buffer);
    draw_sample(seen, ink, sample, buffer);
    draw_warnings(seen, ink, below, buffer);
}

fn paint(ink: Ink, rgb: [u8; 3]) -> Style {
    Style::new().fg(ink.colour(rgb))
}

fn put(line: &Line<'_>, area: Rect, buffer: &mut Buffer) {
    if area.height > 0 {
        buffer.set_line(area.x, area.y, line, area.width);
    }
}

/// Name, state, and how long ago its process said that.
fn draw_head(seen: &Seen, ink: Ink, area: Rect, buffer: &mut Buffer) {
    let status = seen.view.status.as_ref();
    let state = seen.view.state;
    let phase = status.filter(|_| seen.is_running()).map(|status| status.phase.to_string());
    let colour = match state {
        RunState::Running | RunState::Done => GREEN,
        RunState::Stopped | RunState::Idle => ORANGE,
        RunState::Failed | RunState::Killed => RED,
    };
    let where_to = status.map(|status| format!("  process {} on {}", status.pid, status.host)).unwrap_or_default();
    let silent = seen.age.filter(|age| *age > SILENT && seen.is_running());
    let silence = silent.map(|age| format!("  last heard of {} ago", format_duration(age))).unwrap_or_default();
    let line = Line::from(vec![
        Span::styled(tame(&seen.name).into_owned(), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw("  "),
        Span::styled(phase.unwrap_or_else(|| state.to_string()), paint(ink, colour)),
        Span::styled(tame(&where_to).into_owned(), paint(ink, GREY)),
        Span::styled(silence, paint(ink, RED)),
    ]);
    put(&line, area, buffer);
}

/// How far it is.
fn draw_bar(seen: &Seen, ink: Ink, area: Rect, buffer: &mut Buffer) {
    let step = seen.view.step();
    let status = seen.view.status.as_ref();
    let Some(steps) = status.map(|status| status.steps).filter(|steps| *steps > 0) else {
        put(&Line::raw(format!("step {step}")), area, buffer);
        return;
    };
    let share = (step as f64 / steps as f64).clamp(0.0, 1.0);
    let left =
        status.filter(|_| seen.is_running()).and_then(|status| Duration::try_from_secs_f64(status.seconds_left?).ok());
    let left = left.map(|left| format!(", {} left", format_duration(left))).unwrap_or_default();
    LineGauge::default()
        .label(format!("step {step}/{steps}, {:.0}%{left}", 100.0 * share))
        .filled_style(paint(ink, BLUE))
        .unfilled_style(paint(ink, GREY))
        .filled_symbol("━")
        .unfilled_symbol(if ink == Ink::Plain { "╌" } else { "━" })
        .ratio(share)
        .render(area, buffer);
}

/// The last logged numbers.
fn draw_numbers(seen: &Seen, ink: Ink, area: Rect, buffer: &mut Buffer) {
    let number = |name: &str, shown: &dyn Fn(f64) -> String| seen.number(name).map(shown);
    let pairs = [
        ("loss", number("loss", &|loss| format!("{loss:.4}"))),
        ("images/s", number("images_per_s", &|speed| format!("{speed:.0}"))),
        ("lr", number("lr", &label)),
        ("gradient", number("grad_norm", &|norm| format!("{norm:.3}"))),
        ("data wait", number("data_wait", &|share| data_wait(share, seen.number("reading")))),
        ("memory", number("memory_bytes", &|bytes| ddpm_run::memory::format_bytes(bytes as u64))),
        ("skipped", number("skipped", &|count| format!("{count:.0} steps"))),
    ];
    let mut spans = Vec::new();
    for (name, value) in pairs.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        spans.push(Span::styled(format!("{name} "), paint(ink, GREY)));
        spans.push(Span::raw(format!("{value}   ")));
    }
    if spans.is_empty() {
        spans.push(Span::styled("nothing logged yet", paint(ink, GREY)));
    }
    put(&Line::from(spans), area, buffer);
    let error = seen.view.status.as_ref().filter(|_| !seen.is_running()).and_then(|status| status.error.as_deref());
    if let Some(error) = error {
        let error = tame(&error.replace('\n', " ")).into_owned();
        put(&Line::styled(error, paint(ink, RED)), Rect { y: area.y + 1, height: 1, ..area }, buffer);
    }
}

/// The share, and what was waited for.
fn data_wait(share: f64, reading: Option<f64>) -> String {
    let what = waits_for(share, reading).map_or_else(String::new, |what| format!(" (for {what})"));
    format!("{:.0}%{what}", 100.0 * share)
}

/// The losses over the steps, smooth over the logged ones.
fn draw_losses(seen: &Seen, ink: Ink, area: Rect, buffer: &mut Buffer) {
    if area.width < CHART.0 || area.height < CHART.1 || seen.losses.is_empty() {
        return;
    }
    let curve = Curve::new(String::new(), &seen.losses, None, Vec::new());
    let scale = Scale::of(curve.smooth.iter().map(|point| point.1));
    let placed = |points: &Points| -> Points {
        points.iter().filter_map(|(step, loss)| Some((*step, scale.height(*loss)?))).collect()
    };
    let (points, smooth) = (placed(&curve.points), placed(&curve.smooth));
    let (low, high) = ends(smooth.iter().chain(&points).map(|point| point.1));
    let (first, last) = ends(smooth.iter().map(|point| point.0));
    let (last, low, high) = (last.max(first + 1.0), low, if high > low { high } else { low + 1.0 });
    let dataset = |data, marker, rgb| Dataset::default().data(data).marker(marker).style(paint(ink, rgb));
    let datasets = vec![
        dataset(&points, Marker::Braille, GREY),
        dataset(&smooth, Marker::Braille, BLUE).graph_type(GraphType::Line),
    ];
    // Without colours the points would hide the line.
    let datasets = if ink == Ink::Plain { datasets.into_iter().skip(1).collect() } else { datasets };
    let heights = [low, f64::midpoint(low, high), high];
    let rounded = |height: f64| scale.label(height).chars().take(7).collect::<String>();
    let steps = [first, f64::midpoint(first, last).round(), last];
    Chart::new(datasets)
        .block(Block::bordered().title("loss").border_style(paint(ink, GREY)))
        .x_axis(Axis::default().bounds([first, last]).labels(steps.map(label)).style(paint(ink, GREY)))
        .y_axis(Axis::default().bounds([low, high]).labels(heights.map(rounded)).style(paint(ink, GREY)))
        .render(area, buffer);
}

/// The columns of the picture and its frame: at most half of the room.
fn picture_width(seen: &Seen, area: Rect) -> u16 {
    let Some(sample) = seen.sample.as_ref().filter(|_| area.height > 3 && area.width >= 2 * CHART.0) else { return 0 };
    let (width, height) = sample.picture.dimensions();
    let rows = u32::from(area.height - 2);
    let columns = (2 * rows * width / height.max(1)).max(12) as u16;
    (columns + 2).min(area.width / 2)
}

fn draw_sample(seen: &Seen, ink: Ink, area: Rect, buffer: &mut Buffer) {
    let Some(sample) = seen.sample.as_ref().filter(|_| area.width > 2 && area.height > 2) else { return };
    let name = sample.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let block = Block::bordered().title(tame(&name).into_owned()).border_style(paint(ink, GREY));
    let inner = block.inner(area);
    block.render(area, buffer);
    picture::draw(&sample.picture, inner, ink, buffer);
}

fn draw_warnings(seen: &Seen, ink: Ink, area: Rect, buffer: &mut Buffer) {
    if area.height == 0 {
        return;
    }
    put(&Line::styled("last warnings", paint(ink, GREY)), area, buffer);
    for (warning, row) in seen.warnings.iter().zip(1..area.height) {
        let time = warning.time.get(..19).unwrap_or(&warning.time).replace('T', " ");
        let message = tame(&warning.message.replace('\n', " ")).into_owned();
        let line = Line::from(vec![
            Span::styled(format!("{}  step {}  ", tame(&time), warning.step), paint(ink, GREY)),
            Span::styled(message, paint(ink, ORANGE)),
        ]);
        put(&line, Rect { y: area.y + row, ..area }, buffer);
    }
}

/// The cells as lines, without spaces at their ends.
pub(super) fn text_of(buffer: &Buffer) -> String {
    let rows = buffer.content().chunks(usize::from(buffer.area.width).max(1));
    let lines = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n");
    lines.collect::<String>().trim_end().to_owned()
}
