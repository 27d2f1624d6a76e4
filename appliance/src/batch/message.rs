//! The message of batch work, as it stands in the requests topic: what is written here, and what anybody may send.

use std::time::SystemTime;

use bytes::Bytes;
use cloud_sync::state::BatchSpec;
use serde::Serialize;
use serde_json::{Map, Value};

use super::image_url::MAX_URL_BYTES;
use super::layout::{check_id, id_of_place};

/// Longest name of a camera, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Most predictions an image that a message may ask for; a model has fewer labels than that, or answers with all.
const MAX_TOP_K: u64 = 1000;

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
    /// How many labels to answer with, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// When the batch was submitted; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<String>,
    /// Its images: `http(s)://...`, `s3://bucket/key`, or `blob:<index>` for a file of this batch.
    pub image_urls: Vec<String>,
}

/// Why a message is no batch work.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is not JSON.
    #[error("the message is not JSON: {0}")]
    NotJson(#[source] serde_json::Error),
    /// It is JSON, and no object.
    #[error("the message is {found}, not a JSON object")]
    NotAnObject {
        /// What it is.
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
        /// What is wrong, and the bound.
        reason: String,
    },
}

impl BatchMessage {
    /// The message as JSON.
    ///
    /// # Errors
    /// Never for what [`BatchMessage::parse`] gives out; the type is the serializer's.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }

    /// Reads a message of any of the forms: `{"image_url"}`, `{"request_id", "image_urls"}`, the same with `timestamp`
    /// and `num_images`, or what [`BatchMessage::to_bytes`] writes. Fields that are not known are passed over. Without
    /// a `request_id` the batch is named after the `position` of its message.
    ///
    /// # Errors
    /// [`MessageError`] with the field that is wrong; `max_images` bounds the images of a batch.
    pub fn parse(payload: &[u8], position: &str, max_images: u64) -> Result<Self, MessageError> {
        let value: Value = serde_json::from_slice(payload).map_err(MessageError::NotJson)?;
        let Value::Object(mut fields) = value else {
            return Err(MessageError::NotAnObject { found: kind_of(&value) });
        };
        let image_urls = image_urls(&mut fields, max_images)?;
        let request_id = match text(&mut fields, "request_id")? {
            Some(id) => {
                check_id(&id).map_err(|e| wrong("request_id", e.to_string()))?;
                id
            }
            None => id_of_place(position),
        };
        let camera = text(&mut fields, "camera")?;
        if let Some(name) = &camera {
            check_camera(name).map_err(|reason| wrong("camera", reason))?;
        }
        let top_k = whole(&mut fields, "top_k")?;
        if let Some(k) = top_k.filter(|k| !(1..=MAX_TOP_K).contains(k)) {
            return Err(wrong("top_k", format!("{k} is not from 1 to {MAX_TOP_K}")));
        }
        let submitted_at = text(&mut fields, "submitted_at")?;
        if let Some(time) = &submitted_at {
            humantime::parse_rfc3339(time)
                .map_err(|e| wrong("submitted_at", format!("{:?} is no RFC 3339 time: {e}", short(time))))?;
        }
        match fields.get("timestamp") {
            None | Some(Value::Null | Value::String(_) | Value::Number(_)) => {}
            Some(other) => return Err(not_a("timestamp", other, "a string or a number")),
        }
        let count = image_urls.len() as u64;
        if let Some(said) = whole(&mut fields, "num_images")?.filter(|said| *said != count) {
            return Err(wrong("num_images", format!("it says {said}, and image_urls has {count}")));
        }
        let (spec, chunk, first) = place(&mut fields, request_id, count, max_images)?;
        Ok(Self {
            spec,
            chunk,
            first,
            camera,
            top_k: top_k.and_then(|k| usize::try_from(k).ok()),
            submitted_at,
            image_urls,
        })
    }

    /// When the batch was submitted, where the message says so.
    #[must_use]
    pub fn submitted(&self) -> Option<SystemTime> {
        self.submitted_at.as_deref().and_then(|time| humantime::parse_rfc3339(time).ok())
    }

    /// Whether some of its images are files that were posted with its batch.
    #[must_use]
    pub fn names_files(&self) -> bool {
        self.image_urls.iter().any(|url| is_file(url))
    }

    /// What stands for a message that cannot be read: a batch of one image that has no URL.
    pub(super) fn unreadable(position: &str) -> Self {
        Self {
            spec: BatchSpec { request_id: id_of_place(position), total: 1, chunks: 1, digest: String::new() },
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

/// Whether `name` may name a camera.
fn check_camera(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(format!(
            "{:?} is not a name of 1 to {MAX_NAME_BYTES} bytes without control characters",
            short(name)
        ));
    }
    Ok(())
}

/// Which part of which batch the message is: said by all four fields, or the whole of it where none of them is there.
fn place(
    fields: &mut Map<String, Value>,
    request_id: String,
    count: u64,
    max_images: u64,
) -> Result<(BatchSpec, u32, u64), MessageError> {
    let digest = text(fields, "digest")?.unwrap_or_default();
    let said =
        (whole(fields, "chunk")?, whole(fields, "chunks")?, whole(fields, "total")?, whole(fields, "first")?);
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

fn image_urls(fields: &mut Map<String, Value>, max_images: u64) -> Result<Vec<String>, MessageError> {
    let one = fields.remove("image_url").filter(|value| !value.is_null());
    let many = fields.remove("image_urls").filter(|value| !value.is_null());
    let urls = match (one, many) {
        (Some(_), Some(_)) => return Err(wrong("image_url", "it and image_urls exclude each other")),
        (None, None) => return Err(MessageError::NoImages),
        (Some(url), None) => vec![image_url("image_url", url)?],
        (None, Some(Value::Array(urls))) => {
            let number = urls.len() as u64;
            if number > max_images {
                return Err(wrong("image_urls", format!("{number} images; at most {max_images} are taken")));
            }
            let named = |(i, url)| image_url(&format!("image_urls[{i}]"), url);
            urls.into_iter().enumerate().map(named).collect::<Result<_, _>>()?
        }
        (None, Some(other)) => return Err(not_a("image_urls", &other, "an array of strings")),
    };
    if urls.is_empty() {
        return Err(MessageError::NoImages);
    }
    Ok(urls)
}

fn image_url(field: &str, value: Value) -> Result<String, MessageError> {
    match value {
        Value::String(url) if (1..=MAX_URL_BYTES).contains(&url.len()) => Ok(url),
        Value::String(url) => {
            Err(wrong(field, format!("it has {} bytes; a URL has 1 to {MAX_URL_BYTES}", url.len())))
        }
        other => Err(not_a(field, &other, "a string")),
    }
}

fn text(fields: &mut Map<String, Value>, field: &str) -> Result<Option<String>, MessageError> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(not_a(field, &other, "a string")),
    }
}

fn whole(fields: &mut Map<String, Value>, field: &str) -> Result<Option<u64>, MessageError> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(not_a(field, &value, "a whole number from 0 on")),
        },
    }
}

fn wrong(field: impl Into<String>, reason: impl Into<String>) -> MessageError {
    MessageError::Field { field: field.into(), reason: reason.into() }
}

fn not_a(field: impl Into<String>, value: &Value, wanted: &str) -> MessageError {
    let found = match value {
        Value::Number(number) => number.to_string(),
        other => kind_of(other).to_owned(),
    };
    wrong(field, format!("it is {found}, not {wanted}"))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The beginning of what somebody else wrote, for a message that names it.
fn short(text: &str) -> String {
    text.chars().take(MAX_NAME_BYTES).collect()
}

#[cfg(test)]
mod tests;
