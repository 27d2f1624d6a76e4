//! Model bundles: the manifest, its verification, the variant that a device runs, and those that come from a registry.

mod bundle;
mod error;
mod find;
mod flavour;
mod golden;
mod manifest;
mod pull;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod trial;

pub use bundle::{Bundle, ModelFile, Shape};
pub use error::BundleError;
pub use find::find_bundle;
pub use flavour::{Graph, Port};
pub use golden::{Expected, GoldenCase, GoldenFault, run_golden};
pub use manifest::{
    DataFile, DeviceTag, Golden, Input, InputType, Manifest, Output, OutputKind, Precision, Variant,
};
pub use pull::{Progress, PullError, PullLimits, Pulled, pull};
pub use store::{ModelStore, Origin, Partial, StoreError, StoredBundle};
pub use trial::{CheckError, Trial, try_load};
