//! Dead letters: messages and images that could not be processed, stored for inspection.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cloud_sync::event::{BatchItem, ItemOutcome};
use cloud_sync::queue::Delivery;
use serde::Serialize;

use super::chunk::ChunkState;
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::image_url;
use crate::batch::object_keys;

/// Bytes of a message that are kept.
const MAX_MESSAGE_EXCERPT: usize = 64 << 10;

/// A message that is no batch work.
#[derive(Serialize)]
struct BadMessage<'a> {
    position: &'a str,
    reason: &'a str,
    message_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// The message where it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    message_base64: Option<String>,
}

/// Images of a message that have failed.
#[derive(Serialize)]
struct BadImages<'a> {
    position: &'a str,
    request_id: &'a str,
    images: Vec<BadImage<'a>>,
}

#[derive(Serialize)]
struct BadImage<'a> {
    index: u64,
    /// Without its query, which may hold a signature: more people read these objects than the results.
    image_url: Cow<'a, str>,
    code: &'a str,
    error: &'a str,
}

impl Worker {
    /// Stores a message that is no batch work. The same message yields the same object.
    pub(super) async fn store_dead_letter(
        &self,
        delivery: &Delivery,
        reason: &str,
    ) -> Result<(), ChunkError> {
        let payload = &delivery.payload;
        let kept = &payload[..payload.len().min(MAX_MESSAGE_EXCERPT)];
        // The cut may be inside a character; everything before it is still text.
        let text = match std::str::from_utf8(kept) {
            Ok(text) => Some(text),
            Err(error) if error.error_len().is_none() => {
                std::str::from_utf8(&kept[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let letter = BadMessage {
            position: &delivery.position,
            reason,
            message_bytes: payload.len(),
            message: text,
            message_base64: text.is_none().then(|| STANDARD.encode(kept)),
        };
        tracing::warn!(
            position = delivery.position,
            reason,
            "message is no batch work: stored as a dead letter"
        );
        WorkerStats::count(&self.stats.dead_letters);
        self.put_letter(delivery, delivery.time, serde_json::to_vec(&letter)?).await
    }

    /// Stores the failed images of a chunk, if there are any.
    pub(super) async fn store_failures(&self, chunk: &ChunkState<'_>) -> Result<(), ChunkError> {
        let (delivery, message) = (chunk.delivery(), &chunk.message);
        let images: Vec<_> = chunk.items.iter().filter_map(bad_image).collect();
        if images.is_empty() {
            return Ok(());
        }
        let request_id = &message.spec.request_id;
        let letter = BadImages { position: &delivery.position, request_id, images };
        let time = message.submitted().or(delivery.time);
        self.put_letter(delivery, time, serde_json::to_vec(&letter)?).await
    }

    async fn put_letter(
        &self,
        delivery: &Delivery,
        time: Option<SystemTime>,
        letter: Vec<u8>,
    ) -> Result<(), ChunkError> {
        let day = day_of(time.unwrap_or(UNIX_EPOCH));
        let key = match object_keys::dead_letter_key(&day, &delivery.position) {
            Ok(key) => key,
            Err(_) => object_keys::dead_letter_key(&day, &object_keys::synthetic_id(&delivery.position))?,
        };
        let letter = Bytes::from(letter);
        let put = || self.blob.put(&key, letter.clone(), "application/json");
        self.retry.retry_forever("storing a dead letter", put).await;
        Ok(())
    }
}

/// The day of a time as `yyyy-mm-dd`. A time that has no date of this form, which any producer may send, counts as
/// 1970-01-01.
fn day_of(time: SystemTime) -> String {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let since = time.duration_since(UNIX_EPOCH).ok().filter(|since| *since < YEAR_10000).unwrap_or_default();
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string().chars().take(10).collect()
}

fn bad_image(item: &BatchItem) -> Option<BadImage<'_>> {
    match &item.outcome {
        ItemOutcome::Ok { .. } => None,
        ItemOutcome::Failed { code, error } => {
            Some(BadImage { index: item.index, image_url: image_url::public(&item.image_url), code, error })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_day() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (time, day) in [
            (UNIX_EPOCH, "1970-01-01"),
            (at(1_700_000_000), "2023-11-14"),
            (at(253_402_300_799), "9999-12-31"),
            (at(253_402_300_800), "1970-01-01"),
            // Microseconds that were taken for milliseconds.
            (at(1_700_000_000_000), "1970-01-01"),
            (UNIX_EPOCH - Duration::from_secs(1), "1970-01-01"),
        ] {
            assert_eq!(day_of(time), day);
        }
    }
}
