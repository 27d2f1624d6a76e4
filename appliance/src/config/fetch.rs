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
    /// Networks that are allowed besides public addresses, such as the cameras' `192.168.8.0/24`.
    pub allow_networks: Vec<IpNet>,
    /// Timeout of a fetch, including redirects.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Maximum redirects.
    pub max_redirects: usize,
    /// Maximum concurrent fetches; beyond it requests get 429.
    pub max_concurrent: usize,
    /// Minimum rate of a server in bytes per second; 0 is no limit.
    pub min_rate: ByteSize,
    /// Time over which the rate is averaged.
    #[serde(with = "humantime_serde")]
    pub rate_window: Duration,
    /// PEM file of certificates that are trusted besides the system's: of other authorities, or self-signed ones of servers.
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
