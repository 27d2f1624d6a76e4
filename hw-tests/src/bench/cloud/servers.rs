//! The servers of a bench, an instance of its own that ends with it, and the appliance's processes that use them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use test_services::Services;

use crate::bench::setup::{Server, Setup, progress};

/// Kafka, Redis, S3: those that a bench asks for.
pub(super) struct Servers {
    pub(super) services: Services,
}

/// What `scripts/services` writes down of an instance.
#[derive(Deserialize)]
struct State {
    processes: BTreeMap<String, Process>,
}

#[derive(Deserialize)]
struct Process {
    pid: u32,
}

impl Servers {
    /// Starts them, empty. A server that does not start ends the bench with its log.
    pub(super) fn start(names: &[&str]) -> Self {
        progress(&format!("starting {}", names.join(", ")));
        Self { services: Services::own(names) }
    }

    /// The deployment's variables for the broker.
    pub(super) fn kafka(&self) -> Vec<(&'static str, String)> {
        let kafka = self.services.kafka();
        vec![
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap.clone()),
            ("KAFKA_USER", kafka.user.clone()),
            ("KAFKA_PASSWORD", kafka.password()),
            ("KAFKA_CA_FILE", text(&kafka.ca_file)),
            ("KAFKA_TOPIC", kafka.requests_topic.clone()),
            ("KAFKA_RESULTS_TOPIC", kafka.results_topic.clone()),
        ]
    }

    /// The deployment's variables for all three.
    fn all(&self) -> Vec<(&'static str, String)> {
        let (redis, s3) = (self.services.redis(), self.services.s3());
        let mut variables = self.kafka();
        variables.extend([
            ("REDIS_HOST", redis.host.clone()),
            ("REDIS_PORT", redis.port.to_string()),
            ("REDIS_PASSWORD", redis.password()),
            ("AWS_ENDPOINT_URL_S3", s3.endpoint.clone()),
            ("AWS_REGION", s3.region.clone()),
            ("AWS_ACCESS_KEY_ID", s3.access_key()),
            ("AWS_SECRET_ACCESS_KEY", s3.secret_key()),
            ("S3_BUCKET", s3.bucket.clone()),
        ]);
        variables
    }

    /// `weir serve` or `weir worker` with all three links, ready.
    pub(super) fn weir(&self, setup: &Setup, command: &str) -> anyhow::Result<Server> {
        setup.start_with(command, &self.all())
    }

    /// The servers' names and process ids.
    pub(super) fn processes(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let path = self.services.dir().join("state.json");
        let state = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let state: State = serde_json::from_slice(&state).with_context(|| path.display().to_string())?;
        Ok(state.processes.into_iter().map(|(name, process)| (name, process.pid)).collect())
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
