//! The start of a process: loads the version that served when the last process ended, or the next best one.

use std::path::Path;
use std::sync::Arc;

use cloud_sync::durable::boot_id;
use inference::bundle::{Bundle, BundleError, find_bundle};

use super::entry::{DeployedVersion, Entry};
use super::{Followed, Journal, RolloutContext};
use crate::models::{ModelStore, Origin};
use crate::serving::{LoadError, LoadedModel};

/// Where a bundle was found, in the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Serving,
    Previous,
    Configured,
}

const PLACES: [Place; 3] = [Place::Serving, Place::Previous, Place::Configured];

/// A bundle that may serve, verified.
#[derive(Debug)]
pub struct BootCandidate {
    bundle: Bundle,
    placed: Option<DeployedVersion>,
    place: Place,
}

impl BootCandidate {
    /// The newest intact bundle of a model; blocking. `None` where there is none and the registry has to provide it.
    pub fn find(
        followed: &Followed,
        store: &ModelStore,
        journal: &Journal,
    ) -> Option<Result<Self, LoadError>> {
        Self::after(None, followed.bundle.as_deref(), store, &still_followed(followed, journal))
    }

    fn after(
        last: Option<Place>,
        configured: Option<&Path>,
        store: &ModelStore,
        entry: &Entry,
    ) -> Option<Result<Self, LoadError>> {
        let mut failure = None;
        for place in PLACES.into_iter().filter(|place| last.is_none_or(|last| *place > last)) {
            let placed = match place {
                Place::Serving => entry.serving.as_ref(),
                Place::Previous => entry.previous.as_ref(),
                Place::Configured => None,
            };
            let opened = match (place, placed) {
                (Place::Configured, _) => configured.map(|dir| Ok(Bundle::open(&find_bundle(Some(dir))?)?)),
                (_, None) => None,
                (_, Some(placed)) => Some(store.bundle(&placed.digest).map_err(|error| {
                    let reason = error.to_string();
                    LoadError::Bundle(BundleError::Invalid { dir: store.root().to_path_buf(), reason })
                })),
            };
            match opened {
                Some(Ok(bundle)) => return Some(Ok(Self { bundle, placed: placed.cloned(), place })),
                Some(Err(error)) => {
                    tracing::error!(%error, "a bundle can't be served");
                    failure.get_or_insert(Err(error));
                }
                None => {}
            }
        }
        failure
    }
}

/// Loads a model's bundle, or the next best if that fails; blocking. `None` when there is none that can be served.
///
/// # Errors
/// The first failure, when there were bundles and none can be served.
pub fn load_at_boot(
    context: &RolloutContext,
    followed: &Followed,
    found: Option<Result<BootCandidate, LoadError>>,
) -> Result<Option<Arc<LoadedModel>>, LoadError> {
    let name = followed.slot.name();
    let entry = still_followed(followed, &context.journal);
    let configured = followed.bundle.as_deref();
    let mut first = None;
    let mut next = if check_crashes(context, name, &entry) {
        let other = BootCandidate::after(Some(Place::Serving), configured, &context.store, &entry);
        // Where there is nothing else, it is better than nothing.
        other.or(found)
    } else {
        found
    };
    while let Some(found) = next {
        let place = match found {
            Ok(BootCandidate { bundle, placed, place }) => {
                let origin: Option<Origin> = placed.as_ref().map(DeployedVersion::origin);
                let observer = Arc::clone(&context.metrics);
                match context.loader.load(bundle, origin, &context.lanes, observer) {
                    // What serves may be older than what the journal says. The journal stays as it is: whether the version
                    // it names can be loaded later, or never again, the rollout's task finds out.
                    Ok(model) => return Ok(Some(Arc::new(model))),
                    Err(error) => {
                        tracing::error!(%error, model = name, "a bundle can't be served");
                        first.get_or_insert(error);
                        place
                    }
                }
            }
            Err(error) => {
                first.get_or_insert(error);
                break;
            }
        };
        next = BootCandidate::after(Some(place), configured, &context.store, &entry);
    }
    first.map_or(Ok(None), Err)
}

/// Whether the version that serves is not to be loaded again, since processes died with it. While it is monitored, each
/// process that starts with it is counted in the journal before it loads it, and one that is stopped clears the count.
/// Blocking.
fn check_crashes(context: &RolloutContext, model: &str, entry: &Entry) -> bool {
    if entry.serving.is_none() || entry.monitored.is_none() {
        return false;
    }
    let boot = boot_id();
    if let Some(reason) = entry.crash_reason(context.settings.rollout.monitor_time, &boot) {
        tracing::error!(model, reason, "the version that served is not loaded again");
        return true;
    }
    let counted = context.journal.change(model, |entry| {
        if let Some(monitored) = &mut entry.monitored {
            monitored.starts.add(&boot);
        }
    });
    if let Err(error) = counted {
        tracing::warn!(%error, "the start with a monitored version cannot be written to the journal");
    }
    false
}

fn still_followed(followed: &Followed, journal: &Journal) -> Entry {
    journal.entry(followed.slot.name()).still_followed(followed.follow.as_ref())
}
