//! `image_url` -> bytes. Somebody else chose the URL, so this is a security boundary: only public addresses (and the
//! networks that the operator allows), one resolution whose addresses are the ones connected to, every redirect
//! checked anew, bounds on time and size. [`guard`] holds the rules, this module the transfer.

pub mod guard;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, StatusCode, Url};
use tokio::sync::Semaphore;

use crate::config::FetchConfig;

/// Why an image could not be fetched. Messages name the URL's host, never its userinfo or query, which may be secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// `fetch.enabled = false`.
    #[error("image_url is switched off here (fetch.enabled = false): post the image itself")]
    Disabled,
    /// Not a URL, or one with a part that is not served.
    #[error("image_url: {reason}")]
    BadUrl {
        /// What is wrong.
        reason: String,
    },
    /// The address is not one that this box may reach.
    #[error(
        "image_url: {host} is not at a public address; an operator can allow a network in fetch.allow_networks"
    )]
    Refused {
        /// Host as in the URL.
        host: String,
        /// The address that was refused.
        address: IpAddr,
    },
    /// The server did not answer, or the name has no address.
    #[error("image_url: {host} could not be fetched: {reason}")]
    Failed {
        /// Host as in the URL.
        host: String,
        /// What went wrong.
        reason: String,
    },
    /// The server answered something else than 200.
    #[error("image_url: {host} answered with status {status}")]
    Status {
        /// Host as in the URL.
        host: String,
        /// The status.
        status: u16,
    },
    /// More bytes than a body may have.
    #[error("image_url: the image at {host} is larger than {limit} bytes")]
    TooLarge {
        /// Host as in the URL.
        host: String,
        /// Bound in bytes.
        limit: usize,
    },
    /// Too many redirects.
    #[error("image_url: more than {limit} redirects")]
    Redirects {
        /// Bound.
        limit: usize,
    },
    /// The time is over.
    #[error("image_url: {host} took longer than {} ms", limit.as_millis())]
    TimedOut {
        /// Host as in the first URL.
        host: String,
        /// Bound.
        limit: Duration,
    },
    /// Too many fetches at once, or no memory left for another image.
    #[error("image_url: too many images are being fetched; try again")]
    NoRoom,
    /// The HTTP client can't be set up (no root certificates, say).
    #[error("image_url: the HTTP client can't be set up: {0}")]
    Client(String),
}

impl FetchError {
    /// The reason for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Disabled => "fetch_disabled",
            Self::BadUrl { .. } => "invalid_url",
            Self::Refused { .. } => "url_refused",
            Self::TooLarge { .. } => "image_too_large",
            Self::TimedOut { .. } => "fetch_timeout",
            Self::Failed { .. } | Self::Status { .. } | Self::Redirects { .. } => "fetch_failed",
            Self::NoRoom => "overloaded",
            Self::Client(_) => "fetch_unavailable",
        }
    }

    /// Whether the same URL may well be fetched a little later: the other side was slow, away or overloaded.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Failed { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }
}

/// Memory for an image before anything is known of its length.
const FIRST_BYTES: usize = 64 << 10;

/// Asked before an image in memory grows to so many bytes; false refuses.
pub type Room<'a> = &'a mut (dyn FnMut(usize) -> bool + Send);

/// Fetches images by URL.
pub struct Fetcher {
    config: FetchConfig,
    max_bytes: usize,
    running: Semaphore,
    lookup: Arc<dyn Lookup>,
    clients: OnceLock<Result<Clients, String>>,
}

impl Fetcher {
    /// A fetcher with these bounds; `max_bytes` is the bound on one image. The HTTP client is made on first use.
    pub fn new(config: FetchConfig, max_bytes: usize) -> Self {
        Self::with_lookup(config, max_bytes, Arc::new(SystemLookup))
    }

    fn with_lookup(config: FetchConfig, max_bytes: usize, lookup: Arc<dyn Lookup>) -> Self {
        let running = Semaphore::new(config.max_concurrent);
        Self { running, lookup, config, max_bytes, clients: OnceLock::new() }
    }

