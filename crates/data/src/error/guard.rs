//! A wall around parsers of outside bytes that may panic.

/// Runs a third-party parser, turning a panic inside it into a message: hostile bytes must not end the program.
pub(crate) fn guard<T>(parse: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Unwind safety: on a panic everything the closure owned is dropped, and it borrows only immutable input.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(parse)) {
        Ok(result) => result,
        Err(payload) => Err(format!("the decoder failed: {}", panic_message(payload.as_ref()))),
    }
}

/// The text of a panic.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_parser_becomes_a_message() {
        let result: Result<(), String> = guard(|| panic!("index {} out of range", 7));
        assert_eq!(result, Err("the decoder failed: index 7 out of range".into()));
    }
}
