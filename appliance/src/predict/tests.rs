//! Single flight: one computes, the others wait, and nobody waits for one who has gone.

use std::sync::Arc;
use std::time::Duration;

use super::flight::Role;
use super::{Outcome, SingleFlight};

fn outcome(score: f32) -> Arc<Outcome> {
    Arc::new(Outcome { format: "jpeg".into(), width: 1, height: 1, scores: vec![score] })
}

#[tokio::test]
async fn followers_get_what_the_leader_lands() {
    let flights = SingleFlight::default();
    let Role::Leader(leader) = flights.join(&[1; 32]) else { panic!("the first must lead") };
    let Role::Follower(first) = flights.join(&[1; 32]) else { panic!("the second must follow") };
    let Role::Follower(second) = flights.join(&[1; 32]) else { panic!("the third must follow") };
    assert!(matches!(flights.join(&[2; 32]), Role::Leader(_)), "another picture is another flight");
    let waiting = tokio::spawn(first.landed());
    leader.land(Ok(outcome(0.5)));
    assert_eq!(waiting.await.unwrap().unwrap().unwrap().scores, [0.5]);
    assert_eq!(second.landed().await.unwrap().unwrap().scores, [0.5], "also one who looks late");
    assert!(matches!(flights.join(&[1; 32]), Role::Leader(_)), "a flight that has landed is over");
}

#[tokio::test]
async fn a_leader_that_goes_away_wakes_the_others() {
    let flights = SingleFlight::default();
    let Role::Leader(leader) = flights.join(&[1; 32]) else { panic!("the first must lead") };
    let Role::Follower(follower) = flights.join(&[1; 32]) else { panic!("the second must follow") };
    drop(leader);
    let landed = tokio::time::timeout(Duration::from_secs(5), follower.landed()).await;
    assert!(landed.expect("it waits for one who has gone").is_none());
    assert!(matches!(flights.join(&[1; 32]), Role::Leader(_)));
}
