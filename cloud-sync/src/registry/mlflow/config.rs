//! Address of MLflow and the login of this box.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Url};

use crate::error::{Link, SyncError, SyncResult};
use crate::secret::Secret;
use crate::tls;

/// Maximum redirects, on the same server only.
const MAX_REDIRECTS: usize = 5;

/// The server and its login: with a token, else with user and password, else none.
#[derive(Debug, Clone)]
pub struct MlflowConfig {
    /// `http(s)://host:port`, with a path where the server has one.
    pub uri: String,
    /// The user, `MLFLOW_TRACKING_USERNAME`.
    pub user: Option<String>,
    /// The password, `MLFLOW_TRACKING_PASSWORD`.
    pub password: Secret,
    /// The token, `MLFLOW_TRACKING_TOKEN`, sent note_fallback of user and password.
    pub token: Secret,
    /// PEM file of the authorities that may have signed the server's certificate; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Timeout of a response, and of each further read of a file's body.
    pub timeout: Duration,
}

impl MlflowConfig {
    /// The server at `uri` without a login, with a timeout of 30 s.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            user: None,
            password: Secret::default(),
            token: Secret::default(),
            ca_file: None,
            timeout: Duration::from_secs(30),
        }
    }

    /// # Errors
    /// When it is not the URI of a server. The error does not repeat it where it may hold a password.
    pub(super) fn base(&self) -> SyncResult<Url> {
        let refused = |what: String| SyncError::permanent(Link::Mlflow, what);
        if self.uri.contains('@') {
            let what = "the tracking URI has a user or a password in it: \
                        give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD";
            return Err(refused(what.into()));
        }
        let bad = |why: &str| {
            let shown: String = self.uri.chars().take(200).collect();
            refused(format!("{shown:?} is not a tracking URI: {why}"))
        };
        let url = Url::parse(&self.uri).map_err(|error| bad(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(bad("it begins with http:// or https:// and a host"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it has a '?' or a '#'"));
        }
        Ok(url)
    }

    /// The authorization header.
    pub(super) fn authorization(&self) -> SyncResult<Option<HeaderValue>> {
        let text = if !self.token.is_empty() {
            format!("Bearer {}", self.token.expose())
        } else if let Some(user) = &self.user {
            use base64::Engine as _;
            let both = format!("{user}:{}", self.password.expose());
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
        } else {
            return Ok(None);
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            let what =
                "MLFLOW_TRACKING_TOKEN has a line break or another character that a header cannot contain";
            SyncError::permanent(Link::Mlflow, what)
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    pub(super) fn client(&self) -> SyncResult<Client> {
        // A second installation is refused, which is fine: then there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::custom(same_server_only))
            // As for every other link: proxy settings of the environment are not meant for this box's own servers.
            .no_proxy()
            // A compressed body would bypass the limits on its size.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .pool_max_idle_per_host(4)
            .connect_timeout(self.timeout.min(Duration::from_secs(10)));
        if let Some(file) = &self.ca_file {
            builder = builder.tls_backend_preconfigured(tls::client_config(Link::Mlflow, file)?);
        }
        builder.build().map_err(|error| {
            SyncError::permanent(Link::Mlflow, "cannot set up the client").because(error.without_url())
        })
    }
}

fn same_server_only(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let server =
        |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
    let own = attempt.previous().first().map(server) == Some(server(attempt.url()));
    if own && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
}
