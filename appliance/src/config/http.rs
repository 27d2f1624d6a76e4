//! `[http]`: the HTTP server.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use warp::http::uri::Authority;

use super::check::{Check, more_than_zero, within};

/// The HTTP server.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest request body.
    pub max_body: ByteSize,
    /// Memory for bodies of all requests together.
    pub max_inflight: ByteSize,
    /// Timeout for a body to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Address and port of the listener for health, metrics and models, with all details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// Host names of this box besides addresses, localhost and the node name.
    pub allowed_hosts: Vec<String>,
    /// Origins of other sites whose web pages may use this box.
    pub allowed_origins: Vec<String>,
    /// Memory for bodies of one address's requests; 0 is half of `max_inflight`, and at least `max_body`.
    pub max_inflight_per_address: ByteSize,
    /// Minimum rate of a body, and of a client that reads a reply, in bytes per second; 0 is no limit.
    pub min_rate: ByteSize,
    /// Time over which the rate is averaged.
    #[serde(with = "humantime_serde")]
    pub rate_window: Duration,
    /// Timeout for a request's head to arrive.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a connection is kept between requests.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Maximum open connections; beyond it idle ones are closed, then new ones wait to be accepted.
    pub max_connections: usize,
    /// Maximum open connections per address; 0 is half of all.
    pub max_connections_per_address: usize,
    /// Maximum `file` parts in one multipart request.
    pub max_files: usize,
    /// Threads for network I/O; 0 is one per core, for a worker one per two cores, at most four.
    pub io_threads: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: ByteSize::mib(20),
            max_inflight: ByteSize::mib(64),
            body_timeout: Duration::from_secs(30),
            admin_listen: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_inflight_per_address: ByteSize::b(0),
            min_rate: ByteSize::kib(1),
            rate_window: Duration::from_secs(15),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            max_connections: 4096,
            max_connections_per_address: 0,
            max_files: 16,
            io_threads: 0,
        }
    }
}

impl HttpConfig {
    /// [`Self::max_body`] as a length in memory.
    pub fn max_body_bytes(&self) -> usize {
        usize::try_from(self.max_body.as_u64()).unwrap_or(usize::MAX)
    }

    /// Bytes of bodies that one address may have in memory.
    pub fn inflight_per_address(&self) -> usize {
        let bytes = match self.max_inflight_per_address.as_u64() {
            0 => (self.max_inflight.as_u64() / 2).max(self.max_body.as_u64()),
            bytes => bytes,
        };
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Connections of one address, where there may be `limit` in all.
    pub fn connections_per_address(&self, limit: usize) -> usize {
        match self.max_connections_per_address {
            0 => limit.div_ceil(2),
            most => most.min(limit),
        }
    }

    pub(super) fn validate(&self) -> Check {
        within("http.io_threads", self.io_threads, 0, 1024)?;
        within("http.max_connections", self.max_connections, 1, 1_000_000)?;
        within("http.max_connections_per_address", self.max_connections_per_address, 0, 1_000_000)?;
        within("http.max_files", self.max_files, 1, 1000)?;
        within("http.max_body", self.max_body.as_u64(), 1, 1 << 30)?;
        within("http.min_rate", self.min_rate.as_u64(), 0, 1 << 30)?;
        let less = |value: ByteSize| format!("{value} is less than http.max_body = {}", self.max_body);
        if self.max_inflight < self.max_body {
            return Err(("http.max_inflight", less(self.max_inflight)));
        }
        let per_address = self.max_inflight_per_address;
        if per_address.as_u64() != 0 && per_address < self.max_body {
            return Err(("http.max_inflight_per_address", less(per_address)));
        }
        if let Some(bad) = self.allowed_hosts.iter().find(|name| !is_host_pattern(name)) {
            return Err(("http.allowed_hosts", format!("{bad:?} is no host name, *.name or *")));
        }
        if let Some(bad) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            let what = format!("{bad:?} is no origin such as https://board.example.com, nor *");
            return Err(("http.allowed_origins", what));
        }
        more_than_zero("http.body_timeout", self.body_timeout)?;
        more_than_zero("http.header_timeout", self.header_timeout)?;
        more_than_zero("http.idle_timeout", self.idle_timeout)?;
        more_than_zero("http.rate_window", self.rate_window)
    }
}

/// Whether a text is a host name or a pattern of one.
fn is_host_pattern(pattern: &str) -> bool {
    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
    pattern == "*"
        || !name.is_empty()
            && name.len() <= 253
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Whether a text is an origin as browsers send it.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, page)) = origin.split_once("://") else { return origin == "*" };
    let named = page.parse::<Authority>().is_ok_and(|authority| authority.as_str() == page);
    named && !scheme.is_empty() && !page.contains(['/', '@', '*'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_names_and_origins_are_checked() {
        assert!(["weir", "*.example.com", "*", "a-b_c.d"].iter().all(|name| is_host_pattern(name)));
        assert!(
            !["", "http://weir", "weir:80", "a*.b", "*.", "we ir"].iter().any(|name| is_host_pattern(name))
        );
        assert!(["https://a.example", "http://10.0.0.1:3000", "*"].iter().all(|origin| is_origin(origin)));
        assert!(
            !["a.example", "https://", "https://a/b", "https://*.a"].iter().any(|origin| is_origin(origin))
        );
    }
}
