//! Events on a GPU that a user should know, though work goes on. Each is reported once in the process' life, however often it
//! happens.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::lock;

static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Warns of it, if nobody was warned yet.
pub(super) fn notice(text: &str) {
    if lock(&SAID).insert(text.to_owned()) {
        tracing::warn!("{text}");
    }
}
