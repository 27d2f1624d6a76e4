//! GET /batch/status/:id and GET /batch/results/:id.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use tokio::io::AsyncReadExt;
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use super::super::reply::{ApiError, json};
use super::body::BatchStatusReply;
use super::{log_refusal, service};
use crate::batch::ResultsFile;
use crate::http::state::ServerState;

const NDJSON: &str = "application/x-ndjson";
/// Read from the results at once.
const BLOCK_BYTES: usize = 64 << 10;

/// How far a batch is.
pub(in crate::http) async fn status(id: String, state: Arc<ServerState>) -> Response {
    let asked = async { Ok(service(&state)?.status(&id).await?) };
    let response = match asked.await {
        Ok(view) => {
            let mut response = json(StatusCode::OK, &BatchStatusReply::from(view), None);
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => refused(&error),
    };
    state.metrics().request("batch_status", response.status().as_u16());
    response
}

/// The results of a finished batch, as they lie in the object store.
pub(in crate::http) async fn results(id: String, state: Arc<ServerState>) -> Response {
    let asked = async { Ok(service(&state)?.results(&id).await?) };
    let response = match asked.await {
        Ok(results) => {
            let length = HeaderValue::from(results.bytes);
            let mut response = warp::reply::stream(blocks(results)).into_response();
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
            response.headers_mut().insert(CONTENT_LENGTH, length);
            response
        }
        Err(error) => refused(&error),
    };
    state.metrics().request("batch_results", response.status().as_u16());
    response
}

pub(super) fn refused(error: &ApiError) -> Response {
    log_refusal("", error);
    error.clone().into_response(None)
}

fn blocks(results: ResultsFile) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(results, |mut results| async move {
        let mut block = BytesMut::with_capacity(BLOCK_BYTES);
        let count = results.file.read_buf(&mut block).await?;
        Ok((count > 0).then(|| (block.freeze(), results)))
    })
}
