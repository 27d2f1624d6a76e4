//! The message of batch work in the requests topic: the form written here, and those that other producers send.

mod fields;

use std::time::SystemTime;

use bytes::Bytes;
use cloud_sync::batch_status::BatchSpec;
use serde::Serialize;

use self::fields::{Fields, Found, Urls, Value};
use super::image_url::MAX_URL_BYTES;
use super::object_keys::{check_id, synthetic_id};
use crate::config::MAX_MESSAGE_IMAGES;
use crate::values::{CameraName, MAX_NAME_BYTES, TopK};

/// Maximum of `top_k` in a message; a model with fewer labels returns all of them.
const MAX_TOP_K: usize = 1000;

/// One message: a chunk of a batch, or a whole one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BatchMessage {
    /// The batch that it belongs to.
    #[serde(flatten)]
    pub spec: BatchSpec,
    /// Which chunk of the batch it is, from 0.
    pub chunk: u32,
    /// Place of its first image in the batch, from 0.
    pub first: u64,
    /// The camera that took the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub camera: Option<String>,
    /// Predictions per image, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// When the batch was submitted; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<String>,
    /// Its images: `http(s)://...`, `s3://bucket/key`, or `blob:<index>` for a file of this batch.
    pub image_urls: Vec<String>,
}

/// Why a message is not batch work.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is not JSON.
    #[error("the message is not JSON: {0}")]
    NotJson(#[source] serde_json::Error),
    /// It is JSON, but not an object.
    #[error("the message is {found}, not a JSON object")]
    NotAnObject {
        /// The type of the value.
        found: &'static str,
    },
    /// It names no image.
    #[error("the message has neither image_url nor image_urls")]
    NoImages,
    /// A field is not what it must be.
    #[error("{field}: {reason}")]
    Field {
        /// Its name.
        field: String,
        /// The reason, with the bound.
        reason: String,
    },
}

impl BatchMessage {
    /// The message as JSON.
    ///
    /// # Errors
    /// Never for a message of [`BatchMessage::parse`]; the type is the serializer's.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }

    /// Reads a message of any of the forms: `{"image_url"}`, `{"request_id", "image_urls"}`, the same with `timestamp`
    /// and `num_images`, or what [`BatchMessage::to_bytes`] writes. Unknown fields are ignored. Without a
    /// `request_id` the batch is named after the `position` of its message.
    ///
    /// # Errors
    /// [`MessageError`] with the field that is wrong; `max_images` bounds the images of a batch, and
    /// [`MAX_MESSAGE_IMAGES`] those of a message.
    pub fn parse(payload: &[u8], position: &str, max_images: u64) -> Result<Self, MessageError> {
        let max = max_images.min(MAX_MESSAGE_IMAGES);
        let mut fields = match fields::read(payload, max).map_err(MessageError::NotJson)? {
            Found::Object(fields) => fields,
            Found::Other(value) => return Err(MessageError::NotAnObject { found: value.kind() }),
        };
        let image_urls = image_urls(&mut fields, max)?;
        let request_id = match text("request_id", fields.request_id.take())? {
            Some(id) => {
                check_id(&id).map_err(|e| wrong("request_id", e.to_string()))?;
                id
            }
            None => synthetic_id(position),
        };
        let camera = text("camera", fields.camera.take())?;
        if let Some(name) = &camera {
            CameraName::parse(name).map_err(|error| wrong("camera", error.to_string()))?;
        }
        let top_k = whole("top_k", fields.top_k.take())?.map(|k| TopK::new(k, MAX_TOP_K)).transpose();
        let top_k = top_k.map_err(|error| wrong("top_k", error.to_string()))?;
        let submitted_at = text("submitted_at", fields.submitted_at.take())?;
        if let Some(time) = &submitted_at {
            humantime::parse_rfc3339(time)
                .map_err(|e| wrong("submitted_at", format!("{:?} is no RFC 3339 time: {e}", short(time))))?;
        }
        match &fields.timestamp {
            None | Some(Value::Null | Value::Text(_) | Value::Number(_)) => {}
            Some(other) => return Err(not_a("timestamp", other, "a string or a number")),
        }
        let count = image_urls.len() as u64;
        if let Some(said) = whole("num_images", fields.num_images.take())?.filter(|said| *said != count) {
            return Err(wrong("num_images", format!("it says {said}, and image_urls has {count}")));
        }
        let (spec, chunk, first) = place(&mut fields, request_id, count, max_images)?;
        Ok(Self { spec, chunk, first, camera, top_k: top_k.map(TopK::get), submitted_at, image_urls })
    }

    /// When the batch was submitted, if the message has it.
    #[must_use]
    pub fn submitted(&self) -> Option<SystemTime> {
        self.submitted_at.as_deref().and_then(|time| humantime::parse_rfc3339(time).ok())
    }

    /// Whether any of its images is a file that was posted with its batch.
    #[must_use]
    pub fn names_files(&self) -> bool {
        self.image_urls.iter().any(|url| is_file(url))
    }

