//! An endpoint: a name under which a model is served, and its versions: the current one, the candidate of a trial, and the
//! previous one, which stays loaded for a rollback.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cloud_sync::event::Score;
use parking_lot::{Mutex, RwLock};

use super::{LoadedModel, PredictionStats};

/// Images of a promoted version that are all compared with the previous version.
const FULLY_COMPARED: u64 = 200;
/// After those, one image in this many is compared: enough for a decision, at a cost that a machine near saturation can
/// bear for as long as the version is monitored.
const SAMPLE_INTERVAL: u64 = 8;

/// A name under which a model is served. Read by every request; changed only by the model's rollout.
#[derive(Debug)]
pub struct Endpoint {
    name: String,
    versions: RwLock<Arc<ActiveVersions>>,
    predictions: Mutex<PredictionStats>,
}

/// The loaded versions.
#[derive(Clone, Debug, Default)]
pub struct ActiveVersions {
    /// The version that answers; `None` before the first is loaded.
    pub current: Option<Arc<LoadedModel>>,
    /// The candidate, while a trial runs.
    pub trial: Option<Trial>,
    /// The previous version, while it is still loaded.
    pub standby: Option<Arc<LoadedModel>>,
    /// The comparison with the previous version, while the current one is monitored after its promotion.
    pub monitored: Option<Arc<Comparison>>,
}

/// A trial of a candidate.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The candidate.
    pub model: Arc<LoadedModel>,
    /// The kind of trial.
    pub kind: TrialKind,
    /// The comparison with the current version.
    pub comparison: Arc<Comparison>,
}

/// The kind of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrialKind {
    /// The candidate computes copies of the images that the current version answers, and answers none itself.
    Shadow,
    /// The candidate answers this share of all sources.
    Canary {
        /// The share, 0 to 1.
        part: f64,
    },
}

/// Counts of images that two versions computed.
#[derive(Debug, Default)]
pub struct Comparison {
    offered: AtomicU64,
    compared: AtomicU64,
    disagreed: AtomicU64,
}

impl Comparison {
    /// Counts an image that both have computed.
    pub fn record(&self, agreed: bool) {
        self.compared.fetch_add(1, Ordering::Relaxed);
        self.disagreed.fetch_add(u64::from(!agreed), Ordering::Relaxed);
    }

    /// Whether the next image belongs to the sample that is compared after a promotion.
    fn samples(&self) -> bool {
        let offered = self.offered.fetch_add(1, Ordering::Relaxed);
        offered < FULLY_COMPARED || offered.is_multiple_of(SAMPLE_INTERVAL)
    }

    /// Images compared, and those of them with different best labels.
    pub fn read(&self) -> (u64, u64) {
        (self.compared.load(Ordering::Relaxed), self.disagreed.load(Ordering::Relaxed))
    }
}

/// The version that a request is routed to.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The version.
    pub model: Arc<LoadedModel>,
    /// Whether it is the candidate of a trial.
    pub is_candidate: bool,
    /// The version that computes the same image for a comparison.
    pub shadow: Option<Shadow>,
}

impl Chosen {
    /// The current version, compared with none.
    pub(super) fn current(model: Arc<LoadedModel>) -> Self {
        Self { model, is_candidate: false, shadow: None }
    }
}

/// A version that computes an image which another version answers.
#[derive(Clone, Debug)]
pub struct Shadow {
    /// The version.
    pub model: Arc<LoadedModel>,
    /// The comparison of both.
    pub comparison: Arc<Comparison>,
    /// Whether it is the candidate of a trial, so that an image on which it fails counts as a disagreement.
    pub is_candidate: bool,
}

impl Endpoint {
    /// An endpoint that has no version yet.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), versions: RwLock::default(), predictions: Mutex::default() })
    }

    /// Its name, as in `?model=`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts an answer by its best label.
    pub fn record(&self, best: &Score) {
        self.predictions.lock().record(best);
    }

    /// Takes the statistics of the answers since the last call.
    pub fn take_stats(&self) -> PredictionStats {
        std::mem::take(&mut *self.predictions.lock())
    }

    /// The loaded versions.
    pub fn routes(&self) -> Arc<ActiveVersions> {
        Arc::clone(&self.versions.read())
    }

    /// The version that answers.
    pub fn current(&self) -> Option<Arc<LoadedModel>> {
        self.versions.read().current.clone()
    }

    /// Changes the versions for all later requests.
    pub fn change(&self, change: impl FnOnce(&mut ActiveVersions)) {
        let mut versions = self.versions.write();
        let mut new = ActiveVersions::clone(&versions);
        change(&mut new);
        *versions = Arc::new(new);
    }

    /// The version for a request of `source`: its camera, or its id when it names none. A source keeps its version for as
    /// long as the versions stay, and a source of the candidate keeps it when the candidate's share grows.
    pub fn choose(&self, source: &str) -> Option<Chosen> {
        let versions = self.routes();
        let current = Arc::clone(versions.current.as_ref()?);
        let Some(Trial { model, kind, comparison }) = &versions.trial else {
            let shadow = match (&versions.standby, &versions.monitored) {
                (Some(previous), Some(comparison)) if comparison.samples() => {
                    let (model, comparison) = (Arc::clone(previous), Arc::clone(comparison));
                    Some(Shadow { model, comparison, is_candidate: false })
                }
                _ => None,
            };
            return Some(Chosen { model: current, is_candidate: false, shadow });
        };
        Some(match kind {
            TrialKind::Shadow => {
                let (model, comparison) = (Arc::clone(model), Arc::clone(comparison));
                let shadow = Some(Shadow { model, comparison, is_candidate: true });
                Chosen { model: current, is_candidate: false, shadow }
            }
            TrialKind::Canary { part } if is_in_part(&self.name, source, *part) => {
                let comparison = Arc::clone(comparison);
                let shadow = Some(Shadow { model: current, comparison, is_candidate: false });
                Chosen { model: Arc::clone(model), is_candidate: true, shadow }
            }
            TrialKind::Canary { .. } => Chosen::current(current),
        })
    }
}

/// Whether a source belongs to this share of all sources of a model.
pub(super) fn is_in_part(model: &str, source: &str, part: f64) -> bool {
    let digest =
        blake3::Hasher::new().update(model.as_bytes()).update(&[0]).update(source.as_bytes()).finalize();
    let mut first = [0; 4];
    first.copy_from_slice(&digest.as_bytes()[..4]);
    f64::from(u32::from_le_bytes(first)) < part * (f64::from(u32::MAX) + 1.0)
}
