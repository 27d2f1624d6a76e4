//! The order in which jobs go out.

use super::*;

async fn names(queue: &EmbeddedQueue) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(delivery) = queue.receive(Duration::ZERO).await.unwrap() {
        names.push(String::from_utf8(delivery.payload.to_vec()).unwrap());
    }
    names
}

async fn submit_batch(queue: &EmbeddedQueue, id: &str, jobs: usize) {
    let job = |n| format!("{id}/{n}");
    let mut jobs = (0..jobs).map(|n| Ok(NewJob { key: job(n), payload: job(n).into() }));
    queue.submit(&mut jobs).await.unwrap();
}

#[tokio::test]
async fn batches_take_turns_and_none_takes_all_places() {
    let place = Place::new();
    let queue =
        EmbeddedQueue::open(EmbeddedQueueConfig { inflight: 4, ..place.config() }, Arc::clone(&place.outbox))
            .unwrap();
    submit_batch(&queue, "large", 100).await;
    let large = receive(&queue).await;
    assert_eq!(large.payload, "large/0");
    assert_eq!(names(&queue).await, ["large/1", "large/2"], "one place stays free for others");
    submit_batch(&queue, "b", 2).await;
    submit_batch(&queue, "c", 1).await;
    assert_eq!(names(&queue).await, ["b/0"]);
    // A batch that has none out goes before one that has, and a job that was given back before the next of its batch.
    queue.release(large).await;
    submit_batch(&queue, "d", 1).await;
    for name in ["c/0", "d/0"] {
        let next = receive(&queue).await;
        assert_eq!(next.payload, name);
        assert_eq!(queue.settle(&next, Vec::new()).await.unwrap(), Settled::Done);
    }
    assert_eq!(names(&queue).await, Vec::<String>::new(), "large has two of four, b one");
    drop(queue);

    // After a restart too; and one after the other they alternate.
    let queue =
        EmbeddedQueue::open(EmbeddedQueueConfig { inflight: 1, ..place.config() }, Arc::clone(&place.outbox))
            .unwrap();
    let mut order = Vec::new();
    for n in 0..8 {
        if n == 4 {
            submit_batch(&queue, "e", 1).await;
        }
        let delivery = receive(&queue).await;
        order.push(String::from_utf8(delivery.payload.to_vec()).unwrap());
        assert_eq!(queue.settle(&delivery, Vec::new()).await.unwrap(), Settled::Done);
    }
    let expected = ["large/0", "large/1", "large/2", "large/3", "b/0", "large/4", "b/1", "e/0"];
    assert_eq!(order, expected);
}

#[tokio::test]
async fn jobs_of_a_file_without_turns_go_out_in_their_order() {
    let place = Place::new();
    let queue = place.open();
    submit_batch(&queue, "old", 3).await;
    queue.shared.file.forget_order();
    drop(queue);
    let queue = place.open();
    submit_batch(&queue, "new", 1).await;
    assert_eq!(names(&queue).await, ["old/0", "old/1", "old/2", "new/0"]);
}
