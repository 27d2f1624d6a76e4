//! A model by name: the version that answers, the one on trial, and the one that is kept for a way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cloud_sync::event::Score;
use gpu_kernels::{DecodeLimits, FormatSet};
use inference::decode_memory::decode_cost;
use parking_lot::{Mutex, RwLock};

use super::{LoadedModel, Sightings};

/// Of the images that a promoted version answers, so many are compared at first, and then one of so many: enough to judge by,
/// at a price that a machine near its limit can pay for as long as a version is monitored.
const ALL_OF_THE_FIRST: u64 = 200;
const THEN_ONE_IN: u64 = 8;

const NO_LIMITS: DecodeLimits = DecodeLimits {
    max_bytes: usize::MAX,
    max_pixels: u64::MAX,
    max_scans: u32::MAX,
    max_time: std::time::Duration::MAX,
    formats: FormatSet::ALL,
};

/// A model by name. Many ask it at once; only the model's rollout changes it.
#[derive(Debug)]
pub struct Slot {
    name: String,
    routes: RwLock<Arc<ActiveVersions>>,
    seen: Mutex<Sightings>,
}

/// Which versions there are.
#[derive(Clone, Debug, Default)]
pub struct ActiveVersions {
    /// The one that answers; none before the first is here.
    pub current: Option<Arc<LoadedModel>>,
    /// The one on trial.
    pub trial: Option<Trial>,
    /// The one before the current, loaded still.
    pub standby: Option<Arc<LoadedModel>>,
    /// While the current one is monitored after its promotion: what came of images that the one before computed, too.
    pub monitored: Option<Arc<Comparison>>,
}

/// A version on trial.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The version.
    pub model: Arc<LoadedModel>,
    /// How it is tried.
    pub kind: TrialKind,
    /// What came of images that both computed.
    pub comparison: Arc<Comparison>,
}

/// How a version is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrialKind {
    /// It computes a copy of what the current one is asked, and answers nobody.
    Shadow,
    /// It answers this part of all cameras, 0 to 1.
    Canary {
        /// The part.
        part: f64,
    },
}

/// Images that two versions computed.
#[derive(Debug, Default)]
pub struct Comparison {
    offered: AtomicU64,
    compared: AtomicU64,
    disagreed: AtomicU64,
}

impl Comparison {
    /// Both have computed an image.
    pub fn note(&self, agreed: bool) {
        self.compared.fetch_add(1, Ordering::Relaxed);
        self.disagreed.fetch_add(u64::from(!agreed), Ordering::Relaxed);
    }

    /// Whether the next image is one of the sample that is compared after a promotion: the first images, then some.
    fn samples(&self) -> bool {
        let offered = self.offered.fetch_add(1, Ordering::Relaxed);
        offered < ALL_OF_THE_FIRST || offered.is_multiple_of(THEN_ONE_IN)
    }

    /// Images compared, and those of them with another best label.
    pub fn read(&self) -> (u64, u64) {
        (self.compared.load(Ordering::Relaxed), self.disagreed.load(Ordering::Relaxed))
    }
}

/// The version that a request was given.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// It.
    pub model: Arc<LoadedModel>,
    /// Whether it is on trial.
    pub on_trial: bool,
    /// The other one, where what both say is to be compared.
    pub other: Option<Other>,
}

/// A version that computes an image another one answers.
#[derive(Clone, Debug)]
pub struct Other {
    /// It.
    pub model: Arc<LoadedModel>,
    /// What both say.
    pub comparison: Arc<Comparison>,
    /// Whether it is the one on trial, so that an image it fails on counts as one on which they disagree.
    pub on_trial: bool,
}

