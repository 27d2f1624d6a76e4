//! What a body holds, without a daemon. Public for the fuzz targets only: the way there through a socket and the service would hide
//! most of what they are to reach.

use std::sync::Arc;

use bytes::Bytes;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};

use super::forms;
pub use super::forms::Payload;
use crate::memory::BodyMemory;

/// Why a body is refused.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The code in the answer.
    pub code: &'static str,
    /// The sentence in the answer.
    pub message: String,
}

/// Sorts out a body as `POST /predict` does. A Content-Type that no header can have is refused.
///
/// # Errors
/// [`Refusal`].
pub async fn parse(
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
    forms::parse(&headers, body, max_files, memory).await.map_err(|error| Refusal {
        status: error.status.as_u16(),
        code: error.code,
        message: error.message,
    })
}
