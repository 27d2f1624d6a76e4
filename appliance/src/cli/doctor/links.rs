//! The checks of links in `weir doctor`: connect, log in, produce and consume, put and get, look up followed models.

use std::time::Duration;

use cloud_sync::check::CheckStep;
use cloud_sync::error::SyncResult;
use cloud_sync::kafka;
use cloud_sync::registry::ModelReference;
use tokio::runtime::Runtime;
use url::Url;

use super::{Check, failed, ok, warning};
use crate::bootstrap::Links;
use crate::config::{Config, Protocol, QueueChoice, RegistryConfig};

/// Timeout of the check of one link.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Checks every configured link.
pub(super) fn check_links(config: &Config) -> Vec<Check> {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![failed("links", error, "look at this user's limits on threads and files")],
    };
    let links = match Links::open(config, runtime.handle()) {
        Ok(links) => links,
        Err(error) => return vec![failed("links", error, "correct the setting")],
    };
    let mut checks = Vec::new();
    if let Some(kafka) = &links.kafka {
        let of = &config.kafka;
        checks.push(ok("kafka", format!("{} as {}", of.bootstrap_servers, named(&of.user))));
        if of.protocol() == Protocol::SaslPlaintext && of.bootstrap_servers.split(',').any(is_elsewhere) {
            checks.push(warning(
                "kafka",
                "the login travels unencrypted to another machine",
                "set kafka.security_protocol = \"SASL_SSL\", with kafka.ca_file where the authority is not a public one",
            ));
        }
        let batches = config.batch.enabled && links.queue(config).0 == QueueChoice::Kafka;
        for step in kafka::check(&kafka.client, batches, TIMEOUT) {
            checks.push(judged("kafka", &step.what, step.outcome));
        }
    }
    if let Some(redis) = &links.redis {
        checks.push(ok("redis", format!("{}:{}", config.redis.host, config.redis.port)));
        let of = &config.redis;
        let password = !of.password.is_empty() || of.password_file.is_some();
        if password && !of.is_encrypted() && is_elsewhere(&of.host) {
            checks.push(warning(
                "redis",
                "the password travels unencrypted to another machine",
                "set redis.tls = true (REDIS_TLS), with redis.ca_file where the authority is not a public one; fine \
                 within a network that nobody else can listen to",
            ));
        }
        add(&mut checks, "redis", runtime.block_on(redis.client.check()));
    }
    if let Some(s3) = &links.s3 {
        checks.push(ok("s3", format!("bucket {} {}", config.s3.bucket, config.s3.endpoint)));
        add(&mut checks, "s3", runtime.block_on(s3.client.check()));
        for name in &config.s3.allow_buckets {
            match s3.client.bucket(name) {
                Ok(bucket) => {
                    checks.push(ok("s3", format!("bucket {name}, of s3.allow_buckets")));
                    add(&mut checks, "s3", runtime.block_on(bucket.check_reading()));
                }
                Err(error) => checks.push(failed("s3", error.in_full(), "correct s3.allow_buckets")),
            }
        }
    }
    check_registry(config, &links, &runtime, &mut checks);
    if config.batch.enabled {
        let (queue, reason) = links.queue(config);
        let where_to = match queue {
            QueueChoice::Kafka => "worked off by weir worker, from Kafka",
            QueueChoice::Auto | QueueChoice::Embedded => {
                "worked off by this process, from its data directory"
            }
        };
        checks.push(match (queue, links.kafka.is_some()) {
            (QueueChoice::Embedded, true) if config.batch.queue == QueueChoice::Auto => warning(
                "batches",
                format!("{where_to}: {reason}"),
                "fine for an edge box: set batch.queue = \"embedded\" to say so; else set redis.host and s3.bucket",
            ),
            _ => ok("batches", format!("{where_to} ({reason})")),
        });
    }
    checks
}

