//! Where information about models comes from: the running appliance by HTTP, the data directory, the registry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cloud_sync::registry::{ModelReference, ModelRegistry, ModelVersion};
use inference::bundle::find_bundle;
use reqwest::{Client, RequestBuilder};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use url::Url;

use crate::bootstrap::{Links, admin_token, default_name, models_dir};
use crate::config::Config;
use crate::models::ModelStore;
use crate::rollout::{DeployedVersion, Entry, Journal};

/// Longest time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time for an answer: a rollback may have to load a version first.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest time for an answer of the registry: a person waits.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// The running appliance.
pub(super) struct Appliance {
    url: Url,
    client: Client,
    runtime: Runtime,
}

impl Appliance {
    /// The appliance at `url`, or at the configured address.
    pub(super) fn at(url: Option<&str>, config: &Config) -> anyhow::Result<Self> {
        let text = url.map_or_else(|| format!("http://{}/", reachable(config.http.listen)), str::to_owned);
        let url = Url::parse(&text).with_context(|| format!("--url {text}"))?;
        anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "--url {text}: an http or https URL");
        // Fails where a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client =
            Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).timeout(COMMAND_TIMEOUT).build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { url, client, runtime })
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Its models, with their errors where the admin token is configured; none where no appliance answers.
    pub(super) fn models(&self, config: &Config) -> anyhow::Result<Option<Vec<Value>>> {
        let (request, token) = (self.client.get(self.path(&["models"])?), admin_token(config)?);
        let request = if token.is_empty() { request } else { request.bearer_auth(token.expose()) };
        let Some(reply) = self.send(request)? else { return Ok(None) };
        match &reply["models"] {
            Value::Array(models) => Ok(Some(models.clone())),
            _ => anyhow::bail!("{} answers, but is no Weir with models: {reply}", self.url()),
        }
    }

    /// Submits a command to the rollout of a model.
    pub(super) fn command(
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

    /// The JSON of the response; none where no connection can be made.
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

/// The address at which this box reaches a listener: loopback for one that listens everywhere.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The bundles in the store, the newest first.
pub(super) fn stored(config: &Config) -> anyhow::Result<Vec<Value>> {
    let dir = models_dir(&config.data_dir);
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let bundles = ModelStore::open(&dir)?.list()?;
    Ok(bundles.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
}

/// The models of the configuration, as the journal of the last process has them.
pub(super) fn journaled(config: &Config) -> anyhow::Result<Vec<Value>> {
    let dir = models_dir(&config.data_dir);
    let journal = dir.is_dir().then(|| Journal::open(&dir)).transpose()?;
    let entry = |name: &str| journal.as_ref().map(|journal| journal.entry(name)).unwrap_or_default();
    let follow = Some(config.model.follow.as_str()).filter(|follow| !follow.is_empty());
    let bundle = find_bundle(config.model.bundle.as_deref());
    let name = default_name(config, bundle.as_deref().ok());
    let mut models = vec![describe_entry(&name, &entry(&name), follow)];
    for (name, model) in &config.models {
        let follow = Some(model.follow.as_str()).filter(|follow| !follow.is_empty());
        models.push(describe_entry(name, &entry(name), follow));
    }
    Ok(models)
}

fn describe_entry(name: &str, entry: &Entry, follow: Option<&str>) -> Value {
    let rejected: Vec<Value> = entry
        .rejected
        .iter()
        .map(|rejected| {
            let version = format!("{}/{}", rejected.name, rejected.version);
            let at = humantime::format_rfc3339_seconds(rejected.at).to_string();
            json!({ "version": version, "reason": rejected.reason, "at": at })
        })
        .collect();
    json!({
        "model": name,
        "serving": entry.serving.as_ref().map_or_else(|| "bundle".to_owned(), DeployedVersion::to_string),
        "previous": entry.previous.as_ref().map(DeployedVersion::to_string),
        "follow": follow,
        "pinned": entry.pinned,
        "rejected": rejected,
    })
}

/// A runtime and the configured registry.
pub(super) fn open_registry(config: &Config) -> anyhow::Result<(Runtime, Arc<dyn ModelRegistry>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let links = Links::open(config, runtime.handle())?;
    let registry = runtime.block_on(async { links.registry(config) })?;
    let registry = registry
        .context("there is no registry. Remedy: set registry.uri (MLFLOW_TRACKING_URI) or registry.dir")?;
    Ok((runtime, registry))
}

/// The registered name that a model follows.
pub(super) fn registered_name(model: &Value, config: &Config, asked: &str) -> Option<String> {
    let said = model["follow"].as_str().map(str::to_owned);
    let own = config.models.get(asked).map(|model| model.follow.clone());
    let reference = said.or(own).unwrap_or_else(|| config.model.follow.clone());
    ModelReference::from_str(&reference).ok().map(|reference| reference.name)
}

/// All versions of a registered model, newest first.
pub(super) fn versions(config: &Config, name: &str) -> anyhow::Result<Vec<Value>> {
    let mut config = config.clone();
    config.registry.timeout = config.registry.timeout.min(REGISTRY_TIMEOUT);
    let (runtime, registry) = open_registry(&config)?;
    let versions = runtime.block_on(registry.versions(name)).map_err(|e| anyhow::anyhow!(e.in_full()))?;
    Ok(versions.iter().map(describe_version).collect())
}

fn describe_version(version: &ModelVersion) -> Value {
    let nodes: Map<String, Value> = version
        .tags
        .iter()
        .filter_map(|(key, value)| {
            let node = key.strip_prefix("weir.")?.strip_suffix(".state")?;
            Some((node.to_owned(), json!(value)))
        })
        .collect();
    json!({
        "version": version.version,
        "aliases": version.aliases,
        "nodes": nodes,
        "created": version.created.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
    })
}
