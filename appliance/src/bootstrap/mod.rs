//! Wiring: the parts of the daemon, the order in which they start, and the order in which they end. Nothing else.

mod background;
mod clients;
mod files;
mod models;
mod run;
mod start;

pub use clients::{LinkError, Links, admin_token};
pub use files::{Files, raise_limit};
pub use models::{default_name, pull_limits};
pub use run::{RunError, run};
pub use start::{
    DeviceSetup, StartError, create_private, is_open_to_others, load_library, models_dir, outbox_dir,
    prepare_device,
};
