//! The forms in which images arrive: the bytes themselves, multipart, JSON with base64 or a URL.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use futures_util::stream;
use gpu_kernels::{DecodeError, DecodeLimits};
use multer::{Constraints, Multipart, SizeLimit};
use warp::http::HeaderMap;
use warp::http::header::CONTENT_TYPE;

use super::api::PredictBody;
use super::reply::ApiError;

/// What was posted.
#[derive(Debug)]
pub(super) enum Posted {
    /// One image.
    Image(Bytes),
    /// Multipart files, with their names; at least one.
    Files(Vec<(String, Bytes)>),
    /// An image to be fetched.
    Url(String),
}

/// Sorts out what was posted. An image is known by its bytes, whatever Content-Type says.
pub(super) async fn parse(headers: &HeaderMap, body: Bytes, max_files: usize) -> Result<Posted, ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if content_type.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        return multipart(content_type, body, max_files).await;
    }
    if body.is_empty() {
        return Err(ApiError::bad_request("empty_body", "the body is empty; post an image, a form or JSON"));
    }
    let says_json = content_type.to_ascii_lowercase().contains("json");
    let looks_json = body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|&b| b == b'{');
    if looks_json || (says_json && !is_image(&body)) {
        return json(&body);
    }
    Ok(Posted::Image(body))
}

fn is_image(body: &[u8]) -> bool {
    let header = gpu_kernels::inspect(body, &DecodeLimits::default());
    !matches!(header, Err(DecodeError::UnsupportedType { .. }))
}

fn json(body: &[u8]) -> Result<Posted, ApiError> {
    let parsed: PredictBody = serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request("invalid_json", format!("the JSON body can't be used: {e}")))?;
    match (parsed.image_url, parsed.image) {
        (Some(url), None) => Ok(Posted::Url(url)),
        (None, Some(image)) => base64(&image).map(Posted::Image),
        (Some(_), Some(_)) => Err(ApiError::bad_request("invalid_json", "give image_url or image, not both")),
        (None, None) => {
            Err(ApiError::bad_request("invalid_json", "the JSON body has neither image_url nor image"))
        }
    }
}

fn base64(text: &str) -> Result<Bytes, ApiError> {
    let text = match text.strip_prefix("data:").and_then(|rest| rest.split_once(',')) {
        Some((kind, data)) if kind.ends_with(";base64") => data,
        _ => text,
    };
    let text = text.trim();
    let engine =
        if text.ends_with('=') || text.len().is_multiple_of(4) { &STANDARD } else { &STANDARD_NO_PAD };
    match engine.decode(text) {
        Ok(bytes) if bytes.is_empty() => Err(ApiError::bad_request("empty_image", "image holds no bytes")),
        Ok(bytes) => Ok(bytes.into()),
        Err(e) => Err(ApiError::bad_request("invalid_base64", format!("image is not base64: {e}"))),
    }
}

async fn multipart(content_type: &str, body: Bytes, max_files: usize) -> Result<Posted, ApiError> {
    let bad =
        |e: multer::Error| ApiError::bad_request("invalid_multipart", format!("the form can't be read: {e}"));
    let boundary = multer::parse_boundary(content_type).map_err(bad)?;
    let limit = body.len() as u64;
    // The body is in memory already and bounded, so the parts need no bounds of their own.
    let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(limit).per_field(limit));
    let source = stream::iter([Ok::<_, std::convert::Infallible>(body)]);
    let mut form = Multipart::with_constraints(source, boundary, constraints);
    let mut files = Vec::new();
    while let Some(field) = form.next_field().await.map_err(bad)? {
        if field.name() != Some("file") {
            continue;
        }
        if files.len() == max_files {
            let message = format!("the form has more than {max_files} files (http.max_files)");
            return Err(ApiError::bad_request("too_many_files", message));
        }
        let name = field.file_name().unwrap_or("file").to_owned();
        files.push((name, field.bytes().await.map_err(bad)?));
    }
    if files.is_empty() {
        return Err(ApiError::bad_request("missing_file", "the form has no field called file"));
    }
    Ok(Posted::Files(files))
}
