//! `ddpm plot`: curves of one or several runs, as PNG or SVG.
//!
//! plotters lays out axes and writes SVG; letters of a PNG are compiled in (`page`), so no font has to be installed.

mod chart;
mod page;

use std::path::{Path, PathBuf};

use ddpm_run::durable::{io_help, replace_file};
use ddpm_run::{RunView, Turn, history};
use ddpm_train::report::pictures;
use serde::Serialize;

use crate::args::{PlotArgs, PlotScale};
use crate::curves::axis::Scale;
use crate::curves::curve::{Curve, Points};
use crate::failure::{ExitCode, Failure};
use crate::output::Output;
use crate::places::{Kind, Place, data_of_root, free_name, is_svg, prepare};
use crate::runs::{names_of, open_run, unreadable};
use chart::{Figure, brief, in_words};

/// The result.
#[derive(Serialize)]
struct Document<'a> {
    plot: &'a Path,
    key: &'a str,
    curves: Vec<Line<'a>>,
}

/// A curve of it.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    points: usize,
    last_step: f64,
    /// Smoothed.
    last_value: f64,
    turns: &'a [Turn],
}

/// Draws the curves.
pub(super) fn run(args: &PlotArgs, output: &Output) -> Result<(), Failure> {
    let out = args.out.clone().unwrap_or_else(|| free_name(&args.key.replace(['.', '/'], "-"), "png"));
    let runs: Vec<RunView> = args.runs.iter().map(|root| open_run(root)).collect::<Result<_, _>>()?;
    let place = Place { option: "--out", path: &out, kind: Kind::Plot };
    runs.iter().filter_map(|run| data_of_root(run.paths.root())).try_for_each(|data| place.refuse_inside(&data))?;
    prepare(&[place])?;
    let mut curves = Vec::new();
    for (run, name) in runs.iter().zip(names_of(&runs)) {
        let points = points(run, &args.key)?;
        curves.push(Curve::new(name, &points, args.smooth, run.record.turns()));
    }
    let figure = figure(args, curves);
    write(&figure, &out)?;
    let lines: Vec<Line<'_>> = figure.curves.iter().map(Line::of).collect();
    let document = Document { plot: &out, key: &args.key, curves: lines };
    output.result(&document, || text(&document))
}

/// What a run has logged of `key`: at least one point.
fn points(run: &RunView, key: &str) -> Result<Points, Failure> {
    let (path, mut points) = (run.paths.metrics(), Points::new());
    let read = history::read(&path, |step, record| {
        points.extend(history::number(&record, key).map(|value| (step as f64, value)));
    });
    read.map_err(|error| unreadable(&path, &error))?;
    if points.is_empty() { Err(nothing_logged(run, key)) } else { Ok(points) }
}

fn figure(args: &PlotArgs, curves: Vec<Curve>) -> Figure {
    let scale = match args.scale {
        PlotScale::Auto => Scale::of(curves.iter().flat_map(|curve| &curve.smooth).map(|point| point.1)),
        PlotScale::Linear => Scale::Linear,
        PlotScale::Log => Scale::Log,
    };
    let whose = match &curves[..] {
        [only] => only.name.clone(),
        many => format!("{} runs", many.len()),
    };
    let quantity = quantity(&args.key);
    let title = format!("{} of {whose}", quantity.split(',').next().unwrap_or_default());
    Figure::new(title, quantity, scale, curves)
}

/// What a key shows, with its unit.
fn quantity(key: &str) -> String {
    match key.rsplit('.').next().unwrap_or(key) {
        "lr" => "learning rate".to_owned(),
        "grad_norm" => "norm of the gradient".to_owned(),
        "images_per_s" => "speed, images/s".to_owned(),
        "data_wait" => "waiting for data, share of the time".to_owned(),
        "queue" => "batches that wait for the step".to_owned(),
        "file_bytes_per_s" => "images read, bytes/s".to_owned(),
        "decoded_per_s" => "images decoded, images/s".to_owned(),
        "reading" => "reading, share of the loader's work".to_owned(),
        name if name.ends_with("_bytes") => format!("{}, bytes", name.trim_end_matches("_bytes")),
        _ => key.to_owned(),
    }
}

fn write(figure: &Figure, out: &Path) -> Result<(), Failure> {
    let not_drawn = |why: String| Failure::new(ExitCode::Other, format!("the plot cannot be drawn: {why}"));
    if !is_svg(out) {
        let picture = figure.picture().map_err(not_drawn)?;
        return Ok(pictures::write(out, &pictures::encode(&picture)?)?);
    }
    let svg = figure.svg().map_err(not_drawn)?;
    replace_file(out, svg.as_bytes()).map_err(|error| {
        let message = format!("--out {}: cannot be written", out.display());
        Failure::caused_by(ExitCode::Other, message, &error).hint(io_help(&error, out))
    })
}

impl<'a> Line<'a> {
    fn of(curve: &'a Curve) -> Self {
        let (last_step, last_value) = curve.last();
        Self { name: &curve.name, points: curve.logged, last_step, last_value, turns: &curve.turns }
    }
}

fn text(document: &Document<'_>) -> String {
    let mut text = String::new();
    for Line { name, points, last_step, last_value, turns } in &document.curves {
        text += &format!("{name}: {points} points, {} = {} at step {last_step}\n", document.key, brief(*last_value));
        for Turn { step, kind, what } in *turns {
            let what = if what.is_empty() { String::new() } else { format!(": {what}") };
            text += &format!("  step {step}: {}{what}\n", in_words(*kind));
        }
    }
    text + &format!("plot: {}", document.plot.display())
}

/// The refusal of a key that a run has not logged.
fn nothing_logged(run: &RunView, key: &str) -> Failure {
    let mut names = Vec::new();
    let path: PathBuf = run.paths.metrics();
    // The names are only a help.
    let _ = history::read(&path, |_, record| {
        for name in history::names(&record) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    });
    let failure = Failure::new(ExitCode::Usage, format!("{}: no number `{key}` was logged", path.display()));
    match names.is_empty() {
        true => failure.hint("a run logs every log.every steps, unless log.jsonl = false"),
        false => failure.hint(format!("logged are {}", names.join(", "))),
    }
}
