//! What the registry has of a model, and which box says that it serves it.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use cloud_sync::registry::{ModelReference, ModelVersion};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::bootstrap::Links;
use crate::config::Config;

/// Longest time for one answer here: a person waits.
const ANSWER: Duration = Duration::from_secs(10);

/// A runtime and the configured registry.
pub(super) fn open(
    config: &Config,
) -> anyhow::Result<(Runtime, std::sync::Arc<dyn cloud_sync::registry::ModelRegistry>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let links = Links::open(config, runtime.handle())?;
    let registry = runtime.block_on(async { links.registry(config) })?;
    let registry = registry
        .context("there is no registry. Remedy: set registry.uri (MLFLOW_TRACKING_URI) or registry.dir")?;
    Ok((runtime, registry))
}

/// The registered name that a model follows.
pub(super) fn name_of(model: &Value, config: &Config, asked: &str) -> Option<String> {
    let said = model["follow"].as_str().map(str::to_owned);
    let own = config.models.get(asked).map(|model| model.follow.clone());
    let reference = said.or(own).unwrap_or_else(|| config.model.follow.clone());
    ModelReference::from_str(&reference).ok().map(|reference| reference.name)
}

/// All versions of a registered model, newest first.
pub(super) fn versions(config: &Config, name: &str) -> anyhow::Result<Vec<Value>> {
    let mut config = config.clone();
    config.registry.timeout = config.registry.timeout.min(ANSWER);
    let (runtime, registry) = open(&config)?;
    let versions = runtime.block_on(registry.versions(name)).map_err(|e| anyhow::anyhow!(e.in_full()))?;
    Ok(versions.iter().map(describe).collect())
}

fn describe(version: &ModelVersion) -> Value {
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
