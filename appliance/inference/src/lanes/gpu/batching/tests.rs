//! The policy on a simulated device: a pipeline that prepares one batch while it computes another.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Batching, BatchingError, Decision, View};

const MAX_DELAY: Duration = Duration::from_millis(2);

/// A device's times. Preparing is decode and upload, computing is the engine.
#[derive(Clone, Copy)]
struct Times {
    prepare_each: Duration,
    run: Duration,
    run_each: Duration,
}

/// Similar to a large GPU: a run costs more than its images.
const GPU: Times = Times {
    prepare_each: Duration::from_micros(20),
    run: Duration::from_micros(900),
    run_each: Duration::from_micros(30),
};

impl Times {
    fn compute(&self, size: usize) -> Duration {
        self.run + self.run_each * size as u32
    }
}

/// The result of a simulation.
#[derive(Default)]
struct Outcome {
    /// Per image: time from arrival to answer.
    latencies: Vec<Duration>,
    /// Per batch: its images, and how long its oldest waited until it was closed.
    batches: Vec<(usize, Duration)>,
    /// Time in which the device was idle although an image waited.
    wasted: Duration,
    end: Duration,
}

struct Batch {
    arrivals: Vec<Instant>,
    done: Instant,
}

/// Applies the policy to sorted arrivals, from event to event.
fn simulate(policy: &Batching, times: Times, arrivals: &[Duration]) -> Outcome {
    let start = Instant::now();
    let mut coming: VecDeque<Instant> = arrivals.iter().map(|&at| start + at).collect();
    let (mut waiting, mut way) = (VecDeque::new(), VecDeque::<Batch>::new());
    let (mut now, mut prepared, mut computed) = (start, start, start);
    let mut outcome = Outcome::default();
    loop {
        while coming.front().is_some_and(|&at| at <= now) {
            waiting.extend(coming.pop_front());
        }
        while way.front().is_some_and(|batch| batch.done <= now) {
            let batch = way.pop_front().unwrap();
            outcome.latencies.extend(batch.arrivals.iter().map(|&at| batch.done - at));
        }
        let oldest = waiting.front().copied().unwrap_or(now);
        let view = View { now, waiting: waiting.len(), oldest, in_flight: way.len() };
        let until = match policy.decide(&view) {
            Decision::Close(images) => {
                assert!(images > 0 && images <= waiting.len() && images <= policy.max_batch());
                outcome.batches.push((images, now - oldest));
                prepared = now.max(prepared) + times.prepare_each * images as u32;
                computed = computed.max(prepared) + times.compute(policy.engine_size(images));
                way.push_back(Batch { arrivals: waiting.drain(..images).collect(), done: computed });
                continue;
            }
            Decision::Wait(until) => until,
        };
        let next = [coming.front().copied(), way.front().map(|batch| batch.done), until];
        let Some(next) = next.into_iter().flatten().min() else {
            outcome.end = now - start;
            assert!(waiting.is_empty(), "images wait for ever");
            return outcome;
        };
        assert!(next > now, "the policy turns on the spot");
        if way.is_empty() && !waiting.is_empty() {
            outcome.wasted += next - now;
        }
        now = next;
    }
}

/// Random arrivals with this average rate per second.
fn poisson(rate: f64, images: usize, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let next = || {
        at -= (1.0 - random.f64()).ln() / rate;
        Duration::from_secs_f64(at)
    };
    std::iter::repeat_with(next).take(images).collect()
}

fn policy(max_batch: usize) -> Batching {
    Batching::up_to(max_batch, MAX_DELAY).unwrap()
}

fn mean(latencies: &[Duration]) -> f64 {
    latencies.iter().map(Duration::as_secs_f64).sum::<f64>() / latencies.len() as f64
}

#[test]
fn each_image_is_answered_once_at_every_load() {
    for (seed, rate) in [50.0, 500.0, 2_000.0, 10_000.0, 100_000.0].into_iter().enumerate() {
        for max_batch in [1, 3, 8, 64] {
            let outcome = simulate(&policy(max_batch), GPU, &poisson(rate, 5_000, seed as u64));
            assert_eq!(outcome.latencies.len(), 5_000);
            assert_eq!(outcome.batches.iter().map(|(images, _)| images).sum::<usize>(), 5_000);
        }
    }
}

