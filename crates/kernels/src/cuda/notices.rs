//! What happened on a GPU that a user should know, though all goes on: kept until whoever talks to the user takes it. Each thing
//! is told once in the process' life, however often it happens.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::lock;

#[derive(Debug)]
struct Notices {
    told: BTreeSet<String>,
    waiting: Vec<String>,
}

static NOTICES: Mutex<Notices> = Mutex::new(Notices { told: BTreeSet::new(), waiting: Vec::new() });

pub(super) fn notice(text: String) {
    let mut notices = lock(&NOTICES);
    if notices.told.insert(text.clone()) {
        notices.waiting.push(text);
    }
}

/// What nobody has been told yet, oldest first.
pub fn take_notices() -> Vec<String> {
    std::mem::take(&mut lock(&NOTICES).waiting)
}
