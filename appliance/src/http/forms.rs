//! The forms in which images arrive: raw bytes, multipart, JSON with base64 or a URL.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures_util::stream;
use gpu_kernels::DecodeError;
use multer::{Constraints, Field, Multipart, SizeLimit};
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};

use super::api::PredictBody;
use super::reply::ApiError;
use crate::batch::parsing::BYTE_ORDER_MARK;
use crate::memory::{BodyMemory, Reservation};

/// Names of form fields that hold images.
const FILE_FIELDS: [&str; 3] = ["file", "files", "image"];
/// Maximum length of a library's error text in a reply, in characters.
const MAX_REASON: usize = 200;
/// Padding is optional.
const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const PLAIN: GeneralPurpose = GeneralPurpose::new(&STANDARD, ANY_PADDING);
const FOR_URLS: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, ANY_PADDING);

/// A parsed body.
#[derive(Debug)]
pub enum Payload {
    /// One image.
    Image(Bytes),
    /// Multipart files, with their names; at least one.
    Files(Vec<(String, Bytes)>),
    /// An image to be fetched.
    Url(String),
}

/// Why [`parse_body`] refuses a body.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The code in the reply.
    pub code: &'static str,
    /// The message in the reply.
    pub message: String,
}

/// Parses a body as `POST /predict` does, without a daemon. Public for the fuzz targets only: behind a socket and the service
/// most of this code would be out of their reach. A Content-Type that no header can hold is refused.
///
/// # Errors
/// [`Refusal`].
pub async fn parse_body(
    content_type: &[u8],
    body: Bytes,
    max_files: usize,
    memory: &Arc<BodyMemory>,
) -> Result<Payload, Refusal> {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_bytes(content_type).map_err(|error| Refusal {
        status: StatusCode::BAD_REQUEST.as_u16(),
        code: "bad_request",
        message: error.to_string(),
    })?;
    headers.insert(CONTENT_TYPE, value);
    parse(&headers, body, max_files, memory).await.map_err(|error| Refusal {
        status: error.status.as_u16(),
        code: error.code,
        message: error.message,
    })
}

/// Finds the images of a body. An image is recognized by its bytes, whatever Content-Type says. Memory for copies out of the
/// body is reserved in `memory` first.
pub(super) async fn parse(
    headers: &HeaderMap,
    body: Bytes,
    max_files: usize,
    memory: &Arc<BodyMemory>,
) -> Result<Payload, ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if content_type.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        return multipart(content_type, body, max_files, memory).await;
    }
    if body.is_empty() {
        return Err(ApiError::bad_request("empty_body", "the body is empty; post an image, a form or JSON"));
    }
    let says_json = content_type.to_ascii_lowercase().contains("json");
    // Some programs write a byte order mark before JSON. No image starts with one.
    let marked = body.starts_with(BYTE_ORDER_MARK);
    let text = if marked { &body[BYTE_ORDER_MARK.len()..] } else { &body[..] };
    let looks_json = text.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|&b| b == b'{');
    if looks_json || (says_json && !is_image(&body)) {
        let text = body.slice(body.len() - text.len()..);
        return if looks_json { json(text, memory) } else { Err(not_an_object(&text)) };
    }
    Ok(Payload::Image(body))
}

/// The deserializer would accept an array, with its elements as the fields in their order.
fn not_an_object(text: &[u8]) -> ApiError {
    let reason = match serde_json::from_slice::<serde::de::IgnoredAny>(text) {
        Ok(_) => "it is not an object".to_owned(),
        Err(error) => short(&error),
    };
    ApiError::bad_request("invalid_json", format!("the JSON body can't be used: {reason}"))
}

fn is_image(body: &[u8]) -> bool {
    !matches!(gpu_kernels::sniff(body), Err(DecodeError::UnsupportedType { .. }))
}

