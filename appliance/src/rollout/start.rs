//! The start of a process: the version that served when the last one ended, or the best that is left.

use std::path::Path;
use std::sync::Arc;

use inference::bundle::{Bundle, BundleError, find_bundle};

use super::entry::{DeployedVersion, Entry};
use super::{Followed, Journal, RolloutContext, crashes};
use crate::models::{ModelStore, Origin};
use crate::serving::{LoadError, LoadedModel};

/// Where a bundle was found: the newer first.
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
    /// The newest bundle of a model that is whole; blocking. `None` when there is none and the registry has to bring it.
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
pub fn begin(
    context: &RolloutContext,
    followed: &Followed,
    found: Option<Result<BootCandidate, LoadError>>,
) -> Result<Option<Arc<LoadedModel>>, LoadError> {
    let name = followed.slot.name();
    let entry = still_followed(followed, &context.journal);
    let mut first = None;
    let mut next = match crashes::note_start(context, name, &entry) {
        // Where there is nothing else, it is better than nothing.
        true => {
            BootCandidate::after(Some(Place::Serving), followed.bundle.as_deref(), &context.store, &entry)
                .or(found)
        }
        false => found,
    };
    while let Some(found) = next {
        let place = match found {
            Ok(BootCandidate { bundle, placed, place }) => {
                let origin: Option<Origin> = placed.as_ref().map(DeployedVersion::origin);
                let observer = Arc::clone(&context.metrics);
                match context.loader.load(bundle, origin, &context.lanes, observer) {
                    // What serves may be less than the journal says. The journal stays as it is: whether the version it
                    // names can be loaded later, or never again, the rollout's task finds out.
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
        next = BootCandidate::after(Some(place), followed.bundle.as_deref(), &context.store, &entry);
    }
    first.map_or(Ok(None), Err)
}

/// What the journal knows of the model that is followed now. What was followed before, the configuration has put aside.
pub(super) fn still_followed(followed: &Followed, journal: &Journal) -> Entry {
    let mut entry = journal.entry(followed.slot.name());
    let is_it =
        |placed: &DeployedVersion| followed.follow.as_ref().is_some_and(|follow| follow.name == placed.name);
    entry.serving = entry.serving.filter(is_it);
    entry.previous = entry.previous.filter(is_it);
    entry
}
