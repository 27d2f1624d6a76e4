//! How much memory this process may take: its control groups' limits, or the machine's memory.

use std::path::Path;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Where a limit of version 1 is as large as this, there is none.
const NO_LIMIT: u64 = 1 << 60;

/// The least of the machine's memory and the limits of the control groups (v1 and v2) that the process is in.
pub(super) fn memory_limit() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = machine_memory();
    group_limit(&groups, Path::new(CGROUPS)).map_or(machine, |limit| limit.min(machine))
}

#[cfg(target_os = "linux")]
fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)))
}

/// Other systems do not tell; this is for development only.
#[cfg(not(target_os = "linux"))]
fn machine_memory() -> u64 {
    4 << 30
}

/// The least limit of the groups that `/proc/self/cgroup` names and of those above them. Inside a container the paths may be
/// the host's, which are not there: then the container's own group is at the root.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (mount, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let path = Path::new(path.trim_start_matches('/'));
        let up = path.ancestors().map(|group| mount.join(group).join(file));
        up.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()).collect()
    });
    limits.filter(|&limit| limit < NO_LIMIT).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_counts_of_either_version_and_of_groups_above() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        let limit = |groups: &str| group_limit(groups, root.path());
        assert_eq!(limit("0::/pods/weir\n"), None);
        put("pods/weir/memory.max", "max\n");
        assert_eq!(limit("0::/pods/weir\n"), None);
        put("pods/memory.max", "2147483648\n");
        assert_eq!(limit("0::/pods/weir\n"), Some(2 << 30));
        put("pods/weir/memory.max", "1073741824\n");
        assert_eq!(limit("0::/pods/weir\n"), Some(1 << 30));
        // A container sees its own group at the root.
        put("memory.max", "536870912\n");
        assert_eq!(limit("0::/docker/0123\n"), Some(512 << 20));
        put("memory/weir/memory.limit_in_bytes", "268435456\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:cpu,cpuacct:/weir\n4:memory:/weir\n"), Some(256 << 20));
        assert_eq!(limit("4:memory:/other\n"), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_limit() > 64 << 20);
    }
}
