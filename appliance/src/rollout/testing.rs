//! For tests: what rollouts need of the rest of the process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::registry::ModelRegistry;
use gpu_kernels::DecodeLimits;
use inference::engine::{DeviceKind, DeviceRequest, Runtime, choose_device};
use inference::lanes::LaneSettings;

use super::{Journal, RolloutContext, Settings};
use crate::config::{MonitoringConfig, RolloutConfig};
use crate::models::ModelStore;
use crate::models::testing::limits;
use crate::serving::ModelLoader;
use crate::telemetry::Metrics;

/// What rollouts need, on the CPU and with stores in a folder.
pub(crate) fn context(
    dir: &Path,
    registry: Option<Arc<dyn ModelRegistry>>,
    rollout: &RolloutConfig,
) -> RolloutContext {
    let root = dir.join("models");
    let store = ModelStore::open(&root).unwrap();
    let cpu = DeviceRequest { kind: DeviceKind::Cpu, ..DeviceRequest::default() };
    let loader = ModelLoader {
        runtime: Runtime::load(None).unwrap(),
        device: choose_device(&cpu).unwrap(),
        gpu: None,
        limits: DecodeLimits::default(),
        precision: None,
    };
    RolloutContext {
        registry,
        journal: Journal::open(&root).unwrap(),
        store,
        loader,
        lanes: LaneSettings::new(1, 8),
        metrics: Arc::new(Metrics::new()),
        outbox: None,
        settings: Settings {
            node: "dock-3".into(),
            rollout: rollout.clone(),
            monitoring: MonitoringConfig::default(),
            poll_interval: Duration::from_millis(50),
            retain_versions: 3,
            tag: true,
            pull: limits(),
        },
    }
}
