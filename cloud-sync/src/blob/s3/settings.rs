//! Settings of the object storage, and the client built from them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use reqwest::redirect::Policy;
use reqwest::{Body, Client as HttpClient};

use crate::blob::BlobKey;
use crate::error::{Link, SyncError, SyncResult};
use crate::tls;

/// Maximum length of a prefix: what S3 allows for a key beyond [`crate::blob::MAX_KEY_BYTES`].
const MAX_PREFIX_BYTES: usize = 120;

/// Settings of the object storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// Prefix of all keys, followed by a slash; may be empty.
    pub prefix: String,
    /// URL of a storage other than Amazon's. Default: `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// The region. Default: from the environment or the profile, else `us-east-1`.
    pub region: Option<String>,
    /// PEM file with the authorities that may have signed the storage's certificate, or with the certificate itself
    /// where it is self-signed. The system's authorities when absent.
    pub ca_file: Option<PathBuf>,
    /// A file in AWS's credentials format, of which the default profile is used. Default: the usual chain of
    /// environment, profile, web identity, container, instance.
    pub credentials_file: Option<PathBuf>,
    /// Whether the bucket is part of the path, not of the host name. Default: if there is an endpoint.
    pub path_style: Option<bool>,
    /// Connection timeout.
    pub connect_timeout: Duration,
    /// Timeout of the response to one attempt; a large body gets more according to its length.
    pub attempt_timeout: Duration,
    /// Attempts per call, at least 1.
    pub attempts: u32,
}

impl S3Config {
    /// A bucket with default settings.
    #[must_use]
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            ca_file: None,
            credentials_file: None,
            path_style: None,
            connect_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(30),
            attempts: 3,
        }
    }

    /// The prefix of keys: empty, or ending with a slash.
    ///
    /// # Errors
    /// When it is invalid.
    pub(super) fn key_prefix(&self) -> SyncResult<String> {
        let prefix = self.prefix.trim_matches('/');
        if prefix.is_empty() {
            return Ok(String::new());
        }
        let refused = || SyncError::permanent(Link::S3, format!("the prefix {prefix:?} is invalid"));
        if prefix.len() > MAX_PREFIX_BYTES {
            return Err(refused().because(format!("it may have {MAX_PREFIX_BYTES} bytes")));
        }
        BlobKey::new(prefix).map_err(|error| refused().because(error))?;
        Ok(format!("{prefix}/"))
    }

    /// Builds the client. It does not connect yet, nor resolve credentials.
    ///
    /// # Errors
    /// When a setting is invalid or a file cannot be read.
    pub(super) async fn client(&self) -> SyncResult<Client> {
        if let Some(endpoint) = &self.endpoint {
            let url = url::Url::parse(endpoint);
            if !url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                let what = format!("the endpoint {endpoint:?} is not an http:// or https:// URL");
                return Err(SyncError::permanent(Link::S3, what));
            }
        }
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(self.connect_timeout)
            .operation_attempt_timeout(self.attempt_timeout)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(self.attempts.max(1))
            .with_initial_backoff(Duration::from_millis(100))
            .with_max_backoff(Duration::from_secs(2));
        let region = RegionProviderChain::first_try(self.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::builder().build())
            .or_else("us-east-1");
        let web = http_client()?;
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(web.clone())
            .region(region)
            .timeout_config(timeouts)
            .retry_config(retries)
            // Other servers than Amazon's often do not support the newer checksums, and over TLS with a signed
            // payload they add nothing. Nor should responses be hashed on a worker's busy cores.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Downloads have their own limit, see `download`.
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().upload_enabled(true).download_enabled(false).build(),
            );
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(file) = &self.credentials_file {
            readable(file)?;
            let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
            let credentials = ProfileFileCredentialsProvider::builder()
                .configure(&ProviderConfig::without_region().with_http_client(web));
            // The profile of that file, whatever the environment says of others.
            let credentials = credentials.profile_files(files).profile_name("default");
            loader = loader.credentials_provider(credentials.build());
        }
        let shared = loader.load().await;
        let of_env = || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some_and(|url| !url.is_empty());
        let path_style = self.path_style.unwrap_or_else(|| shared.endpoint_url().is_some() || of_env());
        let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(path_style);
        if let Some(file) = &self.ca_file {
            // For the storage only: the services that provide credentials have other certificates.
            config = config.http_client(trusting(file, self.connect_timeout)?);
        }
        Ok(Client::from_conf(config.build()))
    }
}

fn http_client() -> SyncResult<SharedHttpClient> {
    let context = TlsContext::builder().with_trust_store(TrustStore::default()).build();
    let context = context
        .map_err(|error| SyncError::permanent(Link::S3, "cannot set up TLS").because(error.to_string()))?;
    Ok(Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

fn readable(file: &Path) -> SyncResult<()> {
    std::fs::File::open(file).map(drop).map_err(|error| {
        let what = format!("cannot read the credentials file {}", file.display());
        SyncError::permanent(Link::S3, what).because(error)
    })
}

/// An HTTP client that trusts the certificates of a PEM file and no others. The storage client's own accepts
/// authorities, but no rule for self-signed server certificates (see [`crate::tls`]).
///
/// # Errors
/// When the file can't be used.
fn trusting(file: &Path, connect_timeout: Duration) -> SyncResult<SharedHttpClient> {
    // A second installation is refused, which is fine: then there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = HttpClient::builder()
        .tls_backend_preconfigured(tls::client_config(Link::S3, file)?)
        .connect_timeout(connect_timeout)
        // The storage client follows redirects itself, because a request to another address is signed again.
        .redirect(Policy::none())
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .build()
        .map_err(|error| SyncError::permanent(Link::S3, "cannot set up TLS").because(error))?;
    let connector = SharedHttpConnector::new(Connector(client));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

#[derive(Debug)]
struct Connector(HttpClient);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let user = |error: BoxError| ConnectorError::user(error);
            let request = request.try_into_http1x().map_err(|error| user(error.into()))?.map(Body::wrap);
            let path = request.uri().path().to_owned();
            let request = reqwest::Request::try_from(request).map_err(|error| user(error.into()))?;
            if request.url().path() != path {
                // A URL has no such parts, and a request for another path than the signed one is refused.
                return Err(user("a key with a part '.' or '..' can't be had with a CA file".into()));
            }
            let response = client.execute(request).await.map_err(failed)?;
            answer_of(response).map_err(|error| ConnectorError::other(error, None))
        })
    }
}

fn answer_of(response: reqwest::Response) -> Result<HttpResponse, BoxError> {
    let (status, headers) = (response.status().as_u16().try_into()?, response.headers().clone());
    let mut answer = HttpResponse::new(status, SdkBody::from_body_1_x(Body::from(response)));
    for (name, value) in &headers {
        let value = std::str::from_utf8(value.as_bytes())?.to_owned();
        answer.headers_mut().try_append(name.as_str().to_owned(), value)?;
    }
    Ok(answer)
}

fn failed(error: reqwest::Error) -> ConnectorError {
    let error = error.without_url();
    if error.is_timeout() {
        ConnectorError::timeout(error.into())
    } else {
        // Retried, like every failure before a response.
        ConnectorError::io(error.into())
    }
}
