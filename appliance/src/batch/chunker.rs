//! Cutting a batch into messages: how many, and each built when the queue requests it.

use std::io;
use std::ops::Range;

use cloud_sync::batch_status::BatchSpec;
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::queue::NewJob;

use super::batch_manifest::{BatchRecord, rfc3339_text};
use super::message::BatchMessage;
use super::parsing::UrlReader;

/// Most bytes of URLs in one message: under the 1 MiB that a Kafka broker accepts by default.
const MESSAGE_BYTES: u64 = 768 << 10;

/// Into how many messages to cut `total` images, at most `per_message` in each, whose URLs take at most `longest`
/// bytes in JSON.
pub(super) fn chunks(total: u64, per_message: usize, longest: u64) -> u32 {
    let fit = (MESSAGE_BYTES / (longest + 1)).max(1);
    let per_message = fit.min(per_message as u64).max(1);
    u32::try_from(total.div_ceil(per_message).max(1)).unwrap_or(u32::MAX)
}

/// The images of a chunk. They depend on the spec alone, so that a batch that is submitted again is cut as it was the
/// first time, even if the configuration has changed.
pub(super) fn range(spec: &BatchSpec, chunk: u32) -> Range<u64> {
    let edge = |chunk: u64| {
        let edge = u128::from(chunk) * u128::from(spec.total) / u128::from(spec.chunks.max(1));
        u64::try_from(edge).unwrap_or(u64::MAX)
    };
    edge(u64::from(chunk))..edge(u64::from(chunk) + 1)
}

/// The source of the images, in their order.
pub(super) enum Source {
    /// A list of URLs.
    Urls(UrlReader),
    /// Files of the batch in the blob store.
    Files,
}

/// The messages of a batch.
pub(super) struct Jobs<'a> {
    record: &'a BatchRecord,
    source: Source,
    next: u32,
}

impl<'a> Jobs<'a> {
    pub(super) fn new(record: &'a BatchRecord, source: Source) -> Self {
        Self { record, source, next: 0 }
    }

    fn job(&mut self, chunk: u32) -> io::Result<NewJob> {
        let spec = &self.record.spec;
        let images = range(spec, chunk);
        let first = images.start;
        let urls: io::Result<Vec<String>> = match &mut self.source {
            Source::Files => Ok(images.map(|index| format!("blob:{index}")).collect()),
            Source::Urls(list) => images.map(|_| list.next_url()).collect(),
        };
        let message = BatchMessage {
            spec: spec.clone(),
            chunk,
            first,
            camera: self.record.camera.clone(),
            top_k: self.record.top_k,
            submitted_at: Some(rfc3339_text(self.record.created)),
            image_urls: urls?,
        };
        Ok(NewJob { key: format!("{}/{chunk}", spec.request_id), payload: message.to_bytes()? })
    }
}

impl Iterator for Jobs<'_> {
    type Item = SyncResult<NewJob>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.next;
        if chunk >= self.record.spec.chunks {
            return None;
        }
        self.next += 1;
        let what = || format!("the spooled image_urls of chunk {chunk} can't be read");
        Some(self.job(chunk).map_err(|e| SyncError::permanent(Link::Disk, what()).because(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_batch_once_and_stay_within_both_bounds() {
        for total in [1, 2, 255, 256, 257, 1000, 99_999, 200_000] {
            for (per_message, longest) in [(256, 40), (256, 24_576), (1, 10), (100_000, 4098)] {
                let spec = BatchSpec {
                    request_id: "b".into(),
                    total,
                    chunks: chunks(total, per_message, longest),
                    digest: String::new(),
                };
                let mut next = 0;
                for chunk in 0..spec.chunks {
                    let images = range(&spec, chunk);
                    assert_eq!(images.start, next);
                    let count = images.end - images.start;
                    assert!(count >= 1 && count <= per_message as u64, "{count} of {per_message}");
                    assert!(count * (longest + 1) <= MESSAGE_BYTES, "{count} URLs of {longest}");
                    next = images.end;
                }
                assert_eq!(next, total);
            }
        }
        assert_eq!(chunks(100_000, 256, 60), 391);
    }
}
