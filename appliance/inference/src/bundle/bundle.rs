//! A bundle on disk, verified: every listed file is there and is the one that the manifest was written for.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use gpu_kernels::PreprocessSpec;
use sha2::{Digest, Sha256};

use super::BundleError;
use super::golden::{self, Expected, GoldenCase};
use super::manifest::{DeviceTag, InputType, Manifest, OutputKind, Precision, Variant};

/// The manifest, relative to the bundle.
pub const MANIFEST: &str = "bundle.toml";
/// The labels, one per line, relative to the bundle.
pub const LABELS: &str = "labels.txt";
/// Largest manifest, in bytes. Manifests are a page of text.
pub const MANIFEST_LIMIT: u64 = 1 << 20;

/// A verified bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    digest: String,
}

/// A name and a shape; a dimension of 0 takes any size.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Name in the graph.
    pub name: String,
    /// Dimensions.
    pub dims: Vec<u32>,
}

/// What the engine needs to load one variant.
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

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the bundle says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Hex SHA-256 of the manifest, which holds the digests of all else: it names this bundle's content.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// From decoded pixels to the input tensor.
    pub fn preprocess(&self) -> &PreprocessSpec {
        &self.manifest.preprocess
    }

    /// The first variant listed for `device`, or the one of the given precision.
    ///
    /// # Errors
    /// [`BundleError::NoVariant`], naming what was asked and what there is.
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

    /// The golden cases, read again from the verified files; pictures made in code where the bundle has none, so that every
    /// model shows before it serves that its output is what the manifest says.
    ///
    /// # Errors
    /// [`BundleError::Read`] if a file has gone since the bundle was opened.
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

/// The manifest, checked as far as it can be without the other files, and its text.
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

/// Hex SHA-256 of all that `source` gives.
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

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
