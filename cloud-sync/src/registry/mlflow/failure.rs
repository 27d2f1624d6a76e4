//! Classification of failed calls: transient or permanent, and the remedy.

use std::error::Error;

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;

/// A failed call.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: SyncError,
    /// Whether it is about the link as a whole, not about the request.
    pub(super) of_the_link: bool,
    /// Its kind, as far as callers distinguish it.
    pub(super) kind: Kind,
}

/// Kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The object does not exist.
    Missing,
    /// The call does not exist: another server, or an old one.
    NoSuchCall,
    /// The server refuses an argument.
    BadArgument,
    /// Anything else.
    Other,
}

pub(super) type Answer<T> = Result<T, Failure>;

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        let of_the_link = error.is_transient() && error.link() == Link::Mlflow;
        Self { error, of_the_link, kind: Kind::Other }
    }
}

/// MLflow's own message.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    error_code: String,
    #[serde(default)]
    message: String,
}

/// Records the outcome of a call.
pub(super) fn note<T>(health: &LinkHealth, result: Answer<T>) -> SyncResult<T> {
    match &result {
        Ok(_) => {
            let _ = health.note(Ok(()));
        }
        Err(failure) if failure.of_the_link && health.failed(&failure.error) => {
            tracing::warn!(link = Link::Mlflow.name(), error = failure.error.in_full(), "the link is down");
        }
        Err(_) => {}
    }
    result.map_err(|failure| failure.error)
}

/// The failure of a request without a response.
pub(super) fn unanswered(what: &str, error: reqwest::Error) -> Failure {
    // Without the URL: it is long, and `what` describes it.
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = inner.to_string();
        cause = inner.source();
    }
    let hint = if words.contains("certificate") {
        " (its certificate is not trusted: set the file of its authority)"
    } else {
        ""
    };
    SyncError::transient(Link::Mlflow, format!("cannot {what}{hint}")).because(words).into()
}

/// The failure of an error response; `body` is the beginning of its text.
pub(super) fn refused(what: &str, status: StatusCode, body: &[u8]) -> Failure {
    let refusal: Option<Refusal> = serde_json::from_slice(body).ok();
    let (code, words) = match &refusal {
        Some(refusal) => (refusal.error_code.as_str(), refusal.message.as_str()),
        None => ("", ""),
    };
    let words: String = words.chars().filter(|c| !c.is_control()).take(300).collect();
    let said = match (code, words.as_str()) {
        ("", "") => format!("status {status}"),
        ("", words) => format!("status {status}: {words}"),
        (code, words) => format!("{code} ({}): {words}", status.as_u16()),
    };
    let transient = || SyncError::transient(Link::Mlflow, format!("cannot {what}")).because(said.clone());
    let permanent = |remedy: &str| {
        SyncError::permanent(Link::Mlflow, format!("cannot {what}{remedy}")).because(said.clone())
    };
    let (error, of_the_link, kind) = match status.as_u16() {
        401 | 403 => {
            let remedy = " (the login is refused: correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, \
                          or MLFLOW_TRACKING_TOKEN, and what that user may do)";
            (permanent(remedy), true, Kind::Other)
        }
        408 | 429 | 500.. => (transient(), true, Kind::Other),
        300..=399 => {
            let remedy = " (it redirects to another server, which is not followed: correct the tracking URI)";
            (permanent(remedy), true, Kind::Other)
        }
        404 if matches!(code, "RESOURCE_DOES_NOT_EXIST" | "NOT_FOUND") => {
            (permanent(""), false, Kind::Missing)
        }
        404 if code.is_empty() && !looks_like_a_page(body) => (permanent(""), false, Kind::NoSuchCall),
        404 | 405 if code.is_empty() => (web_page(what), true, Kind::NoSuchCall),
        404 if code == "ENDPOINT_NOT_FOUND" => (permanent(""), false, Kind::NoSuchCall),
        _ if looks_like_a_page(body) => (web_page(what), true, Kind::Other),
        _ if code == "INVALID_PARAMETER_VALUE" => (permanent(""), false, Kind::BadArgument),
        _ => (permanent(""), false, Kind::Other),
    };
    let error = if of_the_link { error.of_the_link() } else { error };
    Failure { error, of_the_link, kind }
}

/// The error of a response that is not MLflow's.
pub(super) fn web_page(what: &str) -> SyncError {
    let what = format!(
        "cannot {what}: it answered with a web page, not MLflow's API: is the URI right, is a proxy in between?"
    );
    SyncError::permanent(Link::Mlflow, what).of_the_link()
}

/// Whether a text is HTML.
pub(super) fn looks_like_a_page(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// Whether a response claims to be HTML.
pub(super) fn is_page(response: &Response) -> bool {
    let kind = response.headers().get(reqwest::header::CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok()).is_some_and(|kind| kind.starts_with("text/html"))
}
