//! Checks that sections of the configuration share.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use cloud_sync::secret::Secret;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use url::Url;

/// An error is the key, and a message that names the value and its bound.
pub(super) type Check = Result<(), (&'static str, String)>;

/// A number from `low` to `high`.
pub(super) fn within<T: PartialOrd + Display + Copy>(key: &'static str, value: T, low: T, high: T) -> Check {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err((key, format!("{value} is not between {low} and {high}"))),
    }
}

/// A time limit within which something can happen.
pub(super) fn more_than_zero(key: &'static str, value: Duration) -> Check {
    match value.is_zero() {
        true => Err((key, "0s: nothing could ever be answered".into())),
        false => Ok(()),
    }
}

/// A time of at least `min`.
pub(super) fn at_least(key: &'static str, value: Duration, min: Duration) -> Check {
    if value >= min {
        return Ok(());
    }
    let (value, min) = (humantime::format_duration(value), humantime::format_duration(min));
    Err((key, format!("{value} is less than {min}")))
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A secret that is set or in a file, not both; `what` names it in the message.
pub(super) fn either(key: &'static str, secret: &Secret, file: Option<&PathBuf>, what: &str) -> Check {
    match file {
        Some(_) if !secret.is_empty() => Err((key, format!("set beside the {what} itself; choose one"))),
        _ => Ok(()),
    }
}

/// An `http` or `https` URL, or nothing. It may contain a password by mistake, so then it is not repeated; `login` says where
/// credentials belong.
pub(super) fn http_url(key: &'static str, url: &str, login: &str) -> Check {
    if url.contains(['@', '?', '#']) {
        return Err((key, format!("(hidden): scheme, host, port and path only; {login}")));
    }
    let scheme = Url::parse(url).map(|url| url.scheme().to_owned());
    if !url.is_empty() && !matches!(scheme.as_deref(), Ok("http" | "https")) {
        return Err((key, format!("{url:?} is no http or https URL")));
    }
    Ok(())
}

/// A filter of log levels. Its own parser takes a misspelt level for the name of a module, and then nothing would be logged.
pub(super) fn log_filter(filter: &str) -> Result<(), String> {
    for part in filter.split(',').map(str::trim).filter(|part| !part.contains(['=', '['])) {
        if part.parse::<LevelFilter>().is_err() {
            return Err(format!("{part:?} is no level; levels are error, warn, info, debug, trace and off"));
        }
    }
    EnvFilter::builder().parse(filter).map(drop).map_err(|error| format!("{filter:?}: {error}"))
}
