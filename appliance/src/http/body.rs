//! Request bodies within limits: on the size of a body, on the memory of all bodies ([`BodyMemory`]), and on the time that a body
//! may take. A large body is spooled to a file.
//!
//! The rest of a refused body is read and discarded for a moment, in the background: a server that closes a socket with unread
//! data resets the connection, and the client never sees the reply.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_LENGTH, EXPECT};

use super::inbound::TransferError;
use crate::memory::{BodyMemory, NoRoom};

const DRAIN_TIME: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 64 << 20;
const WRITE_BYTES: usize = 256 << 10;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than {limit} bytes ({section}.max_body)")]
    TooLarge { limit: usize, section: &'static str },
    #[error("the body did not arrive completely within {} s ({section}.body_timeout)", limit.as_secs_f32())]
    TimedOut { limit: Duration, section: &'static str },
    #[error("the connection ended within the body: {reason}")]
    Broken { reason: String },
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Transfer(TransferError),
    #[error("the disk has no room for the body: {0}")]
    Disk(#[source] io::Error),
}

/// Limits of one body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    pub(super) bytes: usize,
    /// Their section in the configuration.
    pub(super) section: &'static str,
    pub(super) time: Duration,
}

impl BodyLimits {
    fn exceeded(self) -> BodyError {
        BodyError::TooLarge { limit: self.bytes, section: self.section }
    }
}

/// Reads a whole body, into memory that is reserved first and released when the last clone of the bytes is dropped. On an error
/// the rest is discarded in the background.
pub(super) async fn read<S, B, E>(
    headers: &HeaderMap,
    stream: S,
    limits: BodyLimits,
    memory: &Arc<BodyMemory>,
) -> Result<Bytes, BodyError>
where
    S: Stream<Item = Result<B, E>> + Send + Unpin + 'static,
    B: Buf + Send,
    E: std::error::Error + Send + 'static,
{
    // A head that is refused is refused before the stream is polled, which would send "100 Continue" to a client that waits
    // for it.
    let declared = match declared_length(headers, limits) {
        Ok(declared) => declared,
        Err(error) => {
            discard(headers, stream);
            return Err(error);
        }
    };
    let mut stream = stream;
    let collected = collect(&mut stream, declared, limits, memory);
    let error = match tokio::time::timeout(limits.time, collected).await {
        Ok(Ok(body)) => return Ok(body),
        Ok(Err(error)) => error,
        Err(_) => BodyError::TimedOut { limit: limits.time, section: limits.section },
    };
    drain(stream);
    Err(error)
}

/// Reads a body into a file and returns its length. On an error the rest is discarded in the background.
pub(super) async fn read_to_file<S, B, E>(
    headers: &HeaderMap,
    stream: S,
    limits: BodyLimits,
    file: File,
) -> Result<u64, BodyError>
where
    S: Stream<Item = Result<B, E>> + Send + Unpin + 'static,
    B: Buf + Send,
    E: std::error::Error + Send + 'static,
{
    if let Err(error) = declared_length(headers, limits) {
        discard(headers, stream);
        return Err(error);
    }
    let mut stream = stream;
    let error = match tokio::time::timeout(limits.time, store(&mut stream, limits, file)).await {
        Ok(Ok(length)) => return Ok(length),
        Ok(Err(error)) => error,
        Err(_) => BodyError::TimedOut { limit: limits.time, section: limits.section },
    };
    drain(stream);
    Err(error)
}

async fn store<S, B, E>(stream: &mut S, limits: BodyLimits, file: File) -> Result<u64, BodyError>
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Buf,
    E: std::error::Error + 'static,
{
    // Otherwise each small chunk of a slow client would be a write of its own.
    let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
    let mut length = 0;
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk.map_err(broken)?;
        length += chunk.remaining();
        if length > limits.bytes {
            return Err(limits.exceeded());
        }
        file.write_all_buf(&mut chunk).await.map_err(BodyError::Disk)?;
    }
    file.flush().await.map_err(BodyError::Disk)?;
    Ok(length as u64)
}

/// Content-Length, or 0 where there is none.
fn declared_length(headers: &HeaderMap, limits: BodyLimits) -> Result<usize, BodyError> {
    let declared =
        headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    match declared.map(usize::try_from) {
        Some(Ok(length)) if length <= limits.bytes => Ok(length),
        Some(_) => Err(limits.exceeded()),
        None => Ok(0),
    }
}

async fn collect<S, B, E>(
    stream: &mut S,
    declared: usize,
    limits: BodyLimits,
    memory: &Arc<BodyMemory>,
) -> Result<Bytes, BodyError>
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Buf,
    E: std::error::Error + 'static,
{
    // Before anything is reserved: a body that never arrives takes no memory.
    let mut chunk = match stream.next().await {
        Some(chunk) => chunk.map_err(broken)?,
        None => return Ok(Bytes::new()),
    };
    if declared > 0 && chunk.remaining() == declared {
        let share = memory.reserve(declared)?;
        return Ok(share.hold(chunk.copy_to_bytes(declared)));
    }
    let mut body = memory.body(declared, limits.bytes)?;
    loop {
        if body.len() + chunk.remaining() > limits.bytes {
            return Err(limits.exceeded());
        }
        while chunk.has_remaining() {
            let part = chunk.chunk();
            body.extend(part)?;
            let length = part.len();
            chunk.advance(length);
        }
        match stream.next().await {
            Some(next) => chunk = next.map_err(broken)?,
            None => return Ok(body.freeze()),
        }
    }
}

fn broken<E: std::error::Error + 'static>(error: E) -> BodyError {
    match TransferError::within(&error) {
        Some(error) => BodyError::Transfer(error.clone()),
        None => BodyError::Broken { reason: error.to_string() },
    }
}

/// Discards a body that was refused by its head.
pub(super) fn discard<S, B, E>(headers: &HeaderMap, stream: S)
where
    S: Stream<Item = Result<B, E>> + Send + Unpin + 'static,
    B: Buf + Send,
    E: Send,
{
    // A client that waits for "100 Continue" sends nothing without it.
    if !headers.contains_key(EXPECT) {
        drain(stream);
    }
}

/// Reads and discards, within limits on bytes and time.
fn drain<S, B, E>(stream: S)
where
    S: Stream<Item = Result<B, E>> + Send + Unpin + 'static,
    B: Buf + Send,
    E: Send,
{
    let mut stream = stream;
    tokio::spawn(tokio::time::timeout(DRAIN_TIME, async move {
        let mut seen = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            seen += chunk.remaining();
            if seen > DRAIN_BYTES {
                return;
            }
        }
    }));
}
