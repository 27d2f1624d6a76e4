//! Versions of models: downloaded from a registry, assembled as bundles, and stored.

mod mlflow_onnx;
mod pull;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use pull::{Progress, PullError, PullLimits, Pulled, pull};
pub use store::{ModelStore, Origin, StagingDir, StoreError, StoredBundle};
