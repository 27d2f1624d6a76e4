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
        let refused = if config.password.is_empty() {
            format!("it asks {who} for a password and none is set: correct user and password")
        } else {
            format!("it refuses the password of {who}: correct user and password")
        };
        // The server's own text may repeat what it was sent.
        return (permanent(&refused), true);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_transient_or_permanent_by_its_kind_and_says_what_to_do() {
        let extension =
            |code: &str| redis::make_extension_error(code.into(), Some("the server's words".into()));
        let server = |kind| RedisError::from((ErrorKind::Server(kind), "the server's words"));
        let full =
            (ErrorKind::Server(ServerErrorKind::ResponseError), "", "max number of clients reached".into());
        // error, transient, of the link, remedy
        for (error, transient, of_the_link, remedy) in [
            (std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(), true, true, ""),
            (server(ServerErrorKind::BusyLoading), true, true, ""),
            (server(ServerErrorKind::ReadOnly), true, true, "name the primary"),
            (server(ServerErrorKind::Moved), false, true, "cluster"),
            (server(ServerErrorKind::NoPerm), false, true, "the right to"),
            (server(ServerErrorKind::ResponseError), false, false, "does not take"),
            (full.into(), true, true, "as many clients"),
            (extension("OOM"), true, true, "maxmemory"),
            (extension("WRONGTYPE"), false, false, "prefix of your own"),
            (extension("WRONGPASS"), false, true, "correct user and password"),
            (extension("NOAUTH"), false, true, "asks the default user for a password"),
        ] {
            let shown = format!("{error:?}");
            let (error, found) = classify(&RedisConfig::default(), "read batch \"b\"", error);
            assert_eq!((error.is_transient(), found), (transient, of_the_link), "{shown}");
            let text = error.in_full();
            assert!(text.contains("cannot read batch \"b\" at 127.0.0.1:6379"), "{text}");
            assert!(text.contains(remedy), "{text}");
        }
    }
}