    /// Fetches one image within `time`, or within the configured timeout if that is shorter. `room` is asked before
    /// the image in memory grows to so many bytes, and says whether it may.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, url: &str, time: Duration, room: Room<'_>) -> Result<Bytes, FetchError> {
        if !self.config.enabled {
            return Err(FetchError::Disabled);
        }
        let _running = self.running.try_acquire().map_err(|_| FetchError::NoRoom)?;
        let url = Url::parse(url).map_err(|e| FetchError::BadUrl { reason: e.to_string() })?;
        let limit = time.min(self.config.timeout);
        let host = host_of(&url);
        match tokio::time::timeout(limit, self.follow(url, room)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(FetchError::TimedOut { host, limit }),
        }
    }

    async fn follow(&self, mut url: Url, room: Room<'_>) -> Result<Bytes, FetchError> {
        let build = || {
            let lookup = Arc::clone(&self.lookup);
            Clients::build(&Arc::new(GuardedResolver {
                allow: self.config.allow_networks.clone().into(),
                lookup,
            }))
        };
        let clients = self.clients.get_or_init(build);
        let clients = clients.as_ref().map_err(|e| FetchError::Client(e.clone()))?;
        for _ in 0..=self.config.max_redirects {
            guard::check_url(&url, &self.config.allow_networks)?;
            let host = host_of(&url);
            let response = clients.get(&url).await.map_err(|e| failed(&host, &e))?;
            let status = response.status();
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                url = redirect_target(&url, &response)?;
                continue;
            }
            if status != StatusCode::OK {
                return Err(FetchError::Status { host, status: status.as_u16() });
            }
            return self.read(host, response, room).await;
        }
        Err(FetchError::Redirects { limit: self.config.max_redirects })
    }

    async fn read(
        &self,
        host: String,
        mut response: reqwest::Response,
        room: Room<'_>,
    ) -> Result<Bytes, FetchError> {
        let limit = self.max_bytes;
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(FetchError::TooLarge { host, limit });
        }
        let length = response.content_length().and_then(|length| usize::try_from(length).ok());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| failed(&host, &e))? {
            if body.len() + chunk.len() > limit {
                return Err(FetchError::TooLarge { host, limit });
            }
            let needed = body.len() + chunk.len();
            if needed > body.capacity() {
                // What will be allocated is asked for, not what is in it.
                let doubled = (2 * body.capacity()).max(FIRST_BYTES).min(length.unwrap_or(limit));
                let capacity = needed.max(doubled);
                if !room(capacity) {
                    return Err(FetchError::NoRoom);
                }
                body.reserve_exact(capacity - body.len());
            }
            body.extend_from_slice(&chunk);
        }
        body.shrink_to_fit();
        Ok(body.into())
    }
}

fn redirect_target(from: &Url, response: &reqwest::Response) -> Result<Url, FetchError> {
    let bad = |reason: &str| FetchError::BadUrl { reason: format!("{} redirects {reason}", host_of(from)) };
    let location = response.headers().get("location").ok_or_else(|| bad("without saying where"))?;
    // Many servers send what is beyond ASCII as it is; the URL parser encodes it.
    let location = std::str::from_utf8(location.as_bytes());
    let location = location.map_err(|_| bad("to something that is no URL"))?;
    from.join(location).map_err(|_| bad("to something that is no URL"))
}

/// The HTTP clients, which differ in nothing but their connections.
struct Clients {
    /// Keeps connections for the next request.
    pooled: Client,
    /// Opens a connection for each request.
    fresh: Client,
}

impl Clients {
    fn build(resolver: &Arc<GuardedResolver>) -> Result<Self, String> {
        Ok(Self {
            pooled: build_client(Arc::clone(resolver), 4)?,
            fresh: build_client(Arc::clone(resolver), 0)?,
        })
    }

    /// The head of the response to a GET. A server may close a kept connection just as a request is written to it, so
    /// a request that fails on an open connection before any response is sent once more, over a new connection.
    async fn get(&self, url: &Url) -> Result<reqwest::Response, reqwest::Error> {
        match self.pooled.get(url.clone()).send().await {
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                self.fresh.get(url.clone()).send().await
            }
            outcome => outcome,
        }
    }
}

fn build_client(resolver: Arc<GuardedResolver>, idle: usize) -> Result<Client, String> {
    // A second installation is refused, which is as good: then there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        // A proxy would resolve and connect in our stead, past the guard.
        .no_proxy()
        .dns_resolver(resolver)
        .pool_max_idle_per_host(idle)
        .connect_timeout(Duration::from_secs(5))
        .build()
        .map_err(|e| e.to_string())
}

/// Resolves a name once and gives out only the addresses that may be reached, so that what was checked is what is
/// connected to.
struct GuardedResolver {
    allow: Arc<[IpNet]>,
    lookup: Arc<dyn Lookup>,
}

/// Addresses of a name: the system's resolver, or the table of a test.
trait Lookup: Send + Sync {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

struct SystemLookup;

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
                // The client puts the URL's port in place of 0.
                _ => Ok(Box::new(good.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs),
            }
        })
    }
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or("(no host)").to_owned()
}

/// Finds our own refusal inside the client's error, or the innermost reason.
fn failed(host: &str, error: &reqwest::Error) -> FetchError {
    // From its source on: the client's own text has the whole URL in it.
    let mut source = std::error::Error::source(error);
    let mut reason = "the transfer failed".to_owned();
    while let Some(inner) = source {
        if let Some(FetchError::Refused { host, address }) = inner.downcast_ref() {
            tracing::info!(host, %address, "an image_url leads to an address that may not be reached");
            return FetchError::Refused { host: host.clone(), address: *address };
        }
        reason = inner.to_string();
        source = inner.source();
    }
    FetchError::Failed { host: host.to_owned(), reason }
}