impl Chosen {
    /// Where there is another version to compare with: has it compute the image in what time real-time work leaves, and
    /// notes whether both name the same best label. Never waits: where the other has no room, the image is not compared.
    pub fn compare(&self, image: &Bytes, label: &str) {
        let Some(Other { model: other, comparison, on_trial }) = &self.other else { return };
        // It was decoded within its limits already; only what that takes is asked.
        let Ok(header) = gpu_kernels::inspect(image, &NO_LIMITS) else { return };
        let Some(answer) = other.lanes.try_submit_batch(image.clone(), decode_cost(&header)) else { return };
        let (other, comparison, label) = (Arc::clone(other), Arc::clone(comparison), label.to_owned());
        let on_trial = *on_trial;
        tokio::spawn(async move {
            match answer.await {
                Ok(Ok((classified, _))) => {
                    other.tally.computed(classified.timings.sum());
                    let best = other.model.best(&classified.scores, 1);
                    comparison.note(best.first().is_some_and(|best| best.label == label));
                }
                Ok(Err(error)) => {
                    let failed = other.tally.failed_by(&error);
                    if failed && on_trial {
                        comparison.note(false);
                    }
                }
                _ => {}
            }
        });
    }
}

impl Slot {
    /// A model that has no version yet.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), routes: RwLock::default(), seen: Mutex::default() })
    }

    /// Its name, as in `?model=`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Notes the best label of an answer.
    pub fn observed(&self, best: &Score) {
        self.seen.lock().note(best);
    }

    /// What has been answered since this was last asked.
    pub fn take_seen(&self) -> Sightings {
        std::mem::take(&mut *self.seen.lock())
    }

    /// Which versions there are now.
    pub fn routes(&self) -> Arc<ActiveVersions> {
        Arc::clone(&self.routes.read())
    }

    /// The version that answers.
    pub fn current(&self) -> Option<Arc<LoadedModel>> {
        self.routes.read().current.clone()
    }

    /// Changes which versions there are; requests that come later see it.
    pub fn change(&self, change: impl FnOnce(&mut ActiveVersions)) {
        let mut routes = self.routes.write();
        let mut new = ActiveVersions::clone(&routes);
        change(&mut new);
        *routes = Arc::new(new);
    }

    /// The version for a request of `source`: its camera, or its id when it names none. The same source gets the same
    /// version for as long as the routes stay, and one that has the version on trial keeps it when its part grows.
    pub fn choose(&self, source: &str) -> Option<Chosen> {
        let routes = self.routes();
        let current = Arc::clone(routes.current.as_ref()?);
        let Some(Trial { model, kind, comparison }) = &routes.trial else {
            let other = match (&routes.standby, &routes.monitored) {
                (Some(before), Some(comparison)) if comparison.samples() => {
                    let (model, comparison) = (Arc::clone(before), Arc::clone(comparison));
                    Some(Other { model, comparison, on_trial: false })
                }
                _ => None,
            };
            return Some(Chosen { model: current, on_trial: false, other });
        };
        Some(match kind {
            TrialKind::Shadow => {
                let (model, comparison) = (Arc::clone(model), Arc::clone(comparison));
                let other = Some(Other { model, comparison, on_trial: true });
                Chosen { model: current, on_trial: false, other }
            }
            TrialKind::Canary { part } if is_in_part(&self.name, source, *part) => {
                let comparison = Arc::clone(comparison);
                let other = Some(Other { model: current, comparison, on_trial: false });
                Chosen { model: Arc::clone(model), on_trial: true, other }
            }
            TrialKind::Canary { .. } => Chosen { model: current, on_trial: false, other: None },
        })
    }
}

/// Whether a source is in this part of all sources of a model.
pub(super) fn is_in_part(model: &str, source: &str, part: f64) -> bool {
    let digest =
        blake3::Hasher::new().update(model.as_bytes()).update(&[0]).update(source.as_bytes()).finalize();
    let mut first = [0; 4];
    first.copy_from_slice(&digest.as_bytes()[..4]);
    f64::from(u32::from_le_bytes(first)) < part * (f64::from(u32::MAX) + 1.0)
}
