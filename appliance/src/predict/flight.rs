//! Single flight: of all who ask for the same picture at once, one computes and the others wait for it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Outcome, PredictError};

type Key = [u8; 32];
/// What came of it: an outcome, or a failure that anybody with this picture would meet.
pub(super) type Landing = Result<Arc<Outcome>, Arc<PredictError>>;
type Landed = Option<Landing>;
type Table = Mutex<HashMap<Key, watch::Receiver<Landed>>>;

/// Pictures being computed now.
#[derive(Default)]
pub struct SingleFlight {
    table: Arc<Table>,
}

pub(super) enum Role {
    /// Computes; if it is dropped without landing, those who wait are woken and one of them leads.
    Leader(Leader),
    /// Waits.
    Follower(Follower),
}

pub(super) struct Leader {
    table: Arc<Table>,
    key: Key,
    sender: watch::Sender<Landed>,
}

pub(super) struct Follower(watch::Receiver<Landed>);

impl SingleFlight {
    pub(super) fn join(&self, key: &Key) -> Role {
        let mut table = self.table.lock();
        if let Some(receiver) = table.get(key) {
            return Role::Follower(Follower(receiver.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        table.insert(*key, receiver);
        Role::Leader(Leader { table: Arc::clone(&self.table), key: *key, sender })
    }
}

impl Leader {
    pub(super) fn land(self, landing: Landing) {
        self.sender.send_replace(Some(landing));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Before the sender goes: whoever is woken by its end must not find this flight again.
        self.table.lock().remove(&self.key);
    }
}

impl Follower {
    /// What the leader landed, or None if the leader went away without one.
    pub(super) async fn landed(mut self) -> Landed {
        match self.0.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone(),
            Err(_) => None,
        }
    }
}
