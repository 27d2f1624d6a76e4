//! The parts of MLflow's responses that are used here.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Deserializer};

use crate::registry::ModelVersion;

#[derive(Debug, Deserialize)]
pub(super) struct OneVersion {
    pub(super) model_version: Version,
}

#[derive(Debug, Deserialize)]
pub(super) struct Versions {
    #[serde(default)]
    pub(super) model_versions: Vec<Version>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    name: String,
    #[serde(deserialize_with = "text")]
    pub(super) version: String,
    #[serde(default, deserialize_with = "maybe_number")]
    creation_timestamp: Option<u64>,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) run_id: String,
    #[serde(default)]
    pub(super) model_id: String,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default)]
    pub(super) aliases: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct DownloadUri {
    #[serde(default)]
    pub(super) artifact_uri: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Files {
    #[serde(default)]
    pub(super) files: Vec<FileInfo>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FileInfo {
    pub(super) path: String,
    #[serde(default)]
    pub(super) is_dir: bool,
    #[serde(default, deserialize_with = "maybe_number")]
    pub(super) file_size: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct OneRun {
    pub(super) run: Run,
}

#[derive(Debug, Deserialize)]
pub(super) struct Run {
    pub(super) info: RunInfo,
}

#[derive(Debug, Deserialize)]
pub(super) struct RunInfo {
    pub(super) run_id: String,
    #[serde(default)]
    pub(super) artifact_uri: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct OneExperiment {
    pub(super) experiment: Experiment,
}

#[derive(Debug, Deserialize)]
pub(super) struct Experiment {
    pub(super) experiment_id: String,
    #[serde(default)]
    pub(super) lifecycle_stage: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct NewExperiment {
    pub(super) experiment_id: String,
}

/// A response without content.
#[derive(Debug, Deserialize)]
pub(super) struct Done {}

impl From<Version> for ModelVersion {
    fn from(found: Version) -> Self {
        let created = found.creation_timestamp.map(|millis| UNIX_EPOCH + Duration::from_millis(millis));
        let tags = found.tags.into_iter().map(|tag| (tag.key, tag.value)).collect();
        let Version { name, version, aliases, source, .. } = found;
        Self { name, version, aliases, tags, source, created }
    }
}

/// Numbers are numbers from some servers and strings from others, as in protobuf's JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Either {
    Number(u64),
    Text(String),
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Either::deserialize(from)? {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    })
}

fn maybe_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Ok(match Option::<Either>::deserialize(from)? {
        Some(Either::Number(number)) => Some(number),
        Some(Either::Text(text)) => text.parse().ok(),
        None => None,
    })
}
