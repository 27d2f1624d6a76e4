//! The running appliance, asked over HTTP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::runtime::Runtime;
use url::Url;

use crate::bootstrap::admin_token;
use crate::config::Config;

/// Longest time for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest time for an answer: a rollback may have to load a version first.
const ANSWER: Duration = Duration::from_secs(300);

pub(super) struct Appliance {
    url: Url,
    client: Client,
    runtime: Runtime,
}

impl Appliance {
    /// The one at `url`, or at the configured address.
    pub(super) fn at(url: Option<&str>, config: &Config) -> anyhow::Result<Self> {
        let text = url.map_or_else(|| format!("http://{}/", reachable(config.http.listen)), str::to_owned);
        let url = Url::parse(&text).with_context(|| format!("--url {text}"))?;
        anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "--url {text}: an http or https URL");
        // A second installation is refused, which is as good: then there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().connect_timeout(CONNECT).timeout(ANSWER).build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { url, client, runtime })
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Its models; none when nobody answers there.
    /// With the admin token they come with their errors.
    pub(super) fn models(&self, config: &Config) -> anyhow::Result<Option<Vec<Value>>> {
        let (request, token) = (self.client.get(self.path(&["models"])?), admin_token(config)?);
        let request = if token.is_empty() { request } else { request.bearer_auth(token.expose()) };
        let Some(reply) = self.send(request)? else { return Ok(None) };
        match &reply["models"] {
            Value::Array(models) => Ok(Some(models.clone())),
            _ => anyhow::bail!("{} answers, but is no Weir with models: {reply}", self.url()),
        }
    }

    /// Has it do something with a model.
    pub(super) fn order(
        &self,
        model: &str,
        action: &str,
        version: Option<&str>,
        config: &Config,
    ) -> anyhow::Result<Value> {
        let token = admin_token(config)?;
        anyhow::ensure!(
            !token.is_empty(),
            "this needs the appliance's admin token. Remedy: set WEIR__ADMIN__TOKEN, or admin.token_file in the \
             configuration, to what the appliance has"
        );
        let mut url = self.path(&["models", model, action])?;
        if let Some(version) = version {
            url.query_pairs_mut().append_pair("version", version);
        }
        let request = self.client.post(url).bearer_auth(token.expose());
        self.send(request)?.with_context(|| format!("no appliance answers at {}", self.url()))
    }

    fn path(&self, parts: &[&str]) -> anyhow::Result<Url> {
        let mut url = self.url.clone();
        let segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("{} has no paths", self.url))?;
        { segments }.pop_if_empty().extend(parts);
        Ok(url)
    }

    /// The JSON of the answer; none when nobody answers, an error when it is one.
    fn send(&self, request: RequestBuilder) -> anyhow::Result<Option<Value>> {
        self.runtime.block_on(async {
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if error.is_connect() => return Ok(None),
                Err(error) => return Err(error).with_context(|| self.url().to_owned()),
            };
            let status = response.status();
            let text = response.text().await.with_context(|| self.url().to_owned())?;
            let reply: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} answers {status}, and not as a Weir does", self.url()))?;
            match reply["error"].as_str() {
                Some(error) if !status.is_success() => anyhow::bail!("{error} ({status})"),
                _ if !status.is_success() => anyhow::bail!("{} answers {status}", self.url()),
                _ => Ok(Some(reply)),
            }
        })
    }
}

/// The address under which this box reaches a listener: one that listens everywhere is at home too.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
