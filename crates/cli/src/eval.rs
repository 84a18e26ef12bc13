//! `ddpm eval`.

use std::path::Path;

use ddpm_train::eval::images::{EvalImages, Selection};
use ddpm_train::eval::nll::{Nll, NllRequest, evaluate, passes};
use ddpm_train::exchange::Model;
use ddpm_train::report::pictures;
use ddpm_train::report::plot::{Curve, Page};
use image::RgbImage;
use serde::Serialize;

use super::args::NllArgs;
use super::places::{Kind, Place, prepare};
use super::{Align, Output, Table};
use crate::failure::{Failure, Outcome};

/// Smaller terms are drawn at this value: a logarithmic axis has no zero.
const LOWEST: f64 = 1e-12;

/// The document of `eval nll`.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    nll: &'a Nll,
    model: &'a Path,
    data: &'a str,
    plot: Option<&'a Path>,
}

/// Evaluates and prints the bound with its parts.
pub(super) fn nll(args: &NllArgs, output: &Output) -> Result<Outcome, Failure> {
    let device = args.device.open()?;
    let model = Model::open(&args.model, args.raw, &device)?.with_variance(args.variance)?;
    let spacing = args.spacing.clone().unwrap_or_default();
    let kept = spacing.kept_timesteps(args.steps, model.process.schedule().len())?;
    let selection = Selection { source: &args.data, split: args.split.as_deref(), num: args.num, seed: args.seed };
    let images = EvalImages::open(&selection, &model.config)?.labelled_as(model.class_names())?;
    let plot_place = args.plot.as_deref().map(|path| Place { option: "--plot", path, kind: Kind::Png });
    plot_place.map_or(Ok(()), |place| place.refuse_inside(Path::new(&args.data)))?;
    prepare(&plot_place.into_iter().collect::<Vec<_>>())?;
    let request = NllRequest { kept: &kept, batch_size: args.batch_size, seed: args.seed };

    let mut counter = output.counter(passes(&images, &request), "passes");
    let span = tracing::debug_span!("eval", passes = passes(&images, &request)).entered();
    let nll = evaluate(&model, &images, &request, &mut |passes, bits| {
        let status = bits.map_or_else(String::new, |bits| format!("{bits:.4} bits/dim so far"));
        counter.set(passes as u64, &status);
    });
    span.exit();
    drop(counter);
    let nll = nll?;
    let (data, plot) = (images.describe(), args.plot.as_deref());
    let document = |plot| Document { nll: &nll, model: &model.origin, data: &data, plot };
    // A result that took hours is printed even if its picture cannot be written.
    match plot.map_or(Ok(()), |path| write_plot(&nll, path)) {
        Ok(()) => output.result(&document(plot), || text(&nll, &data, plot)).map(|()| Outcome::Done),
        Err(failure) => output.result_and_failure(&document(None), || text(&nll, &data, None), &failure),
    }
}

fn write_plot(nll: &Nll, path: &Path) -> Result<(), Failure> {
    Ok(pictures::write(path, &pictures::encode(&plot(nll))?)?)
}

fn text(nll: &Nll, data: &str, plot: Option<&Path>) -> String {
    let decoder = nll.vb.first().copied().unwrap_or_default();
    // An empty sum of floats is -0.
    let rest = nll.vb.iter().skip(1).sum::<f64>() + 0.0;
    let error = nll.standard_error.map_or_else(String::new, |error| format!("+- {error:.4} (standard error)"));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
    table.row(&[&"bits/dim", &format!("{:.4}", nll.bits_per_dim), &error]);
    table.row(&[&"  L_T", &format!("{:.4}", nll.prior), &"prior: what x_T still tells of the image"]);
    table.row(&[&"  L_t", &format!("{rest:.4}"), &"all steps but the last, see --plot"]);
    table.row(&[&"  L_0", &format!("{decoder:.4}"), &"decoder: the last step, to 8 bits"]);
    table.row(&[&"mse", &format!("{:.4}", mean(&nll.mse)), &"of eps, mean over t"]);
    table.row(&[&"x_0 mse", &format!("{:.4}", mean(&nll.xstart_mse)), &"of the predicted x_0, mean over t"]);
    let (images, steps) = (nll.images, nll.steps);
    let share =
        nll.network_share.map_or_else(String::new, |share| format!(" ({:.0} % of it in the network)", 100.0 * share));
    let mut text = format!(
        "{}\n{images} of the images of {}, {steps} of the timesteps, {:.1} s{share}\n",
        table.render(),
        data,
        nll.seconds
    );
    if let Some(path) = plot {
        text += &format!("plot: {}\n", path.display());
    }
    text
}

/// Plots the terms over t. The bits come from few of the steps, so most panels are logarithmic.
fn plot(nll: &Nll) -> RgbImage {
    let log = |values: &[f64]| values.iter().map(|value| value.max(LOWEST).log10()).collect::<Vec<_>>();
    let sum_to_t = nll.vb.iter().scan(0.0, |sum, bits| {
        *sum += bits;
        Some(*sum)
    });
    let panels = [
        ("log10 L_t, bits/dim", log(&nll.vb)),
        ("L_0 + ... + L_t, bits/dim", sum_to_t.collect()),
        ("log10 mse of eps", log(&nll.mse)),
        ("log10 mse of x_0", log(&nll.xstart_mse)),
    ];
    let mut page = Page::for_panels(panels.len());
    let last = nll.timesteps.last().copied().unwrap_or_default();
    let timesteps = &nll.timesteps;
    for (column, (title, values)) in panels.iter().enumerate() {
        page.panel(column, &Curve { title, values, timesteps, last, marks: &[] });
    }
    page.into_picture()
}
