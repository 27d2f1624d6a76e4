//! Fetches a file through the server: within limits, resumed where the last call ended if the server supports that.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{CONTENT_DISPOSITION, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::time::timeout;

use super::failure::{Answer, Failure, is_page, unanswered, web_page};
use super::rest::Rest;
use crate::error::{Link, SyncError};
use crate::registry::partial::{Left, Origin, Partial, Size};

/// What to fetch.
pub(super) struct Wanted {
    /// Its description.
    pub(super) what: String,
    pub(super) url: Url,
    pub(super) size: Size,
}

/// Fetches it to `to`.
pub(super) async fn fetch(rest: &Rest, wanted: &Wanted, to: &Path) -> Answer<()> {
    let task = format!("fetch {}", wanted.what);
    // The server reads all of it from the storage before it starts to respond: at 1 MiB/s or more.
    let bytes = wanted.size.listed.unwrap_or(64 << 20);
    let timeout = rest.timeout() + Duration::from_millis(bytes >> 10);
    let left = Partial::left(to).await.filter(|left| left.origin.source == wanted.url.as_str());
    let range = left.as_ref().and_then(range_of).unwrap_or_default();
    let answer = rest.file(&task, wanted.url.clone(), range, timeout).await?;
    let (answer, file) = match left {
        Some(left) if is_rest_of(&answer, &left) => (answer, Partial::resume(to, &left).await?),
        _ => {
            let whole = match answer.status() {
                StatusCode::OK => answer,
                // Not the requested part.
                _ => rest.file(&task, wanted.url.clone(), HeaderMap::new(), timeout).await?,
            };
            if whole.status() != StatusCode::OK {
                let text = format!("cannot {task}: the response is not the whole file ({})", whole.status());
                return Err(SyncError::permanent(Link::Mlflow, text).into());
            }
            if is_page(&whole) && !whole.headers().contains_key(CONTENT_DISPOSITION) {
                return Err(Failure { of_the_link: true, ..web_page(&task).into() });
            }
            let origin = content_of(&whole).map(|content| Origin { source: wanted.url.to_string(), content });
            let announced = whole.content_length().unwrap_or(0);
            wanted.size.check(Link::Mlflow, &wanted.what, announced)?;
            (whole, Partial::begin(to, origin.as_ref()).await?)
        }
    };
    copy(rest, wanted, answer, file).await
}

async fn copy(rest: &Rest, wanted: &Wanted, mut answer: Response, mut file: Partial) -> Answer<()> {
    let task = format!("fetch {}", wanted.what);
    loop {
        let failure = match timeout(rest.timeout(), answer.chunk()).await {
            Ok(Ok(Some(piece))) => {
                wanted.size.check(Link::Mlflow, &wanted.what, file.bytes() + piece.len() as u64)?;
                file.write(&piece).await?;
                continue;
            }
            Ok(Ok(None)) => break,
            Ok(Err(error)) => unanswered(&task, error),
            Err(_) => {
                let error = SyncError::transient(Link::Mlflow, format!("cannot {task}"));
                error.because("it arrives too slowly").into()
            }
        };
        file.leave().await;
        return Err(failure);
    }
    match wanted.size.listed {
        Some(listed) if listed != file.bytes() => {
            let text = format!("{} broke off after {} of {listed} bytes", wanted.what, file.bytes());
            file.leave().await;
            Err(SyncError::transient(Link::Mlflow, text).into())
        }
        _ => Ok(file.finish().await?),
    }
}

fn range_of(left: &Left) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(RANGE, HeaderValue::from_str(&format!("bytes={}-", left.bytes)).ok()?);
    headers.insert(IF_RANGE, HeaderValue::from_str(&left.origin.content).ok()?);
    Some(headers)
}

/// Whether a response is the rest of what was left.
fn is_rest_of(answer: &Response, left: &Left) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    answer.status() == StatusCode::PARTIAL_CONTENT
        && range.starts_with(&format!("bytes {}-", left.bytes))
        && content_of(answer).is_none_or(|content| content == left.origin.content)
}

/// Identifies the content byte by byte: a strong ETag.
fn content_of(answer: &Response) -> Option<String> {
    let etag = answer.headers().get(ETAG)?.to_str().ok()?;
    etag.starts_with('"').then(|| etag.to_owned())
}
