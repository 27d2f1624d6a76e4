//! What leaves the box about a model: events of changes, tags of versions, and summaries of what it has seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::event::{Event, EventBody, ModelChange};
use cloud_sync::registry::{ModelReference, ModelVersion, Report, Which};
use tokio::sync::watch;

use super::RolloutContext;
use super::entry::PendingTag;
use crate::serving::{Endpoint, LoadedModel, PredictionStats};

/// Least share that a label counts with: one that was never seen would make the index infinite.
const MIN_SHARE: f64 = 1e-4;

/// Publishes a change as an event; a full outbox is logged, and changes nothing about the rollout.
pub(super) async fn publish(context: &RolloutContext, change: ModelChange) {
    let (model, state, version) = (&change.model, &change.state, &change.version);
    tracing::info!(model, version, other = change.other, reason = change.reason, "{state}");
    context.metrics.rollout(model, state);
    let Some(outbox) = &context.outbox else { return };
    let event = Event::new(context.settings.node.clone(), EventBody::Model(change));
    if let Err(error) = outbox.append_event(&event).await {
        tracing::warn!(%error, "the event of a change of a model is dropped: the outbox rejected it");
    }
}

/// The tag by which a fleet manager sees what this box does with a version.
fn tag_key(node: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_. ".contains(c) { c } else { '_' };
    format!("weir.{}.state", node.chars().map(plain).take(200).collect::<String>())
}

/// Sets the tags that are queued in the journal. A tag that the registry refuses for good is dropped; the others wait for the
/// next time.
pub(super) async fn set_tags(context: &Arc<RolloutContext>, model: &str) {
    let Some(registry) = context.registry.as_ref().filter(|_| context.settings.tag) else { return };
    let key = tag_key(&context.settings.node);
    for tag in context.journal.entry(model).pending_tags {
        let PendingTag { name, version, value } = &tag;
        let reference = ModelReference { name: name.clone(), which: Which::Version(version.clone()) };
        let done = match registry.resolve(&reference).await {
            Ok(Some(found)) if is_tagged(&found, &key, value) => Ok(()),
            Ok(Some(found)) => registry.tag(&found, &key, value).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match done {
            Err(error) if error.is_transient() => return,
            Err(error) => tracing::warn!(error = error.in_full(), version, "a version can't be tagged"),
            Ok(()) => {}
        }
        let removed =
            context.change_entry(model, move |entry| entry.pending_tags.retain(|other| *other != tag));
        if let Err(error) = removed.await {
            tracing::warn!(%error, "tags will be set again: the journal cannot be written");
            return;
        }
    }
}

fn is_tagged(version: &ModelVersion, key: &str, value: &str) -> bool {
    version.tags.get(key).is_some_and(|now| now == value)
}

/// Sends a report of each model to the registry's monitoring experiment, every `monitoring.interval`: counts by species,
/// confidence, drift from the model's reference, and how many images there were. What could not be sent is part of the next
/// report.
pub(super) async fn run_reports(
    context: Arc<RolloutContext>,
    slots: Vec<Arc<Endpoint>>,
    mut stop: watch::Receiver<bool>,
) {
    let Some(registry) = context.registry.clone() else { return };
    let settings = &context.settings;
    let mut kept: BTreeMap<String, PredictionStats> = BTreeMap::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(settings.monitoring.interval) => {}
        }
        for slot in &slots {
            let Some(model) = slot.current() else { continue };
            let mut seen = slot.take_stats();
            if let Some(earlier) = kept.remove(slot.name()) {
                seen = earlier.and(seen);
            }
            let (experiment, node) = (&settings.monitoring.experiment, &settings.node);
            let report = report(experiment, node, slot.name(), &model, &seen);
            match registry.report(&report).await {
                Ok(()) => tracing::debug!(model = slot.name(), images = seen.total(), "reported"),
                Err(error) => {
                    tracing::warn!(
                        error = error.in_full(),
                        "a report could not be sent; the next one includes it"
                    );
                    kept.insert(slot.name().to_owned(), seen);
                }
            }
        }
    }
}

