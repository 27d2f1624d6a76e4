//! Stores a report as a run in an experiment of its own.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::answers::{Done, NewExperiment, OneExperiment, OneRun};
use super::failure::{Answer, Failure, Kind};
use super::rest::Rest;
use crate::error::{Link, SyncError};
use crate::event::unix_ms;
use crate::registry::Report;

/// Maximum entries per request, MLflow's own limits.
const MAX_METRICS: usize = 1000;
const MAX_TEXTS: usize = 100;

/// Maximum length of a parameter's value that every MLflow accepts, in characters.
const MAX_PARAM: usize = 500;

/// Stores a report.
pub(super) async fn keep(rest: &Rest, report: &Report) -> Answer<()> {
    let what = format!("report to the experiment {:?}", report.experiment);
    let experiment = experiment(rest, &what, &report.experiment).await?;
    let (begin, end) = report.time.unwrap_or_else(|| {
        let now = SystemTime::now();
        (now, now)
    });
    let mut tags: Vec<Value> = pairs(&report.tags, usize::MAX);
    tags.push(json!({"key": "mlflow.runName", "value": report.run}));
    let run = json!({"experiment_id": experiment, "run_name": report.run, "start_time": unix_ms(begin), "tags": tags});
    let run: OneRun = rest.post(&what, "runs/create", &run).await?;
    let id = run.run.info.run_id;
    let logged = log(rest, &what, &id, report, unix_ms(end)).await;
    let status = if logged.is_ok() { "FINISHED" } else { "FAILED" };
    let update = json!({"run_id": id, "status": status, "end_time": unix_ms(end)});
    let updated = rest.post(&what, "runs/update", &update).await;
    logged?;
    updated.map(|Done {}| ())
}

async fn experiment(rest: &Rest, what: &str, name: &str) -> Answer<String> {
    if let Some(id) = find(rest, what, name).await? {
        return Ok(id);
    }
    match rest.post::<NewExperiment>(what, "experiments/create", &json!({"name": name})).await {
        Ok(made) => Ok(made.experiment_id),
        // Another box has created it meanwhile.
        Err(failure) => match find(rest, what, name).await? {
            Some(id) => Ok(id),
            None => Err(failure),
        },
    }
}

async fn find(rest: &Rest, what: &str, name: &str) -> Answer<Option<String>> {
    match rest.get::<OneExperiment>(what, "experiments/get-by-name", &[("experiment_name", name)]).await {
        Ok(OneExperiment { experiment }) if experiment.lifecycle_stage == "deleted" => {
            let text = format!("cannot {what}: it was deleted: restore it, or configure another");
            Err(SyncError::permanent(Link::Mlflow, text).into())
        }
        Ok(found) => Ok(Some(found.experiment.experiment_id)),
        Err(Failure { kind: Kind::Missing, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn log(rest: &Rest, what: &str, id: &str, report: &Report, at: u64) -> Answer<()> {
    let metrics: Vec<_> = report.metrics.iter().filter(|(_, value)| value.is_finite()).collect();
    for some in metrics.chunks(MAX_METRICS) {
        let some: Vec<Value> = some
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value, "timestamp": at, "step": 0}))
            .collect();
        let Done {} = rest.post(what, "runs/log-batch", &json!({"run_id": id, "metrics": some})).await?;
    }
    for some in pairs(&report.params, MAX_PARAM).chunks(MAX_TEXTS) {
        let Done {} = rest.post(what, "runs/log-batch", &json!({"run_id": id, "params": some})).await?;
    }
    Ok(())
}

fn pairs(texts: &BTreeMap<String, String>, longest: usize) -> Vec<Value> {
    let cut = |text: &str| text.chars().take(longest).collect::<String>();
    texts.iter().map(|(key, value)| json!({"key": key, "value": cut(value)})).collect()
}
