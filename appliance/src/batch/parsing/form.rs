//! The multipart form of a batch. The spooled body is read twice: once to check it and to compute the digest, and once more
//! to store the files, when the batch has its id. The second time what has been read is freed, so that the files are on
//! the disk only once.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use multer::{Field, Multipart};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;

use super::options::{BatchOptions, OptionSource};
use super::{IntakeBounds, IntakeError};
use crate::batch::spool::{Drain, Spool};

/// Longest text field: more than any option may have.
const MAX_TEXT_BYTES: usize = 4096;
/// Bytes read from the body at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Most bytes that may be read of the body without any content of a file or text: the head of a part is far shorter.
const MAX_HEAD_BYTES: usize = 256 << 10;

/// The fields that are images.
const FILE_FIELDS: [&str; 3] = ["file", "files", "image"];

/// A form in a file.
#[derive(Debug)]
pub struct Form {
    pub(super) body: TempPath,
    pub(super) boundary: String,
}

/// What the first reading of a form finds.
pub(super) struct Found {
    pub(super) options: BatchOptions,
    pub(super) files: u64,
    pub(super) digest: blake3::Hash,
}

/// Reads a form part by part in bounded memory.
pub(in crate::batch) struct FormReader {
    parts: Multipart<'static>,
    allowance: Arc<AtomicUsize>,
}

impl Form {
    /// Reads the form, once: what has been read is freed.
    pub(in crate::batch) async fn drain(&self) -> Result<FormReader, IntakeError> {
        self.open(|body| Ok(Box::new(Drain::open(body)?))).await
    }

    async fn open(
        &self,
        open: impl FnOnce(&Path) -> io::Result<Box<dyn Read + Send>> + Send + 'static,
    ) -> Result<FormReader, IntakeError> {
        let body = self.body.to_path_buf();
        let body = tokio::task::spawn_blocking(move || open(&body)).await.map_err(io::Error::other);
        let body = body.flatten().map_err(multer_io)?;
        let allowance = Arc::new(AtomicUsize::new(0));
        let parts = Multipart::new(blocks(body, Arc::clone(&allowance)), &self.boundary);
        Ok(FormReader { parts, allowance })
    }

    /// Reads the form once, to check everything in it.
    pub(super) async fn inspect(&self, bounds: IntakeBounds) -> Result<Found, IntakeError> {
        let mut form = self.open(|body| Ok(Box::new(File::open(body)?))).await?;
        let mut found =
            Found { options: BatchOptions::default(), files: 0, digest: blake3::Hasher::new().finalize() };
        let mut digests = blake3::Hasher::new();
        while let Some(mut part) = form.next().await? {
            if is_file(&part) {
                if found.files == bounds.max_images {
                    return Err(IntakeError::TooMany { what: "files", limit: bounds.max_images });
                }
                let (length, digest) = form.measure(&mut part, found.files, bounds.max_file).await?;
                digests.update(&length.to_le_bytes()).update(digest.as_bytes());
                found.files += 1;
            } else if let Some(text) = form.text(&mut part).await? {
                let name = part.name().unwrap_or_default();
                found.options.set(OptionSource::Form, name, &text, bounds.labels)?;
            }
        }
        if found.files == 0 {
            return Err(IntakeError::NoImages { what: "the form has no field called file, files or image" });
        }
        found.digest = digests.finalize();
        Ok(found)
    }
}

fn is_file(part: &Field<'_>) -> bool {
    part.name().is_some_and(|name| FILE_FIELDS.contains(&name))
}

impl FormReader {
    /// Resets the allowance after content was consumed.
    fn allow(&self) {
        self.allowance.store(MAX_HEAD_BYTES, Ordering::Relaxed);
    }

    async fn next(&mut self) -> Result<Option<Field<'static>>, IntakeError> {
        self.allow();
        self.parts.next_field().await.map_err(IntakeError::Form)
    }

    async fn chunk(&self, part: &mut Field<'static>) -> Result<Option<Bytes>, IntakeError> {
        self.allow();
        part.chunk().await.map_err(IntakeError::Form)
    }

    async fn measure(
        &self,
        part: &mut Field<'static>,
        index: u64,
        limit: u64,
    ) -> Result<(u64, blake3::Hash), IntakeError> {
        let mut hasher = blake3::Hasher::new();
        while let Some(chunk) = self.chunk(part).await? {
            hasher.update(&chunk);
            if hasher.count() > limit {
                let name: String = part.file_name().unwrap_or("file").chars().take(100).collect();
                return Err(IntakeError::FileTooLarge { index, name, limit });
            }
        }
        Ok((hasher.count(), hasher.finalize()))
    }

    /// The text of a part that is an option; other parts are skipped.
    async fn text(&self, part: &mut Field<'static>) -> Result<Option<String>, IntakeError> {
        let wanted = part.name().is_some_and(|name| ["request_id", "camera", "top_k"].contains(&name));
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk(part).await? {
            if wanted && bytes.len() + chunk.len() > MAX_TEXT_BYTES {
                let name = part.name().unwrap_or_default().to_owned();
                return Err(IntakeError::LongField { name, limit: MAX_TEXT_BYTES });
            }
            if wanted {
                bytes.extend_from_slice(&chunk);
            }
        }
        Ok(wanted.then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Copies the next file of the form into the spool; `None` after the last.
    pub(in crate::batch) async fn next_file(
        &mut self,
        spool: &Spool,
    ) -> Result<Option<TempPath>, IntakeError> {
        while let Some(mut part) = self.next().await? {
            let wanted = is_file(&part);
            let mut copy = if wanted { Some(spool.file().await?) } else { None };
            while let Some(chunk) = self.chunk(&mut part).await? {
                if let Some((file, _)) = &mut copy {
                    file.write_all(&chunk).await.map_err(|e| spool.failed(e))?;
                }
            }
            if let Some((mut file, path)) = copy {
                file.flush().await.map_err(|e| spool.failed(e))?;
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

fn multer_io(error: io::Error) -> IntakeError {
    IntakeError::Form(multer::Error::StreamReadFailed(Box::new(error)))
}

/// The body in blocks. The form's parser buffers all that is ready before it parses, and keeps what is incomplete: so the
/// stream is pending after each block, and ends with an error beyond the allowance.
fn blocks(
    body: Box<dyn Read + Send>,
    allowance: Arc<AtomicUsize>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((body, allowance), |(mut body, allowance)| async move {
        tokio::task::yield_now().await;
        let read = tokio::task::spawn_blocking(move || {
            let mut block = BytesMut::zeroed(BLOCK_BYTES);
            let count = body.read(&mut block)?;
            block.truncate(count);
            Ok::<_, io::Error>((body, block))
        });
        let (body, block) = read.await.map_err(io::Error::other)??;
        let count = block.len();
        if count == 0 {
            return Ok(None);
        }
        let left = allowance.load(Ordering::Relaxed).checked_sub(count);
        let left = left.ok_or_else(|| io::Error::other("a part has a head of more than 256 KiB"))?;
        allowance.store(left, Ordering::Relaxed);
        Ok(Some((block.freeze(), (body, allowance))))
    })
}
