//! The page: curves over the steps, with a line for each run above them and marks where a run turned.

use std::ops::Range;

use ddpm_run::{Turn, TurnKind};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::{
    Cartesian2d, ChartBuilder, ChartContext, Circle, Color as _, DrawingArea, DrawingBackend, FontTransform,
    IntoDrawingArea as _, IntoFont as _, LineSeries, PathElement, RGBColor, SVGBackend, Text, TextStyle, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::page::{FINE, Page, reduced};
use crate::curves::axis::{Scale, ends, even_ticks, label};
use crate::curves::curve::Curve;
use crate::output::short;

/// Width of the page, and height of its part below the legend, in pixels.
const PAGE: [u32; 2] = [1100, 560];
/// Height of a line of the legend.
const LINE: u32 = 22;
/// Left edge of title and legend.
const LEFT: u32 = 84;
/// Size of letters; a letter is smaller, as in SVG the size is that of a line.
const LETTERS: u32 = 16;
const TITLE: u32 = 20;
/// Turns whose text stands beside their mark; more would cover each other.
const TEXTS: usize = 8;
/// The longest text in the picture, in letters.
const LONGEST: usize = 90;

const INK: RGBColor = RGBColor(50, 50, 50);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const GREY: RGBColor = RGBColor(130, 130, 130);
/// Okabe and Ito's colours that stand out on white: told apart by every eye.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<Axis, Axis>>;
type Drawn<B> = plotters::prelude::DrawResult<(), B>;

/// What is drawn.
pub(super) struct Figure {
    title: String,
    /// Beside the vertical axis.
    quantity: String,
    scale: Scale,
    pub(super) curves: Vec<Curve>,
    heights: Range<f64>,
}

impl Figure {
    /// What is drawn of at least one curve, each with points; `quantity` says what it shows, with its unit.
    pub(super) fn new(title: String, quantity: String, scale: Scale, curves: Vec<Curve>) -> Self {
        let heights = heights(scale, &curves);
        Self { title, quantity, scale, curves, heights }
    }

    /// As an SVG document.
    pub(super) fn svg(&self) -> Result<String, String> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, self.size()).into_drawing_area();
        self.draw(&area, 1).map_err(|error| error.to_string())?;
        drop(area);
        Ok(text)
    }

    /// As pixels.
    pub(super) fn picture(&self) -> Result<image::RgbImage, String> {
        let (width, height) = self.size();
        let mut fine = image::RgbImage::new(width * FINE, height * FINE);
        self.draw(&Page::on(&mut fine).into_drawing_area(), FINE).map_err(|error| error.to_string())?;
        Ok(reduced(&fine))
    }

    fn size(&self) -> (u32, u32) {
        (PAGE[0], PAGE[1] + self.header())
    }

    /// Height of title and legend.
    fn header(&self) -> u32 {
        let marks = self.curves.iter().any(|curve| !curve.turns.is_empty());
        24 + LINE * (1 + self.curves.len() as u32 + u32::from(marks))
    }

    /// Draws everything, each length `fine` times as large.
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, fine: u32) -> Drawn<B> {
        area.fill(&WHITE)?;
        let (header, rest) = area.split_vertically(self.header() * fine);
        self.draw_header(&header, fine)?;
        let steps = self.steps();
        let heights = &self.heights;
        let x_axis = Axis::new(steps.clone(), even_ticks(steps.start, steps.end));
        let y_axis = Axis::new(heights.clone(), self.scale.ticks(heights));
        let mut chart = ChartBuilder::on(&rest)
            .margin_right(28 * fine)
            .margin_bottom(8 * fine)
            .x_label_area_size(48 * fine)
            .y_label_area_size(LEFT * fine)
            .build_cartesian_2d(x_axis, y_axis)?;
        let letters = text(LETTERS * fine, INK);
        chart
            .configure_mesh()
            .bold_line_style(FAINT.stroke_width(fine))
            .axis_style(GREY.stroke_width(fine))
            .label_style(letters.clone())
            .axis_desc_style(letters)
            .x_desc("step")
            .y_desc(&*self.quantity)
            .x_label_formatter(&|step| label(*step))
            .y_label_formatter(&|height| self.scale.label(*height))
            .draw()?;
        for (curve, colour) in self.coloured() {
            self.draw_points(&mut chart, curve, colour, fine)?;
        }
        for (curve, colour) in self.coloured() {
            self.draw_turns(&chart, curve, colour, fine)?;
            let heights_of = curve.smooth.iter().filter_map(|point| self.place(*point));
            chart.draw_series(LineSeries::new(heights_of, colour.stroke_width(2 * fine)))?;
            // A curve of one point has no length.
            if let [only] = curve.smooth[..] {
                chart.draw_series(self.place(only).map(|place| Circle::new(place, 4 * fine, colour.filled())))?;
            }
        }
        area.present()
    }

    fn coloured(&self) -> impl Iterator<Item = (&Curve, RGBColor)> {
        self.curves.iter().zip(COLOURS.into_iter().cycle())
    }

    fn draw_header<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, fine: u32) -> Drawn<B> {
        let at = |x: u32, y: u32| ((x * fine).cast_signed(), (y * fine).cast_signed());
        area.draw(&Text::new(short(&self.title, LONGEST), at(LEFT, 14), text(TITLE * fine, INK)))?;
        for ((curve, colour), row) in self.coloured().zip(0..) {
            let middle = 14 + LINE * (row + 1) + LINE / 2;
            let sign = vec![at(LEFT, middle), at(LEFT + 24, middle)];
            area.draw(&PathElement::new(sign, colour.stroke_width(3 * fine)))?;
            let (step, last) = curve.last();
            let words = short(&format!("{}: {} at step {step}", curve.name, brief(last)), LONGEST);
            area.draw(&Text::new(words, at(LEFT + 32, middle), centred(fine)))?;
        }
        let kinds = [TurnKind::Resumed, TurnKind::Accepted, TurnKind::WentBack];
        let has = |kind: &TurnKind| self.curves.iter().flat_map(|curve| &curve.turns).any(|turn| turn.kind == *kind);
        let (mut left, middle) = (LEFT, 14 + LINE * (self.curves.len() as u32 + 1) + LINE / 2);
        for kind in kinds.into_iter().filter(has) {
            let (x, y) = at(left + 6, middle);
            for shape in sign(kind, fine) {
                let path = shape.into_iter().map(|(dx, dy)| (x + dx, y + dy)).collect::<Vec<_>>();
                area.draw(&PathElement::new(path, GREY.stroke_width(2 * fine)))?;
            }
            let words = in_words(kind);
            area.draw(&Text::new(words, at(left + 18, middle), centred(fine)))?;
            left += 18 + 8 * words.len() as u32 + 16;
        }
        Ok(())
    }

    /// The logged points, faint behind the smooth line; where they are not more than that, the line shows them.
    fn draw_points<B: DrawingBackend>(
        &self,
        chart: &mut Chart<'_, B>,
        curve: &Curve,
        colour: RGBColor,
        fine: u32,
    ) -> Drawn<B> {
        if curve.points == curve.smooth {
            return Ok(());
        }
        // A few stand alone; many make a cloud.
        let (radius, ink) = if curve.points.len() < 400 { (2 * fine, 0.35) } else { (fine, 0.22) };
        let places = curve.points.iter().filter_map(|point| self.place(*point));
        let dots = places.map(|place| Circle::new(place, radius, colour.mix(ink).filled()));
        chart.draw_series(dots).map(drop)
    }

    /// A line down at each turn, with its sign on the axis and, where there are few, what was changed.
    fn draw_turns<B: DrawingBackend>(
        &self,
        chart: &Chart<'_, B>,
        curve: &Curve,
        colour: RGBColor,
        fine: u32,
    ) -> Drawn<B> {
        let area = chart.plotting_area();
        let heights = &self.heights;
        let loud = |turn: &Turn| turn.kind != TurnKind::Resumed;
        let with_text = self.curves.len() == 1 && curve.turns.iter().filter(|turn| loud(turn)).count() <= TEXTS;
        for turn in &curve.turns {
            let [top, bottom] = [heights.end, heights.start].map(|height| (turn.step as f64, height));
            area.draw(&PathElement::new(vec![top, bottom], colour.mix(0.35).stroke_width(fine)))?;
            let base = area.map_coordinate(&bottom);
            let backend = area.strip_coord_spec();
            let (left, above) = backend.get_base_pixel();
            for shape in sign(turn.kind, fine) {
                let lift = 9 * fine.cast_signed();
                let path = shape.into_iter().map(|(dx, dy)| (base.0 - left + dx, base.1 - above + dy - lift));
                backend.draw(&PathElement::new(path.collect::<Vec<_>>(), colour.stroke_width(2 * fine)))?;
            }
            if with_text && loud(turn) {
                let words = if turn.kind == TurnKind::WentBack { "went back" } else { &turn.what };
                let style = turned_text(fine);
                let (x, y) = area.map_coordinate(&top);
                let place = (x - left + 4 * fine.cast_signed(), y - above + 6 * fine.cast_signed());
                backend.draw(&Text::new(short(words, LONGEST), place, style))?;
            }
        }
        Ok(())
    }

    /// Where a point is drawn: within the page, if it has a place at all.
    fn place(&self, (step, value): (f64, f64)) -> Option<(f64, f64)> {
        let heights = &self.heights;
        Some((step, self.scale.height(value)?.clamp(heights.start, heights.end)))
    }

    fn steps(&self) -> Range<f64> {
        let (first, last) = ends(self.curves.iter().flat_map(|curve| &curve.smooth).map(|point| point.0));
        let turns = self.curves.iter().flat_map(|curve| &curve.turns).map(|turn| turn.step as f64);
        let first = if first < 0.1 * last { 0.0 } else { first };
        let last = turns.fold(last, f64::max);
        if last > first { first..last } else { first - 1.0..last + 1.0 }
    }
}

