//! Single flight: of concurrent requests with the same image, one computes it and the others wait for its result.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::serving::{ClassificationError, Outcome};

type Key = [u8; 32];
/// The shared result: an outcome, or an error that every request with the same image would run into.
pub(super) type SharedResult = Result<Arc<Outcome>, Arc<ClassificationError>>;
type Table = Mutex<HashMap<Key, watch::Receiver<Option<SharedResult>>>>;

/// Images that are being computed.
#[derive(Default)]
pub struct SingleFlight {
    table: Arc<Table>,
}

pub(super) enum Role {
    /// Computes. If the leader is dropped without a result, the followers wake up and one of them leads.
    Leader(Leader),
    /// Waits for the leader.
    Follower(Follower),
}

pub(super) struct Leader {
    table: Arc<Table>,
    key: Key,
    sender: watch::Sender<Option<SharedResult>>,
}

pub(super) struct Follower(watch::Receiver<Option<SharedResult>>);

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
    pub(super) fn complete(self, result: SharedResult) {
        self.sender.send_replace(Some(result));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Before the sender is dropped: a follower that its end wakes up must not find this entry again.
        self.table.lock().remove(&self.key);
    }
}

impl Follower {
    /// The leader's result, or `None` if the leader was dropped without one.
    pub(super) async fn result(mut self) -> Option<SharedResult> {
        match self.0.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(score: f32) -> Arc<Outcome> {
        Arc::new(Outcome { format: "jpeg".into(), width: 1, height: 1, scores: vec![score] })
    }

    #[tokio::test]
    async fn followers_get_the_leaders_result() {
        let flights = SingleFlight::default();
        let Role::Leader(leader) = flights.join(&[1; 32]) else { panic!("the first must lead") };
        let Role::Follower(first) = flights.join(&[1; 32]) else { panic!("the second must follow") };
        let Role::Follower(second) = flights.join(&[1; 32]) else { panic!("the third must follow") };
        assert!(matches!(flights.join(&[2; 32]), Role::Leader(_)), "another image has another leader");
        let waiting = tokio::spawn(first.result());
        leader.complete(Ok(outcome(0.5)));
        assert_eq!(waiting.await.unwrap().unwrap().unwrap().scores, [0.5]);
        assert_eq!(second.result().await.unwrap().unwrap().scores, [0.5], "also for a late follower");
        assert!(matches!(flights.join(&[1; 32]), Role::Leader(_)), "a completed flight has ended");
    }

    #[tokio::test]
    async fn a_leader_that_is_dropped_wakes_its_followers() {
        let flights = SingleFlight::default();
        let Role::Leader(leader) = flights.join(&[1; 32]) else { panic!("the first must lead") };
        let Role::Follower(follower) = flights.join(&[1; 32]) else { panic!("the second must follow") };
        drop(leader);
        let result = tokio::time::timeout(Duration::from_secs(5), follower.result()).await;
        assert!(result.expect("the follower waits for a leader that is gone").is_none());
        assert!(matches!(flights.join(&[1; 32]), Role::Leader(_)));
    }
}