    /// Stands for a message that can't be parsed: a batch of one image without a URL.
    pub(super) fn unreadable(position: &str) -> Self {
        Self {
            spec: BatchSpec {
                request_id: synthetic_id(position),
                total: 1,
                chunks: 1,
                digest: String::new(),
            },
            chunk: 0,
            first: 0,
            camera: None,
            top_k: None,
            submitted_at: None,
            image_urls: vec![String::new()],
        }
    }
}

/// Whether a URL names a file that was posted with its batch.
#[must_use]
pub fn is_file(url: &str) -> bool {
    url.starts_with("blob:")
}

/// Which chunk of which batch the message is: given by all four fields, or the whole batch where none of them is present.
fn place(
    fields: &mut Fields,
    request_id: String,
    count: u64,
    max_images: u64,
) -> Result<(BatchSpec, u32, u64), MessageError> {
    let digest = text("digest", fields.digest.take())?.unwrap_or_default();
    let said = (
        whole("chunk", fields.chunk.take())?,
        whole("chunks", fields.chunks.take())?,
        whole("total", fields.total.take())?,
        whole("first", fields.first.take())?,
    );
    let (chunk, chunks, total, first) = match said {
        (None, None, None, None) => (0, 1, count, 0),
        (Some(chunk), Some(chunks), Some(total), Some(first)) => (chunk, chunks, total, first),
        _ => return Err(wrong("chunk", "chunk, chunks, total and first belong together; some are missing")),
    };
    if total > max_images {
        return Err(wrong("total", format!("{total} images; at most {max_images} are taken")));
    }
    if chunk >= chunks {
        return Err(wrong("chunk", format!("there is no chunk {chunk} of {chunks}; the first is 0")));
    }
    if chunks > total {
        return Err(wrong("chunks", format!("{chunks} chunks of {total} images")));
    }
    let end = first.checked_add(count).filter(|end| *end <= total);
    if end.is_none_or(|end| chunks == 1 && (first, end) != (0, total)) {
        return Err(wrong("first", format!("{count} images from {first} on do not fit a total of {total}")));
    }
    let narrow = |field, n| u32::try_from(n).map_err(|_| wrong(field, format!("{n} is too many")));
    let spec = BatchSpec { request_id, total, chunks: narrow("chunks", chunks)?, digest };
    Ok((spec, narrow("chunk", chunk)?, first))
}

fn image_urls(fields: &mut Fields, max: u64) -> Result<Vec<String>, MessageError> {
    let one = fields.image_url.take().filter(|value| !matches!(value, Value::Null));
    let many = fields.image_urls.take().filter(|urls| !matches!(urls, Urls::Other(Value::Null)));
    match (one, many) {
        (Some(_), Some(_)) => Err(wrong("image_url", "it and image_urls exclude each other")),
        (None, None) => Err(MessageError::NoImages),
        (Some(url), None) => Ok(vec![image_url("image_url", url)?]),
        (None, Some(Urls::List { count: 0, .. })) => Err(MessageError::NoImages),
        (None, Some(Urls::List { count, .. })) if count > max => {
            Err(wrong("image_urls", format!("{count} images; at most {max} are taken in one message")))
        }
        (None, Some(Urls::List { bad: Some((index, value)), .. })) => {
            image_url(&format!("image_urls[{index}]"), value).map(|url| vec![url])
        }
        (None, Some(Urls::List { urls, .. })) => Ok(urls),
        (None, Some(Urls::Other(other))) => Err(not_a("image_urls", &other, "an array of strings")),
    }
}

fn is_url(text: &str) -> bool {
    (1..=MAX_URL_BYTES).contains(&text.len())
}

fn image_url(field: &str, value: Value) -> Result<String, MessageError> {
    match value {
        Value::Text(url) if is_url(&url) => Ok(url),
        Value::Text(url) => {
            Err(wrong(field, format!("it has {} bytes; a URL has 1 to {MAX_URL_BYTES}", url.len())))
        }
        other => Err(not_a(field, &other, "a string")),
    }
}

fn text(field: &str, value: Option<Value>) -> Result<Option<String>, MessageError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(other) => Err(not_a(field, &other, "a string")),
    }
}

fn whole(field: &str, value: Option<Value>) -> Result<Option<u64>, MessageError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) if number.is_u64() => Ok(number.as_u64()),
        Some(other) => Err(not_a(field, &other, "a whole number from 0 on")),
    }
}

fn wrong(field: impl Into<String>, reason: impl Into<String>) -> MessageError {
    MessageError::Field { field: field.into(), reason: reason.into() }
}

fn not_a(field: impl Into<String>, value: &Value, wanted: &str) -> MessageError {
    let found = match value {
        Value::Number(number) => number.to_string(),
        other => other.kind().to_owned(),
    };
    wrong(field, format!("it is {found}, not {wanted}"))
}

/// The beginning of a value from outside, for an error that quotes it.
fn short(text: &str) -> String {
    text.chars().take(MAX_NAME_BYTES).collect()
}

#[cfg(test)]
mod tests;