/// From the lowest to the highest of the smooth lines, and nearly all of the points; a single outlier may lie on the edge.
fn heights(scale: Scale, curves: &[Curve]) -> Range<f64> {
    let height = |point: &(f64, f64)| scale.height(point.1);
    let lines = curves.iter().flat_map(|curve| &curve.smooth).filter_map(height);
    let mut points: Vec<f64> = curves.iter().flat_map(|curve| &curve.points).filter_map(height).collect();
    points.sort_by(f64::total_cmp);
    let (rare, last) = (points.len() / 100, points.len().saturating_sub(1));
    let nearly_all = [points.get(rare), points.get(last - rare)].into_iter().flatten().copied();
    let (low, high) = ends(lines.chain(nearly_all));
    if !low.is_finite() {
        return 0.0..1.0; // None has a logarithm.
    }
    let margin = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(1e-12) };
    low - margin..high + margin
}

/// An axis of plotters with numbers at places of our choice.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(range: Range<f64>, ticks: Vec<f64>) -> Self {
        Self { range, ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (f64::from(to - from) * share).round() as i32
    }

    /// Plotters asks again for lines between them: there are none.
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// The sign of a turn around a point: a bar, a lozenge, a cross.
fn sign(kind: TurnKind, fine: u32) -> Vec<Vec<(i32, i32)>> {
    let lines: Vec<Vec<(i32, i32)>> = match kind {
        TurnKind::Resumed => vec![vec![(0, -6), (0, 6)]],
        TurnKind::Accepted => vec![vec![(0, -6), (5, 0), (0, 6), (-5, 0), (0, -6)]],
        TurnKind::WentBack => vec![vec![(-5, -5), (5, 5)], vec![(-5, 5), (5, -5)]],
    };
    let larger = |(x, y): (i32, i32)| (x * fine.cast_signed(), y * fine.cast_signed());
    lines.into_iter().map(|line| line.into_iter().map(larger).collect()).collect()
}

/// What a sign means.
pub(super) fn in_words(kind: TurnKind) -> &'static str {
    match kind {
        TurnKind::Resumed => "resumed",
        TurnKind::Accepted => "accepted a change",
        TurnKind::WentBack => "went back after a divergence",
    }
}

fn text(size: u32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour)
}

fn centred(fine: u32) -> TextStyle<'static> {
    text(LETTERS * fine, INK).pos(Pos::new(HPos::Left, VPos::Center))
}

fn turned_text(fine: u32) -> TextStyle<'static> {
    ("sans-serif", LETTERS * fine)
        .into_font()
        .transform(FontTransform::Rotate90)
        .color(&GREY)
        .pos(Pos::new(HPos::Left, VPos::Bottom))
}

/// Four digits, or all of a larger number's.
pub(super) fn brief(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1e-3 => format!("{value:.3e}"),
        size => format!("{value:.*}", (3 - size.log10().floor() as i32).clamp(0, 6) as usize),
    }
}
