//! From a verified bundle to a loaded model: choose the variant, build the lanes, warm them, run the golden cases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::{DecodeError, DecodeLimits};
use inference::bundle::{Bundle, BundleError, DeviceTag, GoldenFault, ModelFile, Precision, run_golden};
use inference::engine::{DeviceChoice, EngineError, Runtime};
use inference::lanes::cpu::CpuPipeline;
use inference::lanes::gpu::gpu_factory;
use inference::lanes::{
    ClassifyError, CpuFallback, DeviceFactory, LaneDevice, LaneError, LaneObserver, LaneSettings, Lanes,
    SubmitError,
};

use super::{GpuPlan, LoadedModel, ServingModel};
use crate::config::Config;
use crate::low_priority;
use crate::models::Origin;

const GOLDEN_TIME: Duration = Duration::from_secs(60);

/// How long after a swap the previous version's requests may take to be answered.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a bundle is not served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The engine rejects the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A golden case has a wrong result.
    #[error(
        "golden case {file}: {reason}. The model does not compute what its bundle promises, so it is not served"
    )]
    Golden {
        /// The case.
        file: String,
        /// The difference.
        reason: String,
    },
    /// A golden case was not computed, and the bundle is not clearly the cause.
    #[error("golden case {file} was not computed: {reason}")]
    Uncomputed {
        /// The case.
        file: String,
        /// The error.
        reason: String,
        /// Whether time or memory was short, so that a retry may succeed.
        passes: bool,
    },
}

/// Loads models, each on lanes of its own, on the CPU or on GPUs.
#[derive(Clone, Debug)]
pub struct ModelLoader {
    /// The loaded library.
    pub runtime: Runtime,
    /// The selected device.
    pub device: DeviceChoice,
    /// Limits of images.
    pub limits: DecodeLimits,
    /// The configured variant, if any.
    pub precision: Option<Precision>,
    /// Settings of GPUs, where they serve.
    pub gpu: Option<GpuPlan>,
}

impl LoadError {
    /// Whether the same bundle may load later: this machine is the cause, not the bundle.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Bundle(error) => error.is_transient(),
            Self::Engine(error) => error.is_of_the_machine(),
            Self::Golden { .. } => false,
            Self::Uncomputed { passes, .. } => *passes,
        }
    }

    /// Whether the bundle is certainly the cause. If neither this nor [`LoadError::is_transient`] holds, the cause is unknown.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        match self {
            Self::Bundle(error) => !error.is_transient(),
            Self::Engine(error) => error.is_of_the_model(),
            Self::Golden { .. } => true,
            Self::Uncomputed { .. } => false,
        }
    }
}

/// The variants that a bundle's lanes run.
enum Variants {
    Cpu(ModelFile),
    /// On GPUs; the second is the CPU fallback, where it is allowed.
    Gpu(ModelFile, Option<ModelFile>),
}

impl Variants {
    fn first(&self) -> &ModelFile {
        match self {
            Self::Cpu(model) | Self::Gpu(model, _) => model,
        }
    }
}

impl ModelLoader {
    /// The variant of `bundle` that this device runs.
    ///
    /// # Errors
    /// [`BundleError::NoVariant`].
    pub fn variant(&self, bundle: &Bundle) -> Result<ModelFile, BundleError> {
        self.variants(bundle).map(|variants| variants.first().clone())
    }

    fn variants(&self, bundle: &Bundle) -> Result<Variants, BundleError> {
        let Some(gpu) = &self.gpu else {
            return bundle.variant(DeviceTag::Cpu, self.precision).map(Variants::Cpu);
        };
        // A precision for the GPU may not exist for the CPU.
        let cpu = || bundle.variant(DeviceTag::Cpu, None);
        match bundle.variant(gpu.tag(), self.precision) {
            Ok(model) => Ok(Variants::Gpu(model, cpu().ok().filter(|_| gpu.cpu_may_serve))),
            Err(error) if gpu.cpu_may_serve => {
                tracing::warn!(%error, "model has no variant for the GPU; serving it on the CPU");
                cpu().map(Variants::Cpu)
            }
            Err(error) => Err(error),
        }
    }

