//! Connections of fetches: only to allowed addresses, with the trusted certificates.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::tls::{Besides, CaFileError, trusting};
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};
use rustls::ClientConfig;

use super::{FetchError, guard};
use crate::config::FetchConfig;

/// The connection for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// An open one, if there is one.
    Kept,
    /// A new one.
    New,
}

/// The HTTP clients, which differ only in their connections.
pub(super) struct Clients {
    /// Keeps connections for the next request.
    pooled: Client,
    /// Opens a connection for each request.
    fresh: Client,
}

impl Clients {
    pub(super) fn build(config: &FetchConfig, resolver: &Arc<GuardedResolver>) -> Result<Self, String> {
        let trusted = trusted(config).map_err(|error| format!("fetch.ca_file: {error}"))?;
        Ok(Self {
            pooled: build_client(Arc::clone(resolver), trusted.clone(), 4)?,
            fresh: build_client(Arc::clone(resolver), trusted, 0)?,
        })
    }

    /// Sends a GET and returns the head of the response. A server may close a kept connection while a request is written to it,
    /// so a request that fails there before any response is sent again over a new connection; then `connection` is
    /// [`Connection::New`].
    pub(super) async fn get(
        &self,
        url: &Url,
        connection: &mut Connection,
    ) -> Result<reqwest::Response, reqwest::Error> {
        if *connection == Connection::Kept {
            match self.pooled.get(url.clone()).send().await {
                Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                    *connection = Connection::New;
                }
                outcome => return outcome,
            }
        }
        self.fresh.get(url.clone()).send().await
    }
}

/// The TLS configuration with `fetch.ca_file`; `None` without one.
pub(super) fn trusted(config: &FetchConfig) -> Result<Option<ClientConfig>, CaFileError> {
    config.ca_file.as_deref().map(|file| trusting(file, Besides::System)).transpose()
}

fn build_client(
    resolver: Arc<GuardedResolver>,
    trusted: Option<ClientConfig>,
    idle: usize,
) -> Result<Client, String> {
    // Fails if a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        // A proxy would resolve and connect itself, which bypasses the guard.
        .no_proxy()
        .dns_resolver(resolver)
        .pool_max_idle_per_host(idle)
        .connect_timeout(Duration::from_secs(5));
    if let Some(trusted) = trusted {
        builder = builder.tls_backend_preconfigured(trusted);
    }
    builder.build().map_err(|e| e.to_string())
}

/// Resolves a name once and returns only allowed addresses, so that the checked addresses are the ones connected to.
pub(super) struct GuardedResolver {
    pub(super) allow: Arc<[IpNet]>,
    pub(super) lookup: Arc<dyn Lookup>,
}

/// Addresses of a name: the system's resolver, or the table of a test.
pub(super) trait Lookup: Send + Sync {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

pub(super) struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow = Arc::clone(&self.allow);
        let host = name.as_str().to_owned();
        let found = self.lookup.lookup(host.clone());
        Box::pin(async move {
            let (good, bad): (Vec<_>, Vec<_>) =
                found.await?.into_iter().partition(|address| guard::may_reach(*address, &allow));
            match (good.is_empty(), bad.first()) {
                (true, Some(&address)) => Err(FetchError::Refused { host, address }.into()),
                // The client replaces port 0 with the URL's port.
                _ => Ok(Box::new(good.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs),
            }
        })
    }
}
