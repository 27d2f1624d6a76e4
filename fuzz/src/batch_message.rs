//! Messages of the requests topic: a message within its limits or a short reason; messages written by Weir can be read.

use weir::batch::message::BatchMessage;
use weir::batch::object_keys::check_any_id;

use crate::harness::measured;

/// Most images of a batch.
const MAX_IMAGES: u64 = 300;
/// Longest URL.
const MAX_URL: usize = 4096;
/// Bytes of memory per byte of the message (a URL of one byte is a separate string), and per message.
const TIMES: u64 = 32;
const FIXED: u64 = 16 << 10;
const POSITION: &str = "requests-0-7";

/// Checks the property.
pub fn check(payload: &[u8]) {
    let (parsed, cost) = measured(|| BatchMessage::parse(payload, POSITION, MAX_IMAGES));
    let most = FIXED + TIMES * payload.len() as u64;
    assert!(cost.bytes <= most, "{} bytes for a message of {}", cost.bytes, payload.len());
    let message = match parsed {
        Ok(message) => message,
        Err(error) => {
            let reason = error.to_string();
            // The reason is written to a dead letter and to results.
            assert!((1..=1024).contains(&reason.len()), "a reason of {} bytes", reason.len());
            return;
        }
    };
    let (spec, count) = (&message.spec, message.image_urls.len() as u64);
    assert!((1..=MAX_IMAGES).contains(&count), "{count} images");
    assert!(message.image_urls.iter().all(|url| (1..=MAX_URL).contains(&url.len())));
    assert!(message.chunk < spec.chunks && u64::from(spec.chunks) <= spec.total, "{message:?}");
    assert!(spec.total <= MAX_IMAGES && message.first + count <= spec.total, "{message:?}");
    assert!(check_any_id(&spec.request_id).is_ok(), "{:?}", spec.request_id);
    assert!(message.top_k != Some(0));
    if let Some(camera) = &message.camera {
        assert!((1..=128).contains(&camera.len()) && !camera.chars().any(char::is_control), "{camera:?}");
    }
    let _ = message.submitted();
    let written = message.to_bytes().expect("JSON of a message");
    // A message without an id is named after its position, which no message can choose.
    if !spec.request_id.starts_with('~') {
        let again = BatchMessage::parse(&written, POSITION, MAX_IMAGES).expect("what was written is read");
        assert_eq!(again, message);
    }
}
