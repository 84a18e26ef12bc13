//! How much memory and disk there is and how much was used, for the log, the bench and the doctor.
//!
//! Linux reports the resident set in `/proc/self/status` (`VmRSS` now, `VmHWM` the highest so far, both in kB of 1024
//! bytes); elsewhere the answer is `None`.

use std::fs;
use std::io;
use std::path::Path;

use crate::limits;

/// Bytes of this process that are in physical memory now.
pub fn resident() -> Option<u64> {
    status_field("VmRSS:")
}

/// The most bytes of this process that ever were in physical memory.
pub fn peak_resident() -> Option<u64> {
    status_field("VmHWM:")
}

/// Bytes of memory that this process may use: those of the machine, or less where a [limit](limits) is set.
pub fn total() -> Option<u64> {
    let machine = of_machine("MemTotal:");
    limits::memory(machine).map(|limit| limit.bytes).or(machine)
}

/// Bytes that this process may still take without anything being swapped out or killed.
pub fn available() -> Option<u64> {
    let machine = of_machine("MemAvailable:");
    let left = limits::memory(of_machine("MemTotal:")).map(|limit| {
        let used = limit.used.or_else(resident).unwrap_or(0);
        limit.bytes.saturating_sub(used)
    });
    machine.into_iter().chain(left).min()
}

/// A field of `/proc/meminfo`, in bytes.
pub fn of_machine(field: &str) -> Option<u64> {
    parse_status(&fs::read_to_string("/proc/meminfo").ok()?, field)
}

/// Bytes that an ordinary user may still write on the file system that holds `path`.
///
/// # Errors
/// `path` does not exist, or its file system cannot be asked.
pub fn disk_free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// How many files an ordinary user may still create there; `None` where the file system does not count them.
///
/// # Errors
/// As [`disk_free`].
pub fn inodes_free(path: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_files > 0).then_some(stat.f_favail))
}

/// `bytes` for a reader: three digits and a unit of powers of 1024.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 10.0 { 1 } else { 0 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

fn status_field(field: &str) -> Option<u64> {
    parse_status(&fs::read_to_string("/proc/self/status").ok()?, field)
}

fn parse_status(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_line_is_read_in_units_of_1024_bytes() {
        let status = "Name:\tddpm\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(parse_status(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(parse_status(status, "VmSwap:"), None);
        assert_eq!(parse_status("VmRSS: many kB\n", "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_was_touched_shows_in_the_peak() {
        let before = resident().unwrap();
        let block = vec![1u8; 64 << 20];
        let during = resident().unwrap();
        assert!(
            during >= before + (32 << 20),
            "{before} -> {during} with {} bytes",
            std::hint::black_box(&block).len()
        );
        assert!(peak_resident().unwrap() >= during);
    }

    #[test]
    fn free_space_of_a_missing_path_is_an_error_and_of_the_temporary_directory_is_not_zero() {
        assert!(disk_free(Path::new("/no/such/place")).is_err());
        assert!(disk_free(&std::env::temp_dir()).unwrap() > 0);
    }

    #[test]
    fn bytes_are_written_with_a_unit_that_keeps_three_digits() {
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(1000 << 20), "1.0 GiB");
        assert_eq!(format_bytes(64 << 20), "64 MiB");
    }
}
