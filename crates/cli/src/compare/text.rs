//! A comparison for a person: what is equal in a line, what differs side by side.

use ddpm_train::config::to_toml;

use super::curves::Curves;
use super::{Comparison, Data, Difference, Run, Weights};
use crate::output::{Align, Table, short};

/// The longest value shown in a table.
const LONGEST: usize = 48;

pub(super) fn of(comparison: &Comparison) -> String {
    let Comparison { runs, config, data, weights, curves } = comparison;
    let mut parts = vec![runs_side_by_side(runs), same_or_not(data, weights.as_ref()), configuration(config)];
    parts.push(losses(curves));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn runs_side_by_side([a, b]: &[Run; 2]) -> String {
    let mut table = Table::new(&[Align::Left; 3]);
    let mut row = |name: &str, of: &dyn Fn(&Run) -> String| table.row(&[&name, &of(a), &of(b)]);
    row("", &|run| run.name.clone());
    row("state", &|run| format!("{}, step {}/{}", run.state, run.step, run.steps));
    row("created", &|run| run.created.clone());
    row("device", &|run| run.device.clone());
    row("program", &|run| match &run.git_hash {
        Some(hash) => format!("{}, started in {}", run.program_version, &hash[..hash.len().min(10)]),
        None => run.program_version.clone(),
    });
    row("speed", &|run| {
        run.images_per_s.map_or_else(|| "not logged".to_owned(), |speed| format!("{speed:.0} images/s"))
    });
    row("data wait", &|run| run.data_wait.map_or_else(String::new, |share| format!("{:.0}%", 100.0 * share)));
    if !(a.accepted.is_empty() && b.accepted.is_empty()) {
        row("accepted", &|run| run.accepted.join("; "));
    }
    table.render()
}

fn same_or_not(data: &Data, weights: Option<&Weights>) -> String {
    let images = |of: &Option<super::DataOf>| {
        of.as_ref()
            .and_then(|of| of.images)
            .map_or_else(|| "an unknown number of".to_owned(), |images| images.to_string())
    };
    let data = match data.same {
        Some(true) => format!("data: the same {} images", images(&data.a)),
        Some(false) => format!("data: other data, {} images and {}", images(&data.a), images(&data.b)),
        None => "data: not known before both have a checkpoint".to_owned(),
    };
    let weights = match weights {
        Some(Weights { step, same: true }) => format!("weights: equal to the bit at step {step}"),
        Some(Weights { step, same: false }) => format!("weights: different at step {step}"),
        None => "weights: no step of which both have a checkpoint".to_owned(),
    };
    format!("{data}\n{weights}\n")
}

fn configuration(config: &[Difference]) -> String {
    if config.is_empty() {
        return "configuration: the same\n".to_owned();
    }
    let mut table = Table::new(&[Align::Left; 4]);
    for Difference { key, a, b, default, changes_results } in config {
        let mark = if *changes_results { "  *" } else { "   " };
        let value = |value: &serde_json::Value| {
            let note = if value == default { " (default)" } else { "" };
            format!("{}{note}", short(&to_toml(value), LONGEST))
        };
        table.row(&[&format!("{mark} {key}"), &value(a), &value(b)]);
    }
    let legend = if config.iter().any(|key| key.changes_results) { " (*: can change what is learnt)" } else { "" };
    format!("configuration{legend}\n{}", table.render())
}

fn losses(curves: &Curves) -> String {
    let Some(last) = curves.last_common_step else {
        return "metrics: no step that both have logged\n".to_owned();
    };
    let mut table = Table::new(&[Align::Right; 4]);
    table.row(&[&"steps", &"a", &"b", &"b is"]);
    for row in &curves.loss {
        let number = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
        let change = row.a.zip(row.b).filter(|(a, _)| *a != 0.0).map(|(a, b)| 100.0 * (b / a - 1.0));
        let change = change.map_or_else(String::new, |percent| format!("{percent:+.1}%"));
        table.row(&[&format!("{}-{}", row.from_step, row.to_step), &number(row.a), &number(row.b), &change]);
    }
    let verdict = match curves.first_difference {
        None => format!("metrics: equal to the bit at all {} common steps, up to {last}", curves.common_steps),
        Some(step) => {
            format!("metrics: they differ from step {step} on, of {} common steps up to {last}", curves.common_steps)
        }
    };
    format!("loss, means over the steps that both have logged\n{}\n{verdict}\n", table.render())
}
