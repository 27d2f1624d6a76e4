//! Classification of the Redis client's errors: transient or permanent, and the remedy.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::RedisConfig;
use crate::error::{Link, SyncError};

/// The error of the call `what` on the server of `config`, and whether it is a failure of the link itself.
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
            format!("it requires a password for {who} and none is set: correct user and password")
        } else {
            format!("it refuses the password of {who}: correct user and password")
        };
        // The server's own message may repeat the credentials.
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
                (permanent("it is a node of a cluster: use its proxy, or a single server"), true)
            }
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::NoScript => (transient(""), true),
            ServerErrorKind::ReadOnly => (transient("it is a replica: use the primary"), true),
            _ if error.detail().is_some_and(|text| text.contains("max number of clients")) => {
                (transient("it has reached its maximum number of clients"), true)
            }
            _ => (permanent("it does not accept the command"), false),
        },
        ErrorKind::Extension => match error.code() {
            Some("OOM") => (transient("its memory is full: raise maxmemory, or let it evict keys"), true),
            Some("WRONGTYPE") => {
                (permanent("the key is used by another program: use a prefix of your own"), false)
            }
            Some("MISCONF" | "BUSY" | "NOREPLICAS") => (transient(""), true),
            _ => (permanent("it does not accept the command"), false),
        },
        _ => (permanent("the key is used by another program: use a prefix of your own"), false),
    };
    (found.0.because(error), found.1)
}

/// Whether the server refused the login.
fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
        || error.detail().is_some_and(|text| text.contains("invalid password"))
}

fn authority(config: &RedisConfig) -> String {
    match &config.ca_file {
        Some(file) => format!("{} must hold the authority that signed it", file.display()),
        None => "set the file of the authority that signed it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_transient_or_permanent_by_its_kind_and_says_what_to_do() {
        let extension = |code: &str| redis::make_extension_error(code.into(), Some("a server error".into()));
        let server = |kind| RedisError::from((ErrorKind::Server(kind), "a server error"));
        let full =
            (ErrorKind::Server(ServerErrorKind::ResponseError), "", "max number of clients reached".into());
        // error, transient, link error, remedy
        for (error, transient, is_link_error, remedy) in [
            (std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(), true, true, ""),
            (server(ServerErrorKind::BusyLoading), true, true, ""),
            (server(ServerErrorKind::ReadOnly), true, true, "use the primary"),
            (server(ServerErrorKind::Moved), false, true, "cluster"),
            (server(ServerErrorKind::NoPerm), false, true, "the right to"),
            (server(ServerErrorKind::ResponseError), false, false, "does not accept"),
            (full.into(), true, true, "maximum number of clients"),
            (extension("OOM"), true, true, "maxmemory"),
            (extension("WRONGTYPE"), false, false, "prefix of your own"),
            (extension("WRONGPASS"), false, true, "correct user and password"),
            (extension("NOAUTH"), false, true, "requires a password for the default user"),
        ] {
            let shown = format!("{error:?}");
            let (error, found) = classify(&RedisConfig::default(), "read batch \"b\"", error);
            assert_eq!((error.is_transient(), found), (transient, is_link_error), "{shown}");
            let text = error.in_full();
            assert!(text.contains("cannot read batch \"b\" at 127.0.0.1:6379"), "{text}");
            assert!(text.contains(remedy), "{text}");
        }
    }
}
