//! `[image]`: bounds on images, and how much memory the process may take for decoding.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::check::{Check, millis, within};

/// Minimum of `image.decode_memory`: a camera's frame must fit, whatever its type.
const MIN_DECODE_MEMORY: u64 = 64 << 20;

/// Bounds on images, read from headers before anything is allocated.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Maximum pixels (width x height).
    pub max_pixels: u64,
    /// Maximum scans of a progressive JPEG.
    pub max_scans: u32,
    /// Maximum time for decoding one image, in CPU time of the decoding thread.
    #[serde(with = "humantime_serde")]
    pub decode_timeout: Duration,
    /// Memory for decoding all images together; half of the memory of the process unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_memory: Option<ByteSize>,
    /// Accepted formats.
    pub formats: Vec<gpu_kernels::ImageFormat>,
}

impl Default for ImageConfig {
    fn default() -> Self {
        let limits = gpu_kernels::DecodeLimits::default();
        let formats = gpu_kernels::ImageFormat::ALL.to_vec();
        Self {
            max_pixels: limits.max_pixels,
            max_scans: limits.max_scans,
            decode_timeout: limits.max_time,
            decode_memory: None,
            formats,
        }
    }
}

impl ImageConfig {
    /// [`Self::decode_memory`], or half of the control group's or machine's memory.
    pub fn decode_memory_bytes(&self) -> u64 {
        self.decode_memory.map_or_else(|| memory_limit() / 2, |bytes| bytes.as_u64())
    }

    /// What the decoders accept, for bodies of up to `max_bytes`.
    pub fn limits(&self, max_bytes: usize) -> gpu_kernels::DecodeLimits {
        gpu_kernels::DecodeLimits {
            max_bytes,
            max_pixels: self.max_pixels,
            max_scans: self.max_scans,
            max_time: self.decode_timeout,
            formats: self.formats.iter().copied().collect(),
        }
    }

    pub(super) fn validate(&self) -> Check {
        within("image.max_pixels", self.max_pixels, 1, 1 << 31)?;
        within("image.max_scans", self.max_scans, 1, 100_000)?;
        within("image.decode_timeout (in milliseconds)", millis(self.decode_timeout), 10, 24 * 3600 * 1000)?;
        if let Some(bytes) = self.decode_memory {
            within("image.decode_memory", bytes.as_u64(), MIN_DECODE_MEMORY, 1 << 42)?;
        }
        if self.formats.is_empty() {
            return Err(("image.formats", "it names no format, so that no image would be accepted".into()));
        }
        Ok(())
    }
}

const CGROUPS: &str = "/sys/fs/cgroup";
/// A limit of version 1 from this size on stands for no limit.
const NO_LIMIT: u64 = 1 << 60;

/// How much memory the process may take: the smallest of the machine's memory and the limits of its control groups (v1 and
/// v2).
fn memory_limit() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = machine_memory();
    group_limit(&groups, Path::new(CGROUPS)).map_or(machine, |limit| limit.min(machine))
}

#[cfg(target_os = "linux")]
fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)))
}

/// Not known on other systems, which are for development only.
#[cfg(not(target_os = "linux"))]
fn machine_memory() -> u64 {
    4 << 30
}

/// The smallest limit of the groups in `/proc/self/cgroup` and of their ancestors. Inside a container these may be paths of
/// the host that do not exist there: then the container's own group is at the root.
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