    /// Builds the devices of a model's lanes on the CPU, which compute up to `images` in one run.
    pub fn factory(&self, bundle: &Arc<Bundle>, model: &ModelFile, images: usize) -> DeviceFactory {
        let (runtime, bundle) = (self.runtime.clone(), Arc::clone(bundle));
        let (model, limits) = (model.clone(), self.limits);
        Arc::new(move |_| Ok(Box::new(CpuPipeline::new(&runtime, &bundle, &model, limits, images)?)))
    }

    /// Starts a bundle's lanes; `lanes` is for the CPU, and GPUs have their own.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(
        &self,
        bundle: &Arc<Bundle>,
        lanes: &LaneSettings,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<(ModelFile, Lanes), LoadError> {
        let variants = self.variants(bundle)?;
        let started = match (&variants, &self.gpu) {
            (Variants::Gpu(model, cpu), Some(gpu)) => {
                let factory = gpu_factory(&self.runtime, bundle, model, &gpu.settings(bundle, &lanes.stalls));
                let stand_in = cpu.as_ref().map(|model| CpuFallback {
                    lanes: lanes.clone(),
                    factory: self.factory(bundle, model, lanes.max_batch_size()),
                });
                Lanes::start_batches(&gpu.lanes(lanes), Vec::new(), &factory, stand_in, observer)?
            }
            (Variants::Cpu(model) | Variants::Gpu(model, _), _) => {
                let factory = self.factory(bundle, model, lanes.max_batch_size());
                Lanes::start(lanes, factory, observer)?
            }
        };
        Ok((variants.first().clone(), started))
    }

