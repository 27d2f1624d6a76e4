//! Versions of models: downloaded from a registry, put together as bundles, and stored.

mod mlflow_onnx;
mod pull;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use pull::{Progress, PullLimits, pull};
#[cfg(test)]
pub(crate) use pull::{PullError, Pulled};
pub use store::{ModelStore, Origin, Partial, StoreError, StoredBundle};
