//! `image_url` -> bytes. The URL is untrusted input, so this is a security boundary: only public addresses (and networks that
//! the operator allows), connections only to the addresses of the one resolution that was checked, every redirect checked again,
//! limits on time, rate and size. [`guard`] has the rules, [`client`] the connections, this module the transfer.

mod client;
pub mod guard;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::tls::CaFileError;
use reqwest::{StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use self::client::{Clients, Connection, GuardedResolver, Lookup, SystemLookup};
use crate::config::FetchConfig;
use crate::pace::{Pace, Rate};

/// Why an image could not be fetched. Messages name the URL's host, never its userinfo or query, which may be secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// `fetch.enabled = false`.
    #[error("image_url is disabled here (fetch.enabled = false): post the image itself")]
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
    /// The server replied with another status than 200.
    #[error("image_url: {host} answered with status {status}")]
    Status {
        /// Host as in the URL.
        host: String,
        /// The status.
        status: u16,
    },
    /// The image is larger than a body may be.
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
    /// The fetch timed out.
    #[error("image_url: {host} took longer than {} ms", limit.as_millis())]
    TimedOut {
        /// Host as in the first URL.
        host: String,
        /// Bound.
        limit: Duration,
    },
    /// The transfer is too slow.
    #[error(
        "image_url: {host} sends fewer than {rate} bytes a second over {} s (fetch.min_rate, fetch.rate_window)",
        window.as_secs_f32()
    )]
    TooSlow {
        /// Host as in the URL.
        host: String,
        /// Minimum rate in bytes per second.
        rate: u64,
        /// Time over which it is averaged.
        window: Duration,
    },
    /// Too many fetches at once, or no memory left for another image.
    #[error("image_url: too many images are being fetched; try again")]
    NoRoom,
    /// The HTTP client cannot be set up, for example without root certificates.
    #[error("image_url: the HTTP client can't be set up: {0}")]
    Client(String),
}

impl FetchError {
    /// The error code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Disabled => "fetch_disabled",
            Self::BadUrl { .. } => "invalid_url",
            Self::Refused { .. } => "url_refused",
            Self::TooLarge { .. } => "image_too_large",
            Self::TimedOut { .. } | Self::TooSlow { .. } => "fetch_timeout",
            Self::Failed { .. } | Self::Status { .. } | Self::Redirects { .. } => "fetch_failed",
            Self::NoRoom => "overloaded",
            Self::Client(_) => "fetch_unavailable",
        }
    }

    /// Whether a later fetch of the same URL may succeed: the server was slow, down or overloaded.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::TooSlow { .. } | Self::Failed { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }
}

/// Initial memory for an image of unknown length.
const FIRST_BYTES: usize = 64 << 10;

/// Called before an image in memory grows to this many bytes; false refuses.
pub type Room<'a> = &'a mut (dyn FnMut(usize) -> bool + Send);

/// Fetches images by URL.
pub struct Fetcher {
    config: FetchConfig,
    max_bytes: usize,
    running: Semaphore,
    lookup: Arc<dyn Lookup>,
    clients: OnceLock<Clients>,
}

impl Fetcher {
    /// A fetcher for images of up to `max_bytes`. The HTTP client is made on first use.
    pub fn new(config: FetchConfig, max_bytes: usize) -> Self {
        Self::with_lookup(config, max_bytes, Arc::new(SystemLookup))
    }

    /// Checks `fetch.ca_file` before the first fetch.
    ///
    /// # Errors
    /// [`CaFileError`].
    pub fn check_ca_file(&self) -> Result<(), CaFileError> {
        client::trusted(&self.config).map(drop)
    }

    fn with_lookup(config: FetchConfig, max_bytes: usize, lookup: Arc<dyn Lookup>) -> Self {
        let running = Semaphore::new(config.max_concurrent);
        Self { running, lookup, config, max_bytes, clients: OnceLock::new() }
    }

    /// Fetches one image within `time`, or within the configured timeout if that is shorter. `room` is called before the image
    /// in memory grows.
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

    /// The HTTP clients. If they cannot be made, for example while `fetch.ca_file` is being replaced, the next fetch tries again.
    fn clients(&self) -> Result<&Clients, FetchError> {
        if let Some(clients) = self.clients.get() {
            return Ok(clients);
        }
        let (allow, lookup) = (self.config.allow_networks.clone().into(), Arc::clone(&self.lookup));
        let built = Clients::build(&self.config, &Arc::new(GuardedResolver { allow, lookup }));
        let built = built.map_err(FetchError::Client)?;
        Ok(self.clients.get_or_init(|| built))
    }

