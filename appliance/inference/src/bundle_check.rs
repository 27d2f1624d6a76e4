//! Checks whether a bundle can serve: loads it and warms it up on the CPU, on the calling thread, and runs its golden cases.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use gpu_kernels::DecodeLimits;

use crate::bundle::{
    Bundle, BundleError, DeviceTag, GoldenCase, GoldenFault, ModelFile, Precision, run_golden,
};
use crate::engine::{EngineError, Runtime};
use crate::lanes::ClassifyError;
use crate::lanes::cpu::CpuPipeline;

/// Why a bundle can't serve.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The bundle has no matching variant, or a file was removed.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The model does not load, does not match its manifest, or fails on a blank image.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A golden case can't be computed.
    #[error("golden case {file}: {source}")]
    Classify {
        /// Name of the case.
        file: String,
        /// The pipeline's error.
        source: ClassifyError,
    },
    /// A golden case has a wrong result.
    #[error("golden case {file}: {reason}")]
    Golden {
        /// Name of the case.
        file: String,
        /// What was expected and what was computed.
        reason: String,
    },
}

/// A loaded and warmed-up variant.
pub struct BundleCheck {
    pipeline: CpuPipeline,
    /// Time from opening the file to the first result.
    pub load_time: Duration,
}

impl BundleCheck {
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

    /// Runs a golden case. Returns the top label and its score.
    ///
    /// # Errors
    /// [`CheckError::Classify`] and [`CheckError::Golden`].
    pub fn run(&mut self, bundle: &Bundle, case: &GoldenCase) -> Result<(usize, f32), CheckError> {
        Ok(case.check(bundle, self.compute(case))?)
    }

    fn compute(&mut self, case: &GoldenCase) -> Result<Vec<f32>, ClassifyError> {
        self.pipeline.classify(&case.bytes).map(|classified| classified.scores)
    }
}

impl From<GoldenFault<ClassifyError>> for CheckError {
    fn from(fault: GoldenFault<ClassifyError>) -> Self {
        match fault {
            GoldenFault::Bundle(error) => Self::Bundle(error),
            GoldenFault::Computing { file, error } => Self::Classify { file, source: error },
            GoldenFault::Wrong { file, reason } => Self::Golden { file, reason },
        }
    }
}

/// Checks that the bundle's variant for the CPU, or the one of this precision, loads and computes its golden cases.
///
/// # Errors
/// [`CheckError`] of the first failure.
pub fn check_bundle(
    runtime: &Runtime,
    bundle: &Bundle,
    precision: Option<Precision>,
    limits: DecodeLimits,
) -> Result<(), CheckError> {
    let model = bundle.variant(DeviceTag::Cpu, precision)?;
    let mut check = BundleCheck::load(runtime, bundle, &model, limits)?;
    Ok(run_golden(bundle, |case| check.compute(case))?)
}
