//! Model bundles: the manifest, its verification, and the variant that a device runs.

mod bundle;
mod error;
mod find;
mod manifest;
#[cfg(test)]
mod tests;

pub use bundle::{Bundle, GoldenCase, ModelFile, Shape};
pub use error::BundleError;
pub use find::find_bundle;
pub use manifest::{DeviceTag, Golden, Input, InputType, Manifest, Output, Precision, Variant};
