//! Models in MLflow's registry, by its REST API; artifacts directly from S3 where possible, else through the server.

mod answers;
mod artifacts;
mod config;
mod download;
mod failure;
mod listing;
mod report;
mod resolve;
mod rest;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

pub use config::MlflowConfig;
use failure::{Answer, note};
use rest::Rest;

use super::{Artifact, ModelReference, ModelRegistry, ModelVersion, Report, check_path};
use crate::blob::S3Store;
use crate::check::{CheckStep, Steps};
use crate::error::{Link, SyncResult};
use crate::health::LinkHealth;

/// The registry of one MLflow server.
pub struct MlflowRegistry {
    rest: Rest,
    s3: Option<Arc<S3Store>>,
    health: LinkHealth,
}

impl fmt::Debug for MlflowRegistry {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "MlflowRegistry({})", self.rest.base())
    }
}

impl MlflowRegistry {
    /// A registry that is not connected yet. With `s3`, artifacts in the same storage are read from it directly. Its
    /// calls update `health`.
    ///
    /// # Errors
    /// When a setting is invalid, or a configured file cannot be read.
    pub fn open(config: &MlflowConfig, s3: Option<Arc<S3Store>>, health: LinkHealth) -> SyncResult<Self> {
        Ok(Self { rest: Rest::new(config)?, s3, health })
    }

    fn note<T>(&self, result: Answer<T>) -> SyncResult<T> {
        note(&self.health, result)
    }

    async fn first_model(&self) -> Answer<Option<String>> {
        let query = [("max_results", "1")];
        let found: Value =
            self.rest.get("list the registered models", "registered-models/search", &query).await?;
        Ok(found["registered_models"][0]["name"].as_str().map(str::to_owned))
    }
}

#[async_trait]
impl ModelRegistry for MlflowRegistry {
    async fn resolve(&self, reference: &ModelReference) -> SyncResult<Option<ModelVersion>> {
        let found = resolve::resolve(&self.rest, reference).await;
        self.note(found)
    }

    async fn versions(&self, name: &str) -> SyncResult<Vec<ModelVersion>> {
        let found = resolve::versions(&self.rest, name).await;
        self.note(found)
    }

    async fn artifacts(&self, version: &ModelVersion, limit: usize) -> SyncResult<Vec<Artifact>> {
        let listed = self.list(version, limit).await;
        self.note(listed)
    }

    async fn fetch(&self, version: &ModelVersion, path: &str, to: &Path, limit: u64) -> SyncResult<()> {
        check_path(Link::Mlflow, path)?;
        let fetched = self.fetch_file(version, path, to, limit).await;
        self.note(fetched)
    }

    async fn tag(&self, version: &ModelVersion, key: &str, value: &str) -> SyncResult<()> {
        let what = format!("tag {} version {}", version.name, version.version);
        let tag = json!({"name": version.name, "version": version.version, "key": key, "value": value});
        let set = self.rest.post(&what, "model-versions/set-tag", &tag).await;
        self.note(set.map(|answers::Done {}| ()))
    }

    async fn report(&self, report: &Report) -> SyncResult<()> {
        let kept = report::keep(&self.rest, report).await;
        self.note(kept)
    }

    async fn check(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        let reached = self.rest.version().await;
        let remark = |version: &String| format!("MLflow {} at {}", version, self.rest.base());
        if steps.note("reach the server", self.note(reached), remark).is_none() {
            return steps.finish();
        }
        let first = self.first_model().await;
        let remark = |first: &Option<String>| match first {
            Some(name) => format!("done; {name} is one"),
            None => "done; there is none yet".to_owned(),
        };
        let first = steps.note("log in and list the registered models", self.note(first), remark);
        if let Some(name) = first.flatten() {
            let versions = self.versions(&name).await;
            steps.note("list the versions of one", versions, |found| format!("{name}: {}", found.len()));
        }
        steps.finish()
    }
}
