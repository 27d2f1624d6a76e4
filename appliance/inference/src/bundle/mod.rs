//! Model bundles: the manifest, the verification of files, the variant for a device, and golden cases.

mod golden;
mod manifest;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use gpu_kernels::PreprocessSpec;
use sha2::{Digest, Sha256};

pub use golden::{Expected, GoldenCase, GoldenFault, run_golden};
pub use manifest::{
    DataFile, DeviceTag, Golden, Input, InputType, Manifest, Output, OutputKind, Precision, Variant,
};

/// The manifest, relative to the bundle.
pub const MANIFEST: &str = "bundle.toml";
/// The labels, one per line, relative to the bundle.
pub const LABELS: &str = "labels.txt";
/// Maximum size of a manifest in bytes. Manifests are a page of text.
pub const MANIFEST_LIMIT: u64 = 1 << 20;

/// The default bundle, relative to where it is searched for.
const DEFAULT_BUNDLE: &str = "models/fish/1";

/// A verified bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    digest: String,
}

/// A name and a shape; a dimension of 0 is dynamic.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Name in the graph.
    pub name: String,
    /// Dimensions.
    pub dims: Vec<u32>,
}

/// What the engine needs to load a variant.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// The ONNX file.
    pub path: PathBuf,
    /// Arithmetic.
    pub precision: Precision,
    /// Element type of the input.
    pub input_type: InputType,
    /// Input, N C H W.
    pub input: Shape,
    /// Output, N labels.
    pub output: Shape,
    /// What the values of the output are.
    pub output_kind: OutputKind,
    /// Number of labels.
    pub labels: usize,
    /// Hex SHA-256 of the file.
    pub sha256: String,
}

impl Bundle {
    /// Reads and verifies a bundle: manifest, labels.txt, and the SHA-256 of every variant and golden case.
    ///
    /// # Errors
    /// [`BundleError`], naming the folder, the file and what is wrong with it.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let (manifest, text) = read_manifest(dir)?;
        let invalid = |reason: String| BundleError::Invalid { dir: dir.into(), reason };
        let listed = read_text(dir, LABELS)?;
        if !listed.lines().eq(manifest.labels.iter().map(String::as_str)) {
            return Err(invalid(format!("{LABELS} and the labels in {MANIFEST} differ")));
        }
        for (file, sha256) in manifest.files() {
            verify(dir, file, sha256)?;
        }
        let digest = hex(&Sha256::digest(text.as_bytes()));
        Ok(Self { dir: dir.into(), manifest, digest })
    }

    /// The bundle's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Hex SHA-256 of the manifest, which contains the digests of all other files, and so identifies the bundle's content.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Preprocessing from decoded pixels to the input tensor.
    pub fn preprocess(&self) -> &PreprocessSpec {
        &self.manifest.preprocess
    }

    /// The first variant listed for `device`, or the one of the given precision.
    ///
    /// # Errors
    /// [`BundleError::NoVariant`], with the requested and the available variants.
    pub fn variant(&self, device: DeviceTag, precision: Option<Precision>) -> Result<ModelFile, BundleError> {
        let fits = |v: &&Variant| v.devices.contains(&device) && precision.is_none_or(|p| p == v.precision);
        let Some(variant) = self.manifest.variants.iter().find(fits) else {
            let precision = precision.map_or(String::new(), |p| format!(" in {p}"));
            let available =
                self.manifest.variants.iter().map(|v| format!("{} for {:?}", v.precision, v.devices));
            return Err(BundleError::NoVariant {
                dir: self.dir.clone(),
                asked: format!("{device:?}{precision}").to_lowercase(),
                available: available.collect::<Vec<_>>().join(", ").to_lowercase(),
            });
        };
        let Manifest { input, output, labels, .. } = &self.manifest;
        Ok(ModelFile {
            path: self.dir.join(&variant.file),
            precision: variant.precision,
            input_type: variant.input_type,
            input: Shape { name: input.name.clone(), dims: input.shape.to_vec() },
            output: Shape { name: output.name.clone(), dims: output.shape.to_vec() },
            output_kind: output.kind,
            labels: labels.len(),
            sha256: variant.sha256.to_lowercase(),
        })
    }

    /// The golden cases, read again from the verified files; built-in pictures if the bundle has none, so that every model is
    /// checked before it serves.
    ///
    /// # Errors
    /// [`BundleError::Read`] if a file was removed since the bundle was opened.
    pub fn golden_cases(&self) -> Result<Vec<GoldenCase>, BundleError> {
        if self.manifest.golden.is_empty() {
            return Ok(golden::built_in());
        }
        let mut cases = Vec::with_capacity(self.manifest.golden.len());
        for golden in &self.manifest.golden {
            let bytes = std::fs::read(self.dir.join(&golden.file)).map_err(|source| BundleError::Read {
                dir: self.dir.clone(),
                file: golden.file.clone(),
                source,
            })?;
            let label = self.manifest.labels.iter().position(|l| *l == golden.label).unwrap_or(usize::MAX);
            let expected = Some(Expected { label, min_score: golden.min_score });
            cases.push(GoldenCase { file: golden.file.clone(), bytes, expected });
        }
        Ok(cases)
    }
}

