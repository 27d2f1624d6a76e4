//! A bundle tried out on the CPU, on the calling thread: loaded, warmed, and its golden cases run once.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use gpu_kernels::DecodeLimits;

use super::{Bundle, BundleError, DeviceTag, GoldenCase, ModelFile, Precision};
use crate::engine::{EngineError, Runtime};
use crate::lanes::ClassifyError;
use crate::lanes::cpu::CpuPipeline;

/// Why a bundle must not serve.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The bundle has nothing to load, or its files have gone.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It does not load, does not fit its manifest, or fails on a blank image.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A golden case can't be computed.
    #[error("golden case {file}: {source}")]
    Classify {
        /// The case.
        file: String,
        /// What the pipeline says.
        source: ClassifyError,
    },
    /// A golden case came out wrong.
    #[error("golden case {file}: {reason}")]
    Golden {
        /// The case.
        file: String,
        /// What came out.
        reason: String,
    },
}

/// A variant that is loaded and warm.
pub struct Trial {
    pipeline: CpuPipeline,
    /// From the file to a first answer.
    pub load_time: Duration,
}

impl Trial {
    /// Loads a variant and runs it on a blank image.
    ///
    /// # Errors
    /// [`CheckError::Engine`].
    pub fn load(
        runtime: &Runtime,
        bundle: &Bundle,
        model: &ModelFile,
        limits: DecodeLimits,
    ) -> Result<Self, CheckError> {
        let started = Instant::now();
        let pipeline = CpuPipeline::new(runtime, bundle, model, limits, 1)?;
        Ok(Self { pipeline, load_time: started.elapsed() })
    }

    /// Runs a golden case. Returns the label that comes first, as it must, and its score.
    ///
    /// # Errors
    /// [`CheckError::Classify`] and [`CheckError::Golden`].
    pub fn run(&mut self, bundle: &Bundle, case: &GoldenCase) -> Result<(usize, f32), CheckError> {
        let classified = self
            .pipeline
            .classify(&case.bytes)
            .map_err(|source| CheckError::Classify { file: case.file.clone(), source })?;
        case.judge(&bundle.manifest().labels, &classified.scores)
            .map_err(|reason| CheckError::Golden { file: case.file.clone(), reason })
    }
}

/// Whether the bundle's variant for the CPU, or the one of this precision, loads and computes what it promises.
///
/// # Errors
/// [`CheckError`] with the first thing that is wrong.
pub fn try_load(
    runtime: &Runtime,
    bundle: &Bundle,
    precision: Option<Precision>,
    limits: DecodeLimits,
) -> Result<(), CheckError> {
    let model = bundle.variant(DeviceTag::Cpu, precision)?;
    let mut trial = Trial::load(runtime, bundle, &model, limits)?;
    bundle.golden_cases()?.iter().try_for_each(|case| trial.run(bundle, case).map(|_| ()))
}
