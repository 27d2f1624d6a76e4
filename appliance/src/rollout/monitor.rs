//! A summary of what this box sees, for the registry's monitoring experiment: counts by species, how sure the model was,
//! how far both have drifted from the model's reference, how much there was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::registry::Report;
use tokio::sync::watch;

use super::RolloutContext;
use crate::serving::{Endpoint, LoadedModel, PredictionStats};

/// Least share that a label counts with: one that was never seen would make the index infinite.
const MIN_SHARE: f64 = 1e-4;

/// Sends a report for each model from time to time. What could not be sent is part of the next one.
pub(super) async fn run(
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
                        "a summary was not taken; the next one holds it too"
                    );
                    kept.insert(slot.name().to_owned(), seen);
                }
            }
        }
    }
}

/// The report of what a model has answered.
pub fn report(
    experiment: &str,
    node: &str,
    name: &str,
    model: &LoadedModel,
    seen: &PredictionStats,
) -> Report {
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
pub fn population_stability(expected: &[f64], counts: &[u64]) -> f64 {
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