    /// Loads a bundle, warms it and runs its golden cases; blocking.
    ///
    /// # Errors
    /// [`LoadError`]; everything is released.
    pub fn load(
        &self,
        bundle: Bundle,
        origin: Option<Origin>,
        lanes: &LaneSettings,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<LoadedModel, LoadError> {
        let bundle = Arc::new(bundle);
        let (model, lanes) = self.start(&bundle, lanes, observer)?;
        check_golden(&bundle, &lanes)?;
        Ok(LoadedModel::new(ServingModel::new(&bundle, &model), lanes, bundle, origin))
    }

    /// The same while other versions serve. On the CPU the devices are built and the golden cases run at low priority, one after
    /// the other, before the lanes start; a GPU needs no such care.
    ///
    /// # Errors
    /// As [`ModelLoader::load`].
    pub fn load_candidate(
        &self,
        bundle: Bundle,
        origin: Option<Origin>,
        lanes: &LaneSettings,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<LoadedModel, LoadError> {
        let model = match self.variants(&bundle)? {
            Variants::Cpu(model) => model,
            Variants::Gpu(..) => return self.load(bundle, origin, lanes, observer),
        };
        let bundle = Arc::new(bundle);
        let factory = self.factory(&bundle, &model, lanes.max_batch_size());
        let build = || {
            let devices: Result<Vec<_>, EngineError> = (0..lanes.count).map(|lane| factory(lane)).collect();
            let mut devices = devices?;
            if let Some(first) = devices.first_mut() {
                check_golden_on(&bundle, first.as_mut())?;
            }
            Ok::<_, LoadError>(devices)
        };
        let devices = low_priority::run(build).map_err(EngineError::Thread)??;
        let lanes = Lanes::start_on(lanes, devices, factory, observer)?;
        Ok(LoadedModel::new(ServingModel::new(&bundle, &model), lanes, bundle, origin))
    }
}

/// Number of lanes on the CPU: as configured, or one per core.
pub fn cpu_lanes(config: &Config) -> usize {
    match config.engine.lanes {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        lanes => lanes,
    }
}

/// Runs every golden case of the bundle on a device that does not belong to a lane yet.
fn check_golden_on(bundle: &Bundle, device: &mut dyn LaneDevice) -> Result<(), LoadError> {
    Ok(run_golden(bundle, |case| match device.classify(&case.bytes) {
        Ok(classified) => Ok(classified.scores),
        Err(error) => Err(Uncomputed::Lane(error.into())),
    })?)
}

/// Runs every golden case of the bundle through the lanes.
///
/// # Errors
/// [`LoadError`] of the first that fails.
pub fn check_golden(bundle: &Bundle, lanes: &Lanes) -> Result<(), LoadError> {
    Ok(run_golden(bundle, |case| -> Result<_, Uncomputed> {
        let submitted = lanes.submit(case.bytes.clone().into(), Instant::now() + GOLDEN_TIME);
        let answer = submitted.map_err(Uncomputed::Refused)?.blocking_recv();
        let (classified, _) = answer.map_err(|_| Uncomputed::Ended)?.map_err(Uncomputed::Lane)?;
        Ok(classified.scores)
    })?)
}

/// Why a golden case was not computed.
#[derive(Debug, thiserror::Error)]
enum Uncomputed {
    #[error(transparent)]
    Refused(SubmitError),
    #[error("the lane ended")]
    Ended,
    #[error(transparent)]
    Lane(LaneError),
}

impl Uncomputed {
    /// Whether the model or the image is certainly the cause.
    fn is_of_the_bundle(&self) -> bool {
        match self {
            Self::Lane(LaneError::Classify(ClassifyError::Engine(error))) => error.is_of_the_model(),
            Self::Lane(LaneError::Classify(ClassifyError::Decode(error))) => {
                !matches!(error, DecodeError::OutOfTime | DecodeError::Setup(_))
            }
            _ => false,
        }
    }

    /// Whether it would be computed with more time or memory.
    fn passes(&self) -> bool {
        match self {
            Self::Refused(error) => matches!(error, SubmitError::DeadlinePassed | SubmitError::Full { .. }),
            Self::Lane(LaneError::Classify(ClassifyError::Decode(error))) => {
                matches!(error, DecodeError::OutOfTime | DecodeError::Setup(_))
            }
            Self::Lane(error) => matches!(error, LaneError::DeadlinePassed | LaneError::Displaced),
            Self::Ended => false,
        }
    }
}

impl From<GoldenFault<Uncomputed>> for LoadError {
    fn from(fault: GoldenFault<Uncomputed>) -> Self {
        match fault {
            GoldenFault::Bundle(error) => Self::Bundle(error),
            GoldenFault::Wrong { file, reason } => Self::Golden { file, reason },
            GoldenFault::Computing { file, error } => match error {
                // The engine knows the cause best.
                Uncomputed::Lane(LaneError::Classify(ClassifyError::Engine(error)))
                    if error.is_of_the_machine() =>
                {
                    Self::Engine(error)
                }
                error if error.is_of_the_bundle() => Self::Golden { file, reason: error.to_string() },
                // A lane that was stuck, panicked or had no time, or an engine error without a clear cause, says nothing about
                // the bundle.
                error => Self::Uncomputed { file, reason: error.to_string(), passes: error.passes() },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_golden_case_that_was_not_computed_is_the_bundles_fault_only_where_that_is_clear() {
        let limit = Duration::from_secs(1);
        let unclear = || EngineError::Run(ort::Error::new("no reason that anybody knows"));
        let corrupt =
            || DecodeError::CorruptImage { format: gpu_kernels::ImageFormat::Png, detail: "cut".into() };
        // The error, whether the bundle is certainly the cause, and whether the load is retried.
        for (error, certain, transient) in [
            (LaneError::Classify(EngineError::ScoreCount { found: 1, labels: 2 }.into()), true, false),
            (LaneError::Classify(corrupt().into()), true, false),
            (LaneError::Classify(unclear().into()), false, false),
            (LaneError::Classify(ClassifyError::Stalled { limit }), false, false),
            (LaneError::Panicked, false, false),
            (LaneError::Classify(DecodeError::OutOfTime.into()), false, true),
            (LaneError::DeadlinePassed, false, true),
        ] {
            let text = error.to_string();
            let file = "golden/red.png".to_owned();
            let error = LoadError::from(GoldenFault::Computing { file, error: Uncomputed::Lane(error) });
            assert_eq!((error.is_certain(), error.is_transient()), (certain, transient), "{text}");
        }
    }
}
