//! Events on a GPU that a user should know, though work goes on: kept until the caller takes them to report. Each is reported
//! once in the process' life, however often it happens.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::lock;

#[derive(Debug)]
struct Notices {
    noted: BTreeSet<String>,
    waiting: Vec<String>,
}

static NOTICES: Mutex<Notices> = Mutex::new(Notices { noted: BTreeSet::new(), waiting: Vec::new() });

pub(super) fn notice(text: String) {
    let mut notices = lock(&NOTICES);
    if notices.noted.insert(text.clone()) {
        notices.waiting.push(text);
    }
}

/// The notices that have not been taken yet, oldest first.
pub fn take_notices() -> Vec<String> {
    std::mem::take(&mut lock(&NOTICES).waiting)
}
