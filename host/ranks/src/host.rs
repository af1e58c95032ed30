//! How much memory this machine has to give, and how much of it a KV cache gets.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// A cache on the CPU gets a quarter of what the weights of all replicas leave.
const SHARE: u64 = 4;

/// And no more than this, for each replica: what reads it is a CPU.
const MOST: u64 = 4 << 30;

/// Bytes for the KV cache of each of `replicas` whose weights need so many bytes.
pub fn cache_bytes(available: u64, weights: u64, replicas: u64) -> u64 {
    (available.saturating_sub(weights * replicas) / SHARE / replicas).min(MOST)
}

/// Memory that was available when this process first asked: replicas that start later are to get
/// as much as the first. `None` where the system does not say.
pub fn available() -> Option<u64> {
    static FIRST: OnceLock<Option<u64>> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let read = |path: &str| fs::read_to_string(Path::new(path)).ok();
        let machine = read("/proc/meminfo").and_then(|text| of_machine(&text));
        let group = read("/sys/fs/cgroup/memory.max")
            .zip(read("/sys/fs/cgroup/memory.current"))
            .zip(read("/sys/fs/cgroup/memory.stat"))
            .and_then(|((most, current), stat)| of_group(&most, &current, &stat));
        machine.into_iter().chain(group).min()
    })
}

/// What Linux would give without swapping, from `/proc/meminfo`.
fn of_machine(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// What a container may take beyond what it has, from the files of its control group (version 2).
/// Files that were read and not written are given back when memory is wanted.
fn of_group(most: &str, current: &str, stat: &str) -> Option<u64> {
    let most: u64 = most.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let cached: u64 = cached.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    Some(most.saturating_sub(current.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_cache_gets_a_quarter_of_what_weights_leave_and_no_more_than_4_gib() {
        assert_eq!(cache_bytes(10 * GIB, 2 * GIB, 1), 2 * GIB);
        assert_eq!(cache_bytes(10 * GIB, GIB, 2), GIB);
        assert_eq!(cache_bytes(512 * GIB, 16 * GIB, 1), 4 * GIB);
        assert_eq!(cache_bytes(2 * GIB, 3 * GIB, 1), 0);
    }

    #[test]
    fn what_is_available_is_read_as_linux_writes_it() {
        let meminfo = "MemTotal:       24689004 kB\nMemAvailable:   23582848 kB\nBuffers: 1 kB\n";
        assert_eq!(of_machine(meminfo), Some(23_582_848 << 10));
        assert_eq!(of_machine("MemTotal: 1 kB"), None);
        let stat = "anon 5\ninactive_file 300\nactive_file 7\n";
        assert_eq!(of_group("1000\n", "600\n", stat), Some(700));
        assert_eq!(of_group("max\n", "600\n", stat), None);
        assert_eq!(of_group("100\n", "600\n", ""), Some(0));
    }
}
