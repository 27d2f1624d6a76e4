//! Whether a bundle can serve: it is loaded and warmed on the CPU, on the calling thread, and its golden cases are run.

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
pub struct BundleCheck {
    pipeline: CpuPipeline,
    /// From the file to a first answer.
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

    /// Runs a golden case. Returns the label that comes first, as it must, and its score.
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

/// Whether the bundle's variant for the CPU, or the one of this precision, loads and computes what it promises.
///
/// # Errors
/// [`CheckError`] with the first thing that is wrong.
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
