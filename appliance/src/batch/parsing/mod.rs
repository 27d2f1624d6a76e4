//! Parsing a submission: the spooled body, read within bounds into options and a list of images in a file.

mod form;
mod json;
mod options;
#[cfg(test)]
mod tests;
mod urls;

use std::io::{Read, Seek};

use tempfile::TempPath;

pub use form::Form;
pub use options::{BatchOptions, OptionError, OptionSource};
pub use urls::{MAX_URL_BYTES, UrlList, UrlReader};

use super::spool::{Drain, Spool, SpoolError};

/// UTF-8's byte order mark, which some programs put before JSON.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Version of what goes into a digest.
const DIGEST_CONTEXT: &str = "weir 2026 batch digest v1";

/// Bounds on a batch.
#[derive(Clone, Copy, Debug)]
pub struct IntakeBounds {
    /// Most images.
    pub max_images: u64,
    /// Largest file, in bytes.
    pub max_file: u64,
    /// Labels of the model, the bound of `top_k`.
    pub labels: usize,
}

/// A well-formed batch.
#[derive(Debug)]
pub struct Intake {
    /// Its options.
    pub options: BatchOptions,
    /// Its images.
    pub images: Images,
    /// How many.
    pub total: u64,
    /// BLAKE3 of images, camera and `top_k`, but not of the id, in hex.
    pub digest: String,
}

/// The images of a batch.
#[derive(Debug)]
pub enum Images {
    /// To be loaded by the worker.
    Urls(UrlList),
    /// Posted as files, which are still in the form.
    Files(Form),
}

/// Why a request is not a batch.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// There is no body.
    #[error("the body is empty; post JSON with image_urls, or a form with files")]
    EmptyBody,
    /// The body is neither JSON nor a form.
    #[error("the body is neither a JSON object nor multipart/form-data (Content-Type: {content_type:?})")]
    UnsupportedType {
        /// What the request says it is.
        content_type: String,
    },
    /// It is not JSON, or not the JSON that it should be.
    #[error("the JSON body can't be used: {0}")]
    Json(#[source] serde_json::Error),
    /// It is not a form.
    #[error("the form can't be read: {0}")]
    Form(#[source] multer::Error),
    /// A string longer than any field may be.
    #[error(
        "a string of the JSON body, after {index} image_urls, is longer than anything in it may be ({limit} bytes)"
    )]
    LongString {
        /// URLs before it.
        index: u64,
        /// Longest URL.
        limit: usize,
    },
    /// A text field that is too long.
    #[error("the field {name} of the form is longer than {limit} bytes")]
    LongField {
        /// The field.
        name: String,
        /// The bound.
        limit: usize,
    },
    /// A URL that no worker can load.
    #[error(
        "image_urls[{index}] = {value:?}: {reason}; http, https and s3 URLs of 1 to 4096 bytes are taken"
    )]
    BadUrl {
        /// Its place, from 0.
        index: u64,
        /// Its beginning.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no image.
    #[error("{what}; a batch has at least one image")]
    NoImages {
        /// What is missing.
        what: &'static str,
    },
    /// There are too many images.
    #[error("the batch has more than {limit} {what} (batch.max_images); send it in several")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A file is too large.
    #[error("file {index} ({name:?}) has more than {limit} bytes (http.max_body)")]
    FileTooLarge {
        /// Its place, from 0.
        index: u64,
        /// Its name.
        name: String,
        /// The bound.
        limit: u64,
    },
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The spool can't be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Reads a spooled body. `query` has the options of the query.
///
/// # Errors
/// [`IntakeError`], with the first thing that is wrong.
pub async fn read(
    body: TempPath,
    content_type: &str,
    query: BatchOptions,
    spool: &Spool,
    bounds: IntakeBounds,
) -> Result<Intake, IntakeError> {
    if content_type.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        let boundary = multer::parse_boundary(content_type).map_err(IntakeError::Form)?;
        let form = Form { body, boundary };
        let found = form.inspect(bounds).await?;
        let options = query.with(found.options, OptionSource::Form)?;
        let digest = digest("files", found.digest, &options);
        return Ok(Intake { options, images: Images::Files(form), total: found.files, digest });
    }
    let (files, content_type) = (spool.clone(), content_type.to_owned());
    let parsed = tokio::task::spawn_blocking(move || {
        let failed = |e| IntakeError::Spool(files.failed(e));
        check_json(&body, &content_type).map_err(failed)??;
        let mut json = std::fs::OpenOptions::new().read(true).write(true).open(&body).map_err(failed)?;
        skip_byte_order_mark(&mut json).map_err(failed)?;
        json::read(Drain::new(json).map_err(failed)?, &files, bounds)
    });
    let (body, list) = parsed.await.map_err(|e| spool.failed(std::io::Error::other(e)))??;
    let options = query.with(body, OptionSource::Json)?;
    let digest = digest("urls", list.digest, &options);
    Ok(Intake { options, total: list.count, images: Images::Urls(list), digest })
}

/// Skips a byte order mark; blocking.
fn skip_byte_order_mark(file: &mut std::fs::File) -> std::io::Result<()> {
    let mut start = Vec::new();
    file.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start)?;
    if start != BYTE_ORDER_MARK {
        file.rewind()?;
    }
    Ok(())
}

/// Whether the body looks like JSON or says that it is; blocking.
fn check_json(body: &TempPath, content_type: &str) -> std::io::Result<Result<(), IntakeError>> {
    let mut start = [0; 512];
    let mut length = 0;
    let mut file = std::fs::File::open(body)?;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            count => length += count,
        }
    }
    let text = start[..length].strip_prefix(BYTE_ORDER_MARK).unwrap_or(&start[..length]);
    let first = text.iter().find(|b| !b.is_ascii_whitespace());
    Ok(match first {
        None if length == 0 => Err(IntakeError::EmptyBody),
        Some(b'{') => Ok(()),
        _ if content_type.to_ascii_lowercase().contains("json") => Ok(()),
        _ => Err(IntakeError::UnsupportedType { content_type: content_type.chars().take(100).collect() }),
    })
}

fn digest(kind: &str, images: blake3::Hash, options: &BatchOptions) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
    // Each part ends where the next begins, whatever is in it: the camera comes last.
    hasher.update(kind.as_bytes()).update(b"\n").update(images.as_bytes());
    hasher.update(&options.top_k.map_or(0, |k| k as u64).to_le_bytes());
    hasher.update(&[u8::from(options.camera.is_some())]);
    hasher.update(options.camera.as_deref().unwrap_or_default().as_bytes());
    hasher.finalize().to_hex().to_string()
}
