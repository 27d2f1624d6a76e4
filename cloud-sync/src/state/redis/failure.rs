//! What an error of the Redis client means for a caller, and what a person can do about it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::RedisConfig;
use crate::error::{Link, SyncError};

/// The error of `what`, which was tried on the server of `config`, and whether it is the link's own.
pub(super) fn classify(config: &RedisConfig, what: &str, error: RedisError) -> (SyncError, bool) {
    let at = format!("{}:{}", config.host, config.port);
    let what = format!("cannot {what} at {at}");
    let permanent = |remedy: &str| SyncError::permanent(Link::Redis, format!("{what} ({remedy})"));
    let transient = |remedy: &str| {
        let what = if remedy.is_empty() { what.clone() } else { format!("{what} ({remedy})") };
        SyncError::transient(Link::Redis, what)
    };
    if is_login(&error) {
        let who = if config.user.is_empty() { "the default user" } else { config.user.as_str() };
        let given = if config.password.is_empty() { "no password" } else { "the password" };
        // The server's own text may repeat what it was sent.
        return (permanent(&format!("it refuses {given} of {who}: correct user and password")), true);
    }
    let found = match error.kind() {
        ErrorKind::Io if error.to_string().contains("certificate") => {
            (transient(&format!("its certificate is not trusted: {}", authority(config))), true)
        }
        ErrorKind::Io | ErrorKind::Parse => (transient(""), true),
        ErrorKind::InvalidClientConfig | ErrorKind::Client => (permanent("correct the settings"), true),
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::NoPerm => {
                (permanent("give the user the right to these keys and commands"), true)
            }
            ServerErrorKind::CrossSlot | ServerErrorKind::Moved | ServerErrorKind::Ask => {
                (permanent("it is one node of a cluster: name its proxy, or a single server"), true)
            }
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::NoScript => (transient(""), true),
            ServerErrorKind::ReadOnly => (transient("it is a replica: name the primary"), true),
            _ if error.detail().is_some_and(|text| text.contains("max number of clients")) => {
                (transient("it has as many clients as it allows"), true)
            }
            _ => (permanent("it does not take the command"), false),
        },
        ErrorKind::Extension => match error.code() {
            Some("OOM") => (transient("its memory is full: raise maxmemory, or let it evict keys"), true),
            Some("WRONGTYPE") => (permanent("the key holds something else: use a prefix of your own"), false),
            Some("MISCONF" | "BUSY" | "NOREPLICAS") => (transient(""), true),
            _ => (permanent("it does not take the command"), false),
        },
        _ => (permanent("the key holds something else: use a prefix of your own"), false),
    };
    (found.0.because(error), found.1)
}

/// Whether the server did not let us in.
fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
        || error.detail().is_some_and(|text| text.contains("invalid password"))
}

fn authority(config: &RedisConfig) -> String {
    match &config.ca_file {
        Some(file) => format!("{} must be of the authority that signed it", file.display()),
        None => "name the file of the authority that signed it".into(),
    }
}
