//! Model bundles: the manifest, the verification of files, the variant that a device runs, and golden cases.

#[expect(clippy::module_inception, reason = "the bundle itself, beside what it is made of")]
mod bundle;
mod error;
mod find;
mod golden;
mod manifest;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use bundle::{Bundle, LABELS, MANIFEST, MANIFEST_LIMIT, ModelFile, Shape, digest_of, hex};
pub use error::BundleError;
pub use find::find_bundle;
pub use golden::{Expected, GoldenCase, GoldenFault, run_golden};
pub use manifest::{
    DataFile, DeviceTag, Golden, Input, InputType, Manifest, Output, OutputKind, Precision, Variant,
};