#[test]
fn an_idle_device_is_never_made_to_wait() {
    for (seed, rate) in [50.0, 900.0, 5_000.0, 30_000.0].into_iter().enumerate() {
        let outcome = simulate(&policy(32), GPU, &poisson(rate, 5_000, seed as u64));
        assert_eq!(outcome.wasted, Duration::ZERO, "{rate} images a second");
    }
}

#[test]
fn at_a_low_load_an_image_waits_for_nothing() {
    let every: Vec<Duration> = (0..500).map(|n| Duration::from_millis(10) * n).collect();
    let outcome = simulate(&policy(64), GPU, &every);
    let alone = GPU.prepare_each + GPU.compute(1);
    assert!(outcome.latencies.iter().all(|&latency| latency == alone));
    assert!(outcome.batches.iter().all(|&(images, waited)| images == 1 && waited == Duration::ZERO));
}

#[test]
fn at_saturation_the_rate_is_that_of_full_batches() {
    let outcome = simulate(&policy(64), GPU, &vec![Duration::ZERO; 64_000]);
    let rate = 64_000.0 / outcome.end.as_secs_f64();
    let most = 64.0 / GPU.compute(64).as_secs_f64();
    assert!(rate > 0.99 * most, "{rate} of {most} images a second");
    assert!(outcome.batches.iter().all(|&(images, _)| images == 64));
}

#[test]
fn no_batch_is_kept_open_longer_than_the_delay_while_there_is_room() {
    let slow = Times { run: Duration::from_millis(50), ..GPU };
    let outcome = simulate(&policy(64), slow, &poisson(100.0, 2_000, 9));
    // While two batches are in flight the third waits for one of them, at most for two runs.
    let longest = outcome.batches.iter().map(|&(_, waited)| waited).max().unwrap();
    assert!(longest <= slow.compute(64) * 2 + MAX_DELAY, "{longest:?}");
    let (free, now) = (policy(64), Instant::now());
    let view = |waited: Duration, in_flight| View { now: now + waited, waiting: 3, oldest: now, in_flight };
    assert_eq!(free.decide(&view(Duration::ZERO, 1)), Decision::Wait(Some(now + MAX_DELAY)));
    assert_eq!(free.decide(&view(MAX_DELAY, 1)), Decision::Close(3));
    assert_eq!(free.decide(&view(MAX_DELAY, 2)), Decision::Wait(None));
    assert_eq!(free.decide(&view(Duration::ZERO, 0)), Decision::Close(3));
}

#[test]
fn batching_beats_one_by_one_where_a_run_costs_more_than_an_image() {
    let arrivals = poisson(3_000.0, 20_000, 4);
    let together = simulate(&policy(64), GPU, &arrivals);
    let alone = simulate(&policy(1), GPU, &arrivals);
    assert!(alone.end > together.end * 2, "{:?} and {:?}", alone.end, together.end);
    assert!(mean(&together.latencies) < 0.01, "{} s", mean(&together.latencies));
}

#[test]
fn a_batch_runs_at_the_smallest_size_that_holds_it() {
    let sizes = Batching::up_to(48, MAX_DELAY).unwrap();
    for (images, size) in [(1, 1), (2, 2), (3, 4), (17, 32), (33, 48), (48, 48), (50, 48)] {
        assert_eq!(sizes.engine_size(images), size, "{images}");
    }
    assert_eq!(sizes.max_batch(), 48);
    assert_eq!(Batching::up_to(1, MAX_DELAY).unwrap().max_batch(), 1);
    let given = Batching::new(&[8, 1, 8, 3], MAX_DELAY).unwrap();
    assert_eq!([1, 2, 3, 4, 9].map(|images| given.engine_size(images)), [1, 3, 3, 8, 8]);
    assert_eq!(Batching::new(&[], MAX_DELAY).unwrap_err(), BatchingError::NoSize);
    assert_eq!(Batching::up_to(0, MAX_DELAY).unwrap_err(), BatchingError::NoSize);
}
