//! Classification of the S3 client's errors: transient or permanent, and the remedy.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Link, SyncError, with_sources};

/// An error, and whether it is about the link as a whole: the credentials or the bucket, not this object.
pub(super) struct Failure {
    pub(super) error: SyncError,
    pub(super) of_the_link: bool,
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        let of_the_link = error.is_transient();
        Self { error, of_the_link }
    }
}

/// Whether the storage says that there is no such object (and not: no such bucket).
pub(super) fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let status = error.raw_response().map(|response| response.status().as_u16());
    match error.as_service_error().and_then(ProvideErrorMetadata::code) {
        Some("NoSuchKey" | "NotFound") => true,
        // The response to HEAD has no body, so there is no code.
        None => status == Some(404),
        Some(_) => false,
    }
}

/// The error of `what`: "cannot put s3://bucket/key".
pub(super) fn classify<E>(what: String, error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    if let Some(service) = error.as_service_error() {
        let code = service.code().unwrap_or(match status {
            403 => "AccessDenied",
            404 => "NotFound",
            _ => "error",
        });
        let said = match service.message() {
            Some(message) if !message.is_empty() => format!("{code} ({status}): {message}"),
            _ => format!("{code} ({status})"),
        };
        return refused(what, code, status).because(said);
    }
    let chain = with_sources(&error);
    let has = |text: &str| chain.contains(text);
    let transient = |what: String| (SyncError::transient(Link::S3, what), true);
    let permanent = |what: String, of_the_link| (SyncError::permanent(Link::S3, what), of_the_link);
    let (error, of_the_link) = match &error {
        // The chain of credential providers reports this way that none of them has any, or that one is misconfigured.
        _ if has("provider was not enabled") || has("not properly configured") => permanent(
            format!("{what} (no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"),
            true,
        ),
        SdkError::DispatchFailure(_) if has("certificate") => {
            transient(format!("{what} (its certificate is not trusted: set the file of its authority)"))
        }
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
            transient(what)
        }
        _ => permanent(what, false),
    };
    Failure { error: error.because(chain), of_the_link }
}

impl Failure {
    fn because(self, source: String) -> Self {
        Self { error: self.error.because(source), ..self }
    }
}

/// Classifies the storage's own refusal.
fn refused(what: String, code: &str, status: u16) -> Failure {
    let permanent = |remedy: &str| Failure {
        error: SyncError::permanent(Link::S3, format!("{what} ({remedy})")),
        of_the_link: true,
    };
    let transient = |remedy: &str| {
        let what = if remedy.is_empty() { what.clone() } else { format!("{what} ({remedy})") };
        Failure { error: SyncError::transient(Link::S3, what), of_the_link: true }
    };
    match code {
        "NoSuchBucket" => permanent("there is no such bucket: create it, or correct the name"),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => permanent(
            "access denied: give the key the rights to get and list there, in its own bucket also to put and delete",
        ),
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "XAdminUserNotFound" => {
            permanent("the keys are refused: correct access key and secret")
        }
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            permanent("the bucket is elsewhere: correct region and endpoint")
        }
        "ExpiredToken" | "TokenRefreshRequired" => transient("the credentials have expired: renew them"),
        "RequestTimeTooSkewed" => transient("the clocks differ: set the time of this machine"),
        "InsufficientStorage" | "QuotaExceeded" | "XMinioStorageFull" => {
            transient("the storage is full: free some space, or raise the quota")
        }
        "SlowDown" | "RequestTimeout" | "OperationAborted" | "InternalError" | "ServiceUnavailable" => {
            transient("")
        }
        _ if status >= 500 || status == 429 || status == 408 => transient(""),
        _ => Failure { error: SyncError::permanent(Link::S3, what), of_the_link: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_transient_or_permanent_by_its_code_and_says_what_to_do() {
        // code, status, transient, link error, remedy
        for (code, status, transient, of_the_link, remedy) in [
            ("NoSuchBucket", 404, false, true, "create it"),
            ("AccessDenied", 403, false, true, "rights"),
            ("SignatureDoesNotMatch", 403, false, true, "access key and secret"),
            ("AuthorizationHeaderMalformed", 400, false, true, "region"),
            ("ExpiredToken", 400, true, true, "renew"),
            ("RequestTimeTooSkewed", 403, true, true, "time of this machine"),
            ("InsufficientStorage", 507, true, true, "free some space"),
            ("SlowDown", 503, true, true, ""),
            ("error", 429, true, true, ""),
            ("error", 500, true, true, ""),
            ("KeyTooLongError", 400, false, false, ""),
        ] {
            let failure = refused("cannot put s3://b/k".into(), code, status);
            let found = (failure.error.is_transient(), failure.of_the_link);
            assert_eq!(found, (transient, of_the_link), "{code}");
            let text = failure.error.in_full();
            assert!(text.contains("cannot put s3://b/k") && text.contains(remedy), "{text}");
        }
    }
}