fn json(body: Bytes, memory: &Arc<BodyMemory>) -> Result<Payload, ApiError> {
    // For the text that is copied out of the body.
    let text = memory.reserve(body.len())?;
    let parsed: PredictBody = serde_json::from_slice(&body).map_err(|e| {
        ApiError::bad_request("invalid_json", format!("the JSON body can't be used: {}", short(&e)))
    })?;
    drop(body);
    match (parsed.image_url, parsed.image) {
        (Some(url), None) => Ok(Payload::Url(url)),
        (None, Some(image)) => {
            let share = memory.reserve(::base64::decoded_len_estimate(image.len()))?;
            let decoded = base64(image).map(|bytes| Payload::Image(share.hold(bytes)));
            drop(text);
            decoded
        }
        (Some(_), Some(_)) => Err(ApiError::bad_request("invalid_json", "give image_url or image, not both")),
        (None, None) => {
            Err(ApiError::bad_request("invalid_json", "the JSON body has neither image_url nor image"))
        }
    }
}

fn base64(mut text: String) -> Result<Bytes, ApiError> {
    // Lines of 76 characters are common.
    text.retain(|c| !c.is_ascii_whitespace());
    let text = match text.strip_prefix("data:").and_then(|rest| rest.split_once(',')) {
        Some((kind, data)) if kind.ends_with(";base64") => data,
        _ => &text,
    };
    let engine = if text.contains(['-', '_']) { &FOR_URLS } else { &PLAIN };
    match engine.decode(text) {
        Ok(bytes) if bytes.is_empty() => Err(ApiError::bad_request("empty_image", "image holds no bytes")),
        Ok(bytes) => Ok(bytes.into()),
        Err(e) => Err(ApiError::bad_request("invalid_base64", format!("image is not base64: {e}"))),
    }
}

async fn multipart(
    content_type: &str,
    body: Bytes,
    max_files: usize,
    memory: &Arc<BodyMemory>,
) -> Result<Payload, ApiError> {
    let boundary = multer::parse_boundary(content_type).map_err(unreadable)?;
    let limit = body.len() as u64;
    // The body is in memory already and bounded, so the parts need no bounds of their own.
    let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(limit).per_field(limit));
    // The form's reader has one buffer with a copy of the body, of which the parts are slices.
    let share = Arc::new(memory.reserve(body.len())?);
    let source = stream::iter([Ok::<_, std::convert::Infallible>(body)]);
    let mut form = Multipart::with_constraints(source, boundary, constraints);
    let mut files = Vec::new();
    while let Some(field) = form.next_field().await.map_err(unreadable)? {
        if !field.name().is_some_and(|name| FILE_FIELDS.contains(&name)) {
            continue;
        }
        if files.len() == max_files {
            let message = format!("the form has more than {max_files} files (http.max_files)");
            return Err(ApiError::bad_request("too_many_files", message));
        }
        let name = field.file_name().unwrap_or("file").to_owned();
        files.push((name, whole(field, limit, &share).await?));
    }
    if files.is_empty() {
        return Err(ApiError::bad_request(
            "missing_file",
            "the form has no field called file, files or image",
        ));
    }
    Ok(Payload::Files(files))
}

/// A part, which holds the reservation of the reader's buffer: it is a slice of that buffer, which has the whole body. Should it
/// come in pieces, they are joined in memory of their own.
async fn whole(mut field: Field<'_>, most: u64, share: &Arc<Reservation>) -> Result<Bytes, ApiError> {
    let first = field.chunk().await.map_err(unreadable)?.unwrap_or_default();
    let Some(second) = field.chunk().await.map_err(unreadable)? else { return Ok(share.hold_shared(first)) };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut body = share.memory().body(0, most)?;
    body.extend(&first)?;
    let mut next = Some(second);
    while let Some(chunk) = next {
        body.extend(&chunk)?;
        next = field.chunk().await.map_err(unreadable)?;
    }
    Ok(body.freeze())
}

fn unreadable(error: multer::Error) -> ApiError {
    ApiError::bad_request("invalid_multipart", format!("the form can't be read: {}", short(&error)))
}

/// An error may quote input of any length.
fn short(error: &impl std::fmt::Display) -> String {
    error.to_string().chars().take(MAX_REASON).collect()
}