/// Checks the registry, and which versions its followed models would get now.
fn check_registry(config: &Config, links: &Links, runtime: &Runtime, checks: &mut Vec<Check>) {
    let mut config = config.clone();
    config.registry.timeout = config.registry.timeout.min(TIMEOUT);
    let registry = match runtime.block_on(async { links.registry(&config) }) {
        Ok(Some(registry)) => registry,
        Ok(None) => return,
        Err(error) => return checks.push(failed("links", error, "correct the setting")),
    };
    let of = &config.registry;
    let has_token = !of.token.is_empty() || of.token_file.is_some();
    checks.push(match &of.dir {
        Some(dir) => ok("registry", format!("folder {}", dir.display())),
        None if has_token => ok("registry", format!("{} with a token", of.uri)),
        None => ok("registry", format!("{} as {}", of.uri, named(&of.user))),
    });
    if (has_token || !of.user.is_empty()) && is_open_to_listeners(of) {
        checks.push(warning(
            "registry",
            "the login travels unencrypted to another machine",
            "set registry.uri to an https address, with registry.ca_file where the authority is not a public one; fine \
             within a network that nobody else can listen to",
        ));
    }
    let steps = runtime.block_on(registry.check());
    let works = steps.iter().all(|step| step.outcome.is_ok());
    add(checks, "registry", steps);
    if !works {
        // Further checks would fail in the same way.
        return;
    }
    let models = std::iter::once(&config.model).chain(config.models.values());
    for reference in models.filter_map(|model| model.follow.parse::<ModelReference>().ok()) {
        checks.push(match runtime.block_on(registry.resolve(&reference)) {
            Ok(Some(found)) => ok("registry", format!("{reference} is version {}", found.version)),
            Ok(None) => failed(
                "registry",
                format!("{reference}: the registry has no such model, alias or version"),
                "register the model and set the alias, or correct what the model follows",
            ),
            Err(error) => judged("registry", &format!("look up {reference}"), Err(error)),
        });
    }
}

/// Whether requests to the registry cross a network unencrypted.
fn is_open_to_listeners(registry: &RegistryConfig) -> bool {
    let uri = Url::parse(&registry.uri).ok().filter(|uri| uri.scheme() == "http");
    uri.is_some_and(|uri| uri.host_str().is_some_and(is_elsewhere))
}

/// Whether data for `host` or `host:port` leaves this machine.
fn is_elsewhere(address: &str) -> bool {
    let address = address.trim();
    let host = match address.rsplit_once(':') {
        // Further colons are those of an IPv6 address, which has a port only after brackets.
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
        _ => address,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => !address.is_loopback(),
        Err(_) => !host.eq_ignore_ascii_case("localhost"),
    }
}

fn named(user: &str) -> &str {
    if user.is_empty() { "nobody" } else { user }
}

fn add(checks: &mut Vec<Check>, link: &'static str, steps: Vec<CheckStep>) {
    checks.extend(steps.into_iter().map(|step| judged(link, &step.what, step.outcome)));
}

fn judged(link: &'static str, what: &str, outcome: SyncResult<String>) -> Check {
    match outcome {
        Ok(remark) if remark.is_empty() => ok(link, what),
        Ok(remark) => ok(link, format!("{what}: {remark}")),
        Err(error) => {
            let general = if error.is_transient() {
                "is the server up, and can this machine reach it?"
            } else {
                "correct the settings of this link; weir.toml documents each"
            };
            failed(link, format!("{what}: {}", error.in_full()), general)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_elsewhere;

    #[test]
    fn only_loopback_is_this_machine() {
        for here in [
            "localhost",
            "LOCALHOST:9092",
            "127.0.0.1",
            "127.0.0.9:6379",
            "::1",
            "[::1]:9092",
            " localhost:1",
        ] {
            assert!(!is_elsewhere(here), "{here}");
        }
        for there in [
            "redis",
            "redis:6379",
            "10.0.0.5",
            "localhost.example.org:1",
            "2001:db8::1",
            "[2001:db8::1]:9092",
        ] {
            assert!(is_elsewhere(there), "{there}");
        }
    }
}