    async fn follow(&self, mut url: Url, room: Room<'_>) -> Result<Bytes, FetchError> {
        let clients = self.clients()?;
        let mut body = Vec::new();
        for _ in 0..=self.config.max_redirects {
            guard::check_url(&url, &self.config.allow_networks)?;
            let host = host_of(&url);
            // A transfer that breaks off is retried once, on a new connection: a camera that restarts, or a server that closes a
            // kept connection, is no reason to fail. It starts from the beginning, since cameras take a new picture per request.
            let mut connection = Connection::Kept;
            let response = loop {
                let response = clients.get(&url, &mut connection).await.map_err(|e| failed(&host, &e))?;
                let status = response.status();
                if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                    break Err(redirect_target(&url, &response)?);
                }
                if status != StatusCode::OK {
                    return Err(FetchError::Status { host, status: status.as_u16() });
                }
                body.clear();
                match self.read(&host, response, &mut body, &mut *room).await {
                    Ok(()) => break Ok(()),
                    Err(Broken::Transfer(_)) if connection == Connection::Kept => {
                        connection = Connection::New;
                    }
                    Err(Broken::Transfer(error)) => return Err(failed(&host, &error)),
                    Err(Broken::Bound(error)) => return Err(error),
                }
            };
            match response {
                Ok(()) => {
                    body.shrink_to_fit();
                    return Ok(body.into());
                }
                Err(to) => url = to,
            }
        }
        Err(FetchError::Redirects { limit: self.config.max_redirects })
    }

    /// Reads the image into `body`, which is empty but may have memory already.
    async fn read(
        &self,
        host: &str,
        mut response: reqwest::Response,
        body: &mut Vec<u8>,
        room: Room<'_>,
    ) -> Result<(), Broken> {
        let limit = self.max_bytes;
        let too_large = || Broken::Bound(FetchError::TooLarge { host: host.to_owned(), limit });
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let length = response.content_length().and_then(|length| usize::try_from(length).ok());
        let rate = Rate::of_fetches(&self.config);
        let too_slow = |_| {
            let (host, rate, window) = (host.to_owned(), rate.bytes, rate.window);
            Broken::Bound(FetchError::TooSlow { host, rate, window })
        };
        let mut pace = Pace::new(rate);
        loop {
            let chunk = match pace.wait(Instant::now()) {
                None => response.chunk().await,
                Some(until) => match timeout_at(until, response.chunk()).await {
                    Ok(chunk) => chunk,
                    Err(_) => {
                        pace.check(Instant::now()).map_err(too_slow)?;
                        continue;
                    }
                },
            };
            let Some(chunk) = chunk.map_err(Broken::Transfer)? else { return Ok(()) };
            pace.moved(chunk.len(), Instant::now()).map_err(too_slow)?;
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            let needed = body.len() + chunk.len();
            if needed > body.capacity() {
                // For what will be allocated, not for what is in it.
                let doubled = (2 * body.capacity()).max(FIRST_BYTES).min(length.unwrap_or(limit));
                let capacity = needed.max(doubled);
                if !room(capacity) {
                    return Err(Broken::Bound(FetchError::NoRoom));
                }
                body.reserve_exact(capacity - body.len());
            }
            body.extend_from_slice(&chunk);
        }
    }
}

/// Why an image was not received completely.
enum Broken {
    /// The connection ended, or its data is not HTTP.
    Transfer(reqwest::Error),
    /// A limit was exceeded.
    Bound(FetchError),
}

fn redirect_target(from: &Url, response: &reqwest::Response) -> Result<Url, FetchError> {
    let bad = |reason: &str| FetchError::BadUrl { reason: format!("{} redirects {reason}", host_of(from)) };
    let location = response.headers().get("location").ok_or_else(|| bad("without saying where"))?;
    // Many servers send non-ASCII characters unencoded; the URL parser encodes them.
    let location = std::str::from_utf8(location.as_bytes());
    let location = location.map_err(|_| bad("to something that is no URL"))?;
    from.join(location).map_err(|_| bad("to something that is no URL"))
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or("(no host)").to_owned()
}

/// The resolver's refusal inside of the client's error, or the innermost reason.
fn failed(host: &str, error: &reqwest::Error) -> FetchError {
    // Starts at the source: the client's own text contains the whole URL.
    let mut source = std::error::Error::source(error);
    let mut reason = "the transfer failed".to_owned();
    while let Some(inner) = source {
        if let Some(FetchError::Refused { host, address }) = inner.downcast_ref() {
            tracing::info!(host, %address, "image_url refused: address not allowed");
            return FetchError::Refused { host: host.clone(), address: *address };
        }
        reason = inner.to_string();
        source = inner.source();
    }
    FetchError::Failed { host: host.to_owned(), reason }
}
