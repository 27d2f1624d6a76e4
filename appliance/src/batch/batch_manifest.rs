//! The durable record of a batch: what is left of it when the state store has lost or forgotten it.

use std::time::SystemTime;

use bytes::Bytes;
use cloud_sync::batch_status::BatchSpec;
use serde::{Deserialize, Serialize};

/// Longest record that is read.
pub(super) const MAX_BYTES: u64 = 64 << 10;

/// `batches/<id>/batch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRecord {
    /// What was submitted.
    #[serde(flatten)]
    pub spec: BatchSpec,
    /// The camera that took the pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub camera: Option<String>,
    /// How many labels were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// When it was taken.
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
}

impl BatchRecord {
    /// As the object's content.
    ///
    /// # Errors
    /// When `created` is before 1970.
    pub fn to_json(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }
}

/// A time as everybody outside reads it: RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339_text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(|e| D::Error::custom(format!("created = {text:?}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_record_reads_back_and_lives_with_newer_fields() {
        let spec = BatchSpec { request_id: "b".into(), total: 3, chunks: 1, digest: "ab".into() };
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let record = BatchRecord { spec, camera: None, top_k: Some(3), created };
        let json = record.to_json().unwrap();
        assert_eq!(
            &json[..],
            br#"{"request_id":"b","total":3,"chunks":1,"digest":"ab","top_k":3,"created":"2023-11-14T22:13:20.123Z"}"#
        );
        assert_eq!(serde_json::from_slice::<BatchRecord>(&json).unwrap(), record);
        let newer = String::from_utf8(json.to_vec()).unwrap().replace("\"total\"", "\"later\":1,\"total\"");
        assert_eq!(serde_json::from_str::<BatchRecord>(&newer).unwrap(), record);
    }
}
