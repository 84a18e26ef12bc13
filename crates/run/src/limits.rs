//! What this process may use, where that is less than the machine has: a container's or a batch job's limit on memory (control
//! groups of both versions), and `ulimit -v`. Who goes beyond the first is killed without a word.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// A limit on memory and who sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// Of these, how many are taken already, by all processes that share the limit; where that is known.
    pub used: Option<u64>,
    /// Who sets it, for a message.
    pub by: &'static str,
}

/// The narrowest limit on this process's memory; `None` where there is none below `total`, the memory of the machine.
pub fn memory(total: Option<u64>) -> Option<MemoryLimit> {
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|own| of_groups(&own, Path::new(GROUPS)));
    let address_space = getrlimit(Resource::As).current.map(|bytes| MemoryLimit {
        bytes,
        used: None,
        by: "the limit of address space (ulimit -v)",
    });
    let narrowest = group.into_iter().chain(address_space).min_by_key(|limit| limit.bytes)?;
    total.is_none_or(|total| narrowest.bytes < total).then_some(narrowest)
}

/// The narrowest memory limit of the groups that `/proc/self/cgroup` names, and of those above them.
fn of_groups(own: &str, mounted: &Path) -> Option<MemoryLimit> {
    let limits = own.lines().filter_map(|line| {
        // number:controllers:path; version 2 has no controllers.
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let files = if controllers.is_empty() {
            (mounted.to_owned(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (mounted.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            return None;
        };
        narrowest(&files.0, path, files.1, files.2)
    });
    limits.min_by_key(|limit| limit.bytes)
}

/// In a container the path may be that of the host, which is not mounted: then the groups that are, count.
fn narrowest(root: &Path, path: &str, limit: &str, usage: &str) -> Option<MemoryLimit> {
    let own = root.join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(root)).map(PathBuf::from);
    let read = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    groups
        .filter_map(|group| {
            // "max" is no number, and so no limit.
            let bytes = read(group.join(limit))?;
            Some(MemoryLimit { bytes, used: read(group.join(usage)), by: "this container or job (cgroup)" })
        })
        .min_by_key(|limit| limit.bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::folder_with;

    #[test]
    fn the_narrowest_group_on_the_way_up_counts_in_both_versions() {
        let two = folder_with(&[
            ("job/step/memory.max", "max\n"),
            ("job/memory.max", "4000\n"),
            ("job/memory.current", "1000\n"),
            ("memory.max", "9000\n"),
        ]);
        let limit = of_groups("0::/job/step\n", two.path()).unwrap();
        assert_eq!((limit.bytes, limit.used), (4000, Some(1000)));

        let one = folder_with(&[
            ("memory/docker/abc/memory.limit_in_bytes", "419430400\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let own = "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n1:name=systemd:/docker/abc\n";
        assert_eq!(of_groups(own, one.path()).unwrap().bytes, 419_430_400);
    }

    #[test]
    fn a_path_of_the_host_leads_to_the_group_that_is_mounted() {
        let container = folder_with(&[("memory.max", "4000\n")]);
        assert_eq!(of_groups("0::/../../kubepods/pod7\n", container.path()).unwrap().bytes, 4000);
        assert_eq!(of_groups("0::/\n", folder_with(&[]).path()), None);
        assert_eq!(of_groups("nonsense", container.path()), None);
    }
}
