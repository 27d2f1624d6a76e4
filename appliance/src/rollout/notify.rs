//! Who hears of a change: the registry by a tag, the outbox by an event, the log, the metrics.

use std::sync::Arc;

use cloud_sync::event::{Event, EventBody, ModelChange};
use cloud_sync::registry::{ModelReference, ModelVersion, Which};

use super::RolloutContext;
use super::entry::PendingTag;

/// Longest value of a tag; MLflow takes 5,000 characters.
const MAX_REASON_LEN: usize = 500;

/// Publishes a change as an event; a full outbox is logged, and changes nothing about the rollout.
pub(super) async fn event(context: &RolloutContext, change: ModelChange) {
    let (model, state, version) = (&change.model, &change.state, &change.version);
    tracing::info!(model, version, other = change.other, reason = change.reason, "{state}");
    context.metrics.rollout(model, state);
    let Some(outbox) = &context.outbox else { return };
    let event = Event::new(context.settings.node.clone(), EventBody::Model(change));
    if let Err(error) = outbox.append_event(&event).await {
        tracing::warn!(%error, "a change of a model is no event: the outbox did not take it");
    }
}

/// The tag by which a fleet manager sees what this box does with a version.
pub(super) fn tag_key(node: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_. ".contains(c) { c } else { '_' };
    format!("weir.{}.state", node.chars().map(plain).take(200).collect::<String>())
}

/// A tag's value of at most [`MAX_REASON_LEN`] characters on one line.
pub(super) fn tag_value(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(MAX_REASON_LEN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// Sets the tags that wait. What the registry refuses for good is dropped; the rest waits for the next time.
pub(super) async fn tags(context: &Arc<RolloutContext>, model: &str) {
    let Some(registry) = context.registry.as_ref().filter(|_| context.settings.tag) else { return };
    let key = tag_key(&context.settings.node);
    for pending_tags in context.journal.entry(model).pending_tags {
        let PendingTag { name, version, value } = &pending_tags;
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
        let told =
            context.note(model, move |entry| entry.pending_tags.retain(|other| *other != pending_tags));
        if let Err(error) = told.await {
            tracing::warn!(%error, "tags will be set again");
            return;
        }
    }
}

fn is_tagged(version: &ModelVersion, key: &str, value: &str) -> bool {
    version.tags.get(key).is_some_and(|now| now == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_keys_and_values_that_mlflow_takes() {
        assert_eq!(tag_key("dock-3.weir:9"), "weir.dock-3.weir_9.state");
        assert_eq!(tag_value("rejected: a\nb"), "rejected: a b");
        assert_eq!(tag_value(&"é".repeat(600)).chars().count(), 503);
    }
}