/// The report of what a model has answered.
fn report(experiment: &str, node: &str, name: &str, model: &LoadedModel, seen: &PredictionStats) -> Report {
    let took = seen.since.elapsed();
    let end = SystemTime::now();
    let total = seen.total();
    let mut metrics = BTreeMap::from([
        ("images".to_owned(), total as f64),
        ("images_per_second".to_owned(), total as f64 / took.as_secs_f64().max(1e-3)),
    ]);
    for label in &model.model.labels {
        let count = seen.labels.get(label).copied().unwrap_or(0);
        metrics.insert(format!("species.{label}"), count as f64);
    }
    for (step, count) in seen.confidence.iter().enumerate() {
        metrics.insert(format!("confidence.{}_to_{}", step * 10, step * 10 + 10), *count as f64);
    }
    let manifest = model.bundle.manifest();
    if let Some(reference) = manifest.reference.as_ref().filter(|_| total > 0) {
        let counts = |label: &String| seen.labels.get(label).copied().unwrap_or(0);
        let seen: Vec<u64> = model.model.labels.iter().map(counts).collect();
        let share = |label: &String| reference.get(label).copied().unwrap_or(0.0);
        let expected: Vec<f64> = model.model.labels.iter().map(share).collect();
        metrics.insert("population_stability_index".into(), population_stability(&expected, &seen));
    }
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Report {
        experiment: experiment.to_owned(),
        run: format!("{node} {name} {}", humantime::format_rfc3339_seconds(end)),
        time: Some((end.checked_sub(took).unwrap_or(end), end)),
        params: BTreeMap::from([
            text("node", node),
            text("model", name),
            text("version", &model.describe()),
            text("digest", &model.model.digest),
            text("seconds", &took.max(Duration::from_secs(1)).as_secs().to_string()),
        ]),
        metrics,
        tags: BTreeMap::from([
            text("weir.node", node),
            text("weir.model", name),
            text("weir.version", &model.describe()),
        ]),
    }
}

/// The population stability index of counts against expected shares: the sum of (a - e) ln(a / e) over all labels, where a
/// and e are the actual and the expected share. Under 0.1 counts as no drift, over 0.25 as a large one (a rule of
/// thumb of credit scoring: N. Siddiqi, Credit Risk Scorecards, 2006). Shares under a ten-thousandth count as that.
fn population_stability(expected: &[f64], counts: &[u64]) -> f64 {
    let (all, whole): (u64, f64) = (counts.iter().sum(), expected.iter().sum());
    if all == 0 || whole <= 0.0 {
        return 0.0;
    }
    let shares = counts.iter().zip(expected).map(|(count, expected)| {
        ((*count as f64 / all as f64).max(MIN_SHARE), (expected / whole).max(MIN_SHARE))
    });
    shares.map(|(actual, expected)| (actual - expected) * (actual / expected).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_a_key_that_mlflow_takes() {
        assert_eq!(tag_key("dock-3.weir:9"), "weir.dock-3.weir_9.state");
    }

    #[test]
    fn the_index_is_zero_without_drift_and_as_computed_by_hand_with_it() {
        assert!(population_stability(&[0.5, 0.3, 0.2], &[50, 30, 20]).abs() < 1e-12);
        assert!(
            population_stability(&[5.0, 3.0, 2.0], &[500, 300, 200]).abs() < 1e-12,
            "shares need not sum to 1"
        );
        // 0.3 ln 2.5 - 0.3 ln 0.4 + 0
        let index = population_stability(&[0.2, 0.5, 0.3], &[50, 20, 30]);
        assert!((index - 0.549_774_439).abs() < 1e-6, "{index}");
        assert!(population_stability(&[1.0, 0.0], &[0, 10]) > 8.0);
        assert!(population_stability(&[1.0, 0.0], &[0, 0]).abs() < 1e-12);
    }
}