/// Reads the manifest and validates it without the other files; returns it with its text.
pub(super) fn read_manifest(dir: &Path) -> Result<(Manifest, String), BundleError> {
    let text = read_text(dir, MANIFEST)?;
    let manifest: Manifest =
        toml::from_str(&text).map_err(|e| BundleError::Manifest { dir: dir.into(), source: Box::new(e) })?;
    manifest.validate().map_err(|reason| BundleError::Invalid { dir: dir.into(), reason })?;
    Ok((manifest, text))
}

fn read_text(dir: &Path, file: &str) -> Result<String, BundleError> {
    let failed = |source| BundleError::Read { dir: dir.into(), file: file.into(), source };
    let mut text = String::new();
    File::open(dir.join(file))
        .map_err(failed)?
        .take(MANIFEST_LIMIT)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn verify(dir: &Path, file: &str, expected: &str) -> Result<(), BundleError> {
    let failed = |source| BundleError::Read { dir: dir.into(), file: file.into(), source };
    let found = digest_of(File::open(dir.join(file)).map_err(failed)?).map_err(failed)?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(BundleError::Digest { dir: dir.into(), file: file.into(), found, expected: expected.to_lowercase() })
}

/// Hex SHA-256 of all bytes of `source`.
pub fn digest_of(mut source: impl Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 << 10];
    loop {
        match source.read(&mut block)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&block[..n]),
        }
    }
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The configured bundle's folder, or the first standard location with a bundle.toml: `models/fish/1` in the working
/// directory, beside the executable, and in `../share/weir` from there.
///
/// # Errors
/// [`BundleError::NotFound`] with the searched locations. A configured folder is not checked.
pub fn find_bundle(configured: Option<&Path>) -> Result<PathBuf, BundleError> {
    if let Some(dir) = configured {
        return Ok(dir.to_path_buf());
    }
    let mut places = vec![PathBuf::from(DEFAULT_BUNDLE)];
    if let Some(folder) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
        places.push(folder.join(DEFAULT_BUNDLE));
        places.push(folder.join("../share/weir").join(DEFAULT_BUNDLE));
    }
    if let Some(found) = places.iter().find(|dir| dir.join("bundle.toml").is_file()) {
        return Ok(found.clone());
    }
    let searched = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(BundleError::NotFound { searched })
}

/// Why a bundle is invalid.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No bundle is configured and no standard location has one.
    #[error(
        "no model bundle was found; searched: {searched}. Remedy: name one in `model.bundle` or WEIR__MODEL__BUNDLE"
    )]
    NotFound {
        /// The searched folders.
        searched: String,
    },
    /// A file of the bundle can't be read.
    #[error("bundle {}: {file} can't be read: {source}", dir.display())]
    Read {
        /// The bundle's folder.
        dir: PathBuf,
        /// The file, relative to the folder.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// bundle.toml is not valid TOML, or not a manifest.
    #[error("bundle {}: bundle.toml is not a valid manifest: {source}", dir.display())]
    Manifest {
        /// The bundle's folder.
        dir: PathBuf,
        /// The parser's error, with line and column.
        source: Box<toml::de::Error>,
    },
    /// The manifest is inconsistent or has an invalid value.
    #[error("bundle {}: {reason}", dir.display())]
    Invalid {
        /// The bundle's folder.
        dir: PathBuf,
        /// The reason, with the value.
        reason: String,
    },
    /// A file's digest differs from the one in the manifest.
    #[error("bundle {}: {file} has sha256 {found}, bundle.toml says {expected}: the file is damaged or was changed", dir.display())]
    Digest {
        /// The bundle's folder.
        dir: PathBuf,
        /// The file, relative to the folder.
        file: String,
        /// Hex digest of the file.
        found: String,
        /// Hex digest in the manifest.
        expected: String,
    },
    /// The bundle has no variant for the requested device and precision.
    #[error("bundle {}: no variant for {asked}; it has {available}", dir.display())]
    NoVariant {
        /// The bundle's folder.
        dir: PathBuf,
        /// The requested device and precision.
        asked: String,
        /// The available variants.
        available: String,
    },
}

impl BundleError {
    /// Whether a retry may succeed: the disk is at fault, not the bundle.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, NotFound};
        matches!(self, Self::Read { source, .. } if !matches!(source.kind(), NotFound | InvalidData))
    }
}
