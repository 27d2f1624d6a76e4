//! Events as `/predict` writes them, made in bulk, and an outbox filled with them.

use std::path::Path;

use cloud_sync::event::{Event, EventBody, ImageRef, ModelRef, Prediction, Score};
use cloud_sync::outbox::{Durability, Outbox, OutboxConfig};

const CAMERAS: u64 = 16;
/// Appends that are on their way at once: below what an outbox takes.
const AT_ONCE: usize = 2000;
const LABELS: [&str; 5] = ["anemone_fish", "rock_beauty", "lionfish", "puffer", "not_fish"];

/// Prediction number `number` as JSON.
pub(super) fn prediction(number: u64) -> anyhow::Result<Vec<u8>> {
    let score =
        |place: usize| Score { label: LABELS[place].to_owned(), score: 0.93 / (1 << (3 * place)) as f32 };
    let body = EventBody::Prediction(Prediction {
        request_id: format!("01JD4Z0000{number:016}"),
        camera: Some(format!("dock-{}", number % CAMERAS)),
        model: ModelRef { name: "fish".to_owned(), version: "1".to_owned(), digest: digest(0) },
        image: ImageRef {
            digest: digest(number + 1),
            format: "jpeg".to_owned(),
            bytes: 101_233 + number % 1000,
            width: 640,
            height: 480,
        },
        species: LABELS[0].to_owned(),
        confidence: 0.93,
        predictions: (0..LABELS.len()).map(score).collect(),
        cached: false,
    });
    Ok(Event::new("dock-3", body).to_json()?)
}

/// 64 hexadecimal digits that look random, as those of a real digest, so that they compress no better.
fn digest(number: u64) -> String {
    let mut random = fastrand::Rng::with_seed(number);
    format!("{:016x}{:016x}{:016x}{:016x}", random.u64(..), random.u64(..), random.u64(..), random.u64(..))
}

/// Fills a new outbox; gives the mean length of an event. The process's end is what it is written to survive: it is
/// input, not the thing measured.
pub(super) fn fill(dir: &Path, max_bytes: u64, count: u64) -> anyhow::Result<f64> {
    let config = OutboxConfig { durability: Durability::OsBuffered, max_bytes, ..OutboxConfig::new(dir) };
    let (outbox, _) = Outbox::open(config)?;
    let (mut appends, mut bytes) = (Vec::with_capacity(AT_ONCE), 0);
    for number in 0..count {
        let event = prediction(number)?;
        bytes += event.len();
        appends.push(outbox.append(event));
        if appends.len() == AT_ONCE || number + 1 == count {
            for append in appends.drain(..) {
                append.wait()?;
            }
        }
    }
    Ok(bytes as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_events_of_a_real_size_and_no_two_are_alike() {
        let (one, other) = (prediction(1).unwrap(), prediction(2).unwrap());
        assert!((500..900).contains(&one.len()), "{}", one.len());
        let events = [one, other].map(|json| Event::from_json(&json).unwrap());
        assert_eq!(events[0].body.kind(), "prediction");
        let digests = events.map(|event| match event.body {
            EventBody::Prediction(prediction) => prediction.image.digest,
            other => panic!("{other:?}"),
        });
        assert!(digests[0] != digests[1] && digests.iter().all(|digest| digest.len() == 64));
    }

    #[test]
    fn an_outbox_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        assert!(fill(dir.path(), 64 << 20, 4500).unwrap() > 500.0);
        let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path())).unwrap();
        assert_eq!(outbox.stats().backlog, 4500);
    }
}
