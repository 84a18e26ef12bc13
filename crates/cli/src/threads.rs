//! The threads that compute: as many as `RAYON_NUM_THREADS` says, or as there are cores that this process may use. They are
//! started here, so that a number that makes no sense is said, and a machine that gives no threads is no bug.

use std::env;

use crate::failure::{ExitCode, Failure};

const NUMBER: &str = "RAYON_NUM_THREADS";
/// More threads than this for each core are a mistake, and not started: every step would wait for all of them.
const PER_CORE: usize = 4;

/// Starts the threads.
///
/// # Errors
/// The system gives none.
pub(super) fn start() -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = env::var_os(NUMBER).map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
    // 0 is rayon's own choice.
    let threads =
        wanted.as_deref().and_then(|text| text.parse().ok()).map_or(0, |number: usize| number.min(PER_CORE * cores));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|error| {
        Failure::caused_by(ExitCode::Other, "the threads cannot be started", &error)
            .hint(format!("the system starts no more threads: raise `ulimit -u`, or set {NUMBER}=1"))
    })?;
    if let Some(wanted) = wanted {
        warning(&wanted, cores, rayon::current_num_threads()).iter().for_each(|text| tracing::warn!("{text}"));
    }
    Ok(())
}

fn warning(wanted: &str, cores: usize, threads: usize) -> Option<String> {
    match wanted.parse::<usize>() {
        Err(_) => Some(format!("{NUMBER} = {wanted:?} is no number of threads: {threads} are used, one for each core")),
        Ok(number) if number > PER_CORE * cores => Some(format!(
            "{NUMBER} = {number} on {cores} cores: {threads} threads are used, for more make every step slower; {cores} are best"
        )),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_threads_that_makes_no_sense_is_said() {
        assert!(
            warning("abc", 2, 2).is_some_and(|text| text.contains("\"abc\" is no number") && text.contains("2 are"))
        );
        assert!(warning("1000", 2, 1000).is_some_and(|text| text.contains("on 2 cores")));
        assert_eq!((warning("2", 2, 2), warning("0", 2, 2), warning("8", 2, 8)), (None, None, None));
    }
}
