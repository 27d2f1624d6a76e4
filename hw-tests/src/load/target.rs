//! The target of the load: a parsed URL, resolved once, and restricted to loopback unless remote targets are allowed.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail, ensure};
use url::Url;

/// A server and a path on it. The address is resolved once, so that the checked address is the one that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address to connect to.
    pub address: SocketAddr,
    /// The Host header.
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Parses and resolves `http://host:port/path`.
    ///
    /// # Errors
    /// When the URL is not plain HTTP, does not resolve, or names an address that is not loopback and
    /// `allow_remote` is false.
    pub fn parse(text: &str, allow_remote: bool) -> anyhow::Result<Self> {
        let url = Url::parse(text).with_context(|| format!("{text:?} is not a URL"))?;
        ensure!(url.scheme() == "http", "{text:?}: only http:// is supported, not {}://", url.scheme());
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            bail!("{text:?} names no host");
        };
        let addresses: Vec<SocketAddr> = (host.trim_matches(['[', ']']), port)
            .to_socket_addrs()
            .with_context(|| format!("resolving {host}"))?
            .collect();
        // IPv4 is preferred: `localhost` often resolves to ::1, on which no server listens.
        let chosen = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        let address = *chosen.with_context(|| format!("{host} has no address"))?;
        ensure!(
            allow_remote || address.ip().to_canonical().is_loopback(),
            "{host} is {}, not a loopback address: load on other machines needs --allow-remote",
            address.ip()
        );
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        Ok(Self { address, host: format!("{host}:{port}"), path: format!("{}{query}", url.path()) })
    }

    /// The same server with another path.
    #[must_use]
    pub fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// A path on a port of this machine.
    #[must_use]
    pub fn local(port: u16, path: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { address, host: address.to_string(), path: path.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_accepted_in_every_spelling() {
        for url in
            ["http://127.0.0.1:8080/predict", "http://127.9.9.9/", "http://localhost:1/", "http://[::1]:80/x"]
        {
            Target::parse(url, false).unwrap();
        }
    }

    #[test]
    fn other_machines_are_refused_unless_allowed() {
        for url in
            ["http://10.0.0.1/", "http://0.0.0.0:8080/", "http://[2001:db8::1]/", "http://192.168.1.9:1/"]
        {
            let error = Target::parse(url, false).unwrap_err().to_string();
            assert!(error.contains("--allow-remote"), "{url}: {error}");
            Target::parse(url, true).unwrap();
        }
    }

    #[test]
    fn an_address_dressed_up_as_ipv6_is_seen_through() {
        Target::parse("http://[::ffff:127.0.0.1]:80/", false).unwrap();
        assert!(Target::parse("http://[::ffff:10.0.0.1]:80/", false).is_err());
    }

    #[test]
    fn a_name_before_an_at_sign_is_no_host() {
        assert!(Target::parse("http://127.0.0.1@10.0.0.1/", false).is_err());
    }

    #[test]
    fn path_query_and_port_are_kept() {
        let target = Target::parse("http://127.0.0.1:81/predict?top_k=3", false).unwrap();
        assert_eq!((target.host.as_str(), target.path.as_str()), ("127.0.0.1:81", "/predict?top_k=3"));
        assert_eq!(Target::parse("http://127.0.0.1", false).unwrap().path, "/");
    }

    #[test]
    fn what_is_not_plain_http_is_refused() {
        for url in ["https://127.0.0.1/", "ftp://127.0.0.1/", "127.0.0.1:8080", ""] {
            assert!(Target::parse(url, true).is_err(), "{url:?}");
        }
    }
}
