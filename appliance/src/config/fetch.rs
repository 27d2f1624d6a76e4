//! `[fetch]`: what `image_url` may name.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::check::{Check, more_than_zero, within};

/// `image_url`: what may be fetched.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// Whether `image_url` is served at all.
    pub enabled: bool,
    /// Networks that may be reached besides public addresses, such as the cameras' own `192.168.8.0/24`.
    pub allow_networks: Vec<IpNet>,
    /// Longest time for one fetch, redirects included.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Most redirects that are followed.
    pub max_redirects: usize,
    /// Fetches at once; beyond it requests get 429.
    pub max_concurrent: usize,
    /// Bytes a second that a server must send of an image; 0 is no bound.
    pub min_rate: ByteSize,
    /// Time over which that is averaged.
    #[serde(with = "humantime_serde")]
    pub rate_window: Duration,
    /// PEM file of certificates that are trusted besides the system's authorities: other authorities, or those of servers
    /// that signed their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            allow_networks: Vec::new(),
            timeout: Duration::from_secs(10),
            max_redirects: 3,
            max_concurrent: 16,
            min_rate: ByteSize::kib(1),
            rate_window: Duration::from_secs(5),
            ca_file: None,
        }
    }
}

impl FetchConfig {
    pub(super) fn validate(&self) -> Check {
        within("fetch.min_rate", self.min_rate.as_u64(), 0, 1 << 30)?;
        within("fetch.max_concurrent", self.max_concurrent, 1, 65_536)?;
        more_than_zero("fetch.timeout", self.timeout)?;
        more_than_zero("fetch.rate_window", self.rate_window)
    }
}
