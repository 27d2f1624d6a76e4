//! Wiring: the parts of the daemon, the order in which they start, and the order in which they stop. Nothing else.

mod clients;
mod models;
mod run;
mod services;
mod stores;

use std::path::PathBuf;
use std::sync::Arc;

use cloud_sync::capture::CaptureError;
use cloud_sync::error::SyncError;
use cloud_sync::outbox::OutboxError;
use cloud_sync::tls::CaFileError;
use cloud_sync::uplink::UplinkError;
use inference::bundle::BundleError;
use inference::engine::EngineError;
use tokio::runtime::Handle;

pub use clients::{LinkError, Links, admin_token};
pub use models::{DeviceSetup, default_name, load_library, prepare_device, pull_limits};
pub use run::{Files, raise_limit, run};
pub use stores::{create_private, is_open_to_others, models_dir, outbox_dir};

use crate::background::Background;
use crate::batch::spool::SpoolError;
use crate::http::{Role, ServerState, Services};
use crate::models::StoreError;
use crate::rollout::{JournalError, Rollouts};
use crate::serving::{Classifier, LoadError};
use services::ServiceDeps;
use stores::LocalBlobStore;

/// Why the appliance cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("the data directory {} can't be used: {source}. Remedy: choose another with --data-dir or data_dir", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The outbox cannot be opened.
    #[error("the outbox can't be opened: {0}")]
    Outbox(#[from] OutboxError),
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The engine or the device is not usable.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A link cannot be used as configured.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The certificates for fetches cannot be used.
    #[error("fetch.ca_file: {0}. Remedy: name a PEM file of certificates, or leave the key out")]
    FetchCaFile(#[from] CaFileError),
    /// A store in the data directory cannot be used.
    #[error("{}", .0.in_full())]
    Store(#[from] SyncError),
    /// The uplink cannot be started.
    #[error("the uplink can't be started: {0}")]
    Uplink(#[from] UplinkError),
    /// The directory of captured images cannot be used.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The spool directory cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A worker needs all three links.
    #[error(
        "weir worker needs Kafka, Redis and S3. Remedy: set kafka.bootstrap_servers, redis.host and s3.bucket"
    )]
    WorkerWithoutKafka,
    /// A worker has nothing else to do.
    #[error(
        "batch.enabled = false, and batches are all that weir worker works on. Remedy: set batch.enabled = true"
    )]
    WorkerWithoutBatches,
    /// The default model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The models' directory cannot be used.
    #[error(transparent)]
    Models(#[from] StoreError),
    /// The default model has no version.
    #[error(
        "the default model has no version. Remedy: name a bundle in `model.bundle` or WEIR__MODEL__BUNDLE"
    )]
    NoModel,
    /// The rollout journal cannot be read.
    #[error("the rollout journal can't be used: {0}. Remedy: remove the file to start anew")]
    Journal(#[from] JournalError),
}

/// Starts everything behind the HTTP server, in this order: clients, stores, models, services, tasks. Blocking, on a thread of
/// the runtime.
///
/// # Errors
/// [`StartError`]; what has been started by then is dropped.
fn start(state: &ServerState) -> Result<Services, StartError> {
    let config = state.config();
    let is_server = state.role() == Role::Serve;
    if !is_server && !config.batch.enabled {
        return Err(StartError::WorkerWithoutBatches);
    }

    // Clients. Nothing is connected yet.
    state.fetcher().check_ca_file()?;
    let admin_token = clients::admin_token(config)?;
    let links = Links::open(config, &Handle::current())?;

    // Stores and models, concurrently: both read much from the disk.
    stores::make_data_dir(config)?;
    let (outbox, prepared) = std::thread::scope(|scope| {
        let outbox = scope.spawn(|| is_server.then(|| stores::open_outbox(config)).transpose());
        let prepared = models::prepare(state, &links);
        (outbox.join(), prepared)
    });
    let outbox = outbox.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.map(Arc::new);
    let mut prepared = prepared?;
    prepared.context.outbox.clone_from(&outbox);
    let (models, loader) = (prepared.models, &prepared.context.loader);
    let device = loader.device.clone();
    let local = LocalBlobStore::new(config);
    let capture = stores::open_capture(config, &links, &local)?;

    // Services.
    let classifier = Arc::new(Classifier::new(loader.limits, Arc::clone(state.metrics())));
    let deps = ServiceDeps {
        state,
        links: &links,
        models: &models,
        classifier: &classifier,
        outbox: outbox.as_ref(),
        local: &local,
        capture,
    };
    let uplink = services::start_uplink(&deps)?;
    let mut quarantined =
        deps.capture.as_ref().map_or_else(Vec::new, |capture| capture.quarantined().to_vec());
    let batches =
        config.batch.enabled.then(|| services::start_batches(&deps, &mut quarantined)).transpose()?;
    let (batch_work, batches) = batches.map_or((None, None), |(work, service)| (Some(work), service));
    let predictions = outbox.clone().map(|outbox| services::prediction_service(&deps, outbox));
    let background = Background {
        links: links.health(),
        uplink,
        capture: deps.capture.clone(),
        batches: batch_work,
        blobs: local.opened(),
        quarantined,
    };

    // Tasks that bring new versions.
    let rollouts = Rollouts::start(prepared.context, prepared.followed);
    Ok(Services { models, rollouts, admin_token, predictions, batches, background, device })
}
