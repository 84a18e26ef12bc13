//! Parts of the messages.

pub(super) fn starting(from: Option<u64>) -> String {
    from.map_or("starting anew".to_owned(), |step| format!("going on from step {step}"))
}

pub(super) fn one_of(steps: &[u64]) -> String {
    let steps: Vec<_> = steps.iter().map(u64::to_string).collect();
    if steps.is_empty() { "a run with checkpoints".to_owned() } else { format!("one of {}", steps.join(", ")) }
}

pub(super) fn how_many(then: Option<usize>, now: usize) -> String {
    match then {
        Some(then) if then == now => format!(" ({now} as then, with other names, sizes, labels or versions)"),
        Some(then) => format!(" ({now} now, {then} then)"),
        None => String::new(),
    }
}

pub(super) fn place(saved: Option<u64>) -> String {
    saved.map_or("the start".to_owned(), |step| format!("step {step}"))
}
