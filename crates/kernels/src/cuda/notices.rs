//! What happened on a GPU that a user should know, though all goes on. Each thing is said once in the process' life, however
//! often it happens.

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
