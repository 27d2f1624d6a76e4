//! What the data directory says of models, for when no appliance runs.

use inference::bundle::find_bundle;
use serde_json::{Value, json};

use crate::bootstrap::models_dir;
use crate::config::Config;
use crate::models::ModelStore;
use crate::rollout::{Entry, Journal};

/// The bundles in the store, the newest first.
pub(super) fn stored(config: &Config) -> anyhow::Result<Vec<Value>> {
    let dir = models_dir(&config.data_dir);
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let bundles = ModelStore::open(&dir)?.list()?;
    Ok(bundles.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
}

/// The models that the configuration names, as the last process left them.
pub(super) fn models(config: &Config) -> anyhow::Result<Vec<Value>> {
    let dir = models_dir(&config.data_dir);
    let journal = dir.is_dir().then(|| Journal::open(&dir)).transpose()?;
    let entry = |name: &str| journal.as_ref().map(|journal| journal.entry(name)).unwrap_or_default();
    let follow = Some(config.model.follow.as_str()).filter(|follow| !follow.is_empty());
    let bundle = find_bundle(config.model.bundle.as_deref());
    let name = crate::bootstrap::default_name(config, bundle.as_deref().ok());
    let mut models = vec![describe(&name, &entry(&name), follow)];
    for (name, model) in &config.models {
        let follow = Some(model.follow.as_str()).filter(|follow| !follow.is_empty());
        models.push(describe(name, &entry(name), follow));
    }
    Ok(models)
}

fn describe(name: &str, entry: &Entry, follow: Option<&str>) -> Value {
    let placed = |placed: &crate::rollout::DeployedVersion| format!("{}/{}", placed.name, placed.version);
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
        "serving": entry.serving.as_ref().map_or_else(|| "bundle".to_owned(), placed),
        "previous": entry.previous.as_ref().map(placed),
        "follow": follow,
        "pinned": entry.pinned,
        "rejected": rejected,
    })
}
