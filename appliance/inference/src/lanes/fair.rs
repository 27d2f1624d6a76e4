//! The real-time queue: bounded, and fair among clients.
//!
//! Invariants:
//! - Jobs of one client are taken in order of arrival; clients with waiting jobs are served round-robin, one job each.
//! - When the queue is full, a client with fewer waiting jobs displaces the last job of the client with the most, so no client
//!   shuts out the others by its number of requests.
//! - The channel holds one claim per job that no lane has taken. The channel wakes lanes and enforces the capacity; the jobs
//!   are in [`State`].

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;

use super::job::{Job, LaneError};

/// How long a queue counts as shared after jobs of two clients alternated: longer than cameras pause between frames.
const SHARED_FOR: Duration = Duration::from_secs(2);

/// The client of a job, by address; none for the appliance's own jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Client(Option<IpAddr>);

impl Client {
    /// The client at this address. All addresses of an IPv6 /64 count as one, since a single host has that many.
    pub fn at(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => {
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)))
            }
            ip => ip,
        }))
    }
}

#[derive(Default)]
struct State {
    /// Clients with waiting jobs, in the order in which they are served. At most as many as jobs, so a linear search is short.
    clients: VecDeque<(Client, VecDeque<Job>)>,
    /// The client of the last job, and when a job last came from another client than the one before.
    last: Option<Client>,
    alternated: Option<Instant>,
}

/// The sending end. When it is dropped the queue is closed; waiting jobs are still taken.
pub(super) struct FairSender {
    state: Arc<Mutex<State>>,
    claims: Sender<Claim>,
}

/// The right to take one job.
pub(super) struct Claim(Arc<Mutex<State>>);

/// What lanes know about the queue besides its jobs.
#[derive(Clone)]
pub(super) struct Contention(Arc<Mutex<State>>);

/// A queue of at most `capacity` jobs.
pub(super) fn fair(capacity: usize) -> (FairSender, Receiver<Claim>) {
    let (claims, taken) = bounded(capacity);
    (FairSender { state: Arc::default(), claims }, taken)
}

impl FairSender {
    /// Queues a job; when the queue is full, in place of another client's.
    pub(super) fn try_send(&self, client: Client, job: Job) -> Result<(), TrySendError<()>> {
        let mut state = self.state.lock();
        match self.claims.try_send(Claim(Arc::clone(&self.state))) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(_)) => return Err(TrySendError::Disconnected(())),
            Err(TrySendError::Full(_)) => {
                let displaced = state.displace(client).ok_or(TrySendError::Full(()))?;
                let _ = displaced.reply.send(Err(LaneError::Displaced));
            }
        }
        state.push(client, job);
        Ok(())
    }

    pub(super) fn contention(&self) -> Contention {
        Contention(Arc::clone(&self.state))
    }

    /// Whether a job of this client would be rejected now.
    pub(super) fn is_full_for(&self, client: Client) -> bool {
        self.claims.is_full() && self.state.lock().longest_beyond(client).is_none()
    }
}

impl Claim {
    /// The next job.
    pub(super) fn take(self) -> Option<Job> {
        self.0.lock().pop()
    }
}

impl Contention {
    /// Whether jobs of several clients arrived recently. Then jobs should not be computed together: their clients, and the
    /// next one, would wait for all of them.
    pub(super) fn is_shared(&self) -> bool {
        self.0.lock().alternated.is_some_and(|at| at.elapsed() < SHARED_FOR)
    }
}

/// Images that wait for memory before they enter the queue, by client.
#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<Client, usize>>);

/// A waiting image; counted until it is dropped.
pub(super) struct Waiter<'a> {
    of: &'a Waiters,
    client: Client,
}

impl Waiters {
    /// Counts a waiting image of a client. When the limit is reached (`is_full`), only a client with fewer than its share of
    /// `capacity`, or with none, is accepted, so that no client shuts out the others.
    pub(super) fn enter(&self, client: Client, is_full: bool, capacity: usize) -> Option<Waiter<'_>> {
        let mut waiting = self.0.lock();
        let own = waiting.get(&client).copied().unwrap_or_default();
        let clients = waiting.len() + usize::from(own == 0);
        if is_full && own > 0 && own >= capacity / clients.max(1) {
            return None;
        }
        waiting.insert(client, own + 1);
        Some(Waiter { of: self, client })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.of.0.lock();
        if let Some(own) = waiting.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}

impl State {
    fn push(&mut self, client: Client, job: Job) {
        // The appliance's own jobs are few, and no client waits for them.
        if client != Client::default() && self.last.replace(client).is_some_and(|last| last != client) {
            self.alternated = Some(Instant::now());
        }
        match self.clients.iter_mut().find(|(of, _)| *of == client) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.clients.push_back((client, VecDeque::from([job]))),
        }
    }

    fn pop(&mut self) -> Option<Job> {
        let (client, mut jobs) = self.clients.pop_front()?;
        let job = jobs.pop_front();
        if !jobs.is_empty() {
            self.clients.push_back((client, jobs));
        }
        job
    }

    /// The client with the most jobs, if it still has no fewer than `client` after giving up one to it.
    fn longest_beyond(&self, client: Client) -> Option<usize> {
        let own = self.clients.iter().find(|(of, _)| *of == client).map_or(0, |(_, jobs)| jobs.len());
        let lengths = self.clients.iter().map(|(_, jobs)| jobs.len()).enumerate();
        let (place, most) = lengths.max_by_key(|(_, length)| *length)?;
        (own + 1 < most).then_some(place)
    }

    /// Removes the last job of the client with the most jobs, to make room for one of `client`.
    fn displace(&mut self, client: Client) -> Option<Job> {
        let place = self.longest_beyond(client)?;
        self.clients[place].1.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use crate::lanes::LaneReply;

    fn client(last: u8) -> Client {
        Client::at(IpAddr::from([10, 0, 0, last]))
    }

    fn send(queue: &FairSender, from: u8, number: u8) -> Option<oneshot::Receiver<LaneReply>> {
        let (job, answer) = Job::new(Bytes::from(vec![from, number]), Some(Instant::now()), None);
        queue.try_send(client(from), job).is_ok().then_some(answer)
    }

    fn taken(claims: &Receiver<Claim>) -> Vec<Vec<u8>> {
        claims.try_iter().map(|claim| claim.take().unwrap().image.to_vec()).collect()
    }

    #[test]
    fn clients_are_taken_in_turn_and_each_in_its_order() {
        let (queue, claims) = fair(10);
        let sent = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (2, 2)];
        let _answers: Vec<_> =
            sent.iter().map(|(from, number)| send(&queue, *from, *number).unwrap()).collect();
        assert_eq!(taken(&claims), [[1, 1], [2, 1], [3, 1], [1, 2], [2, 2], [1, 3], [1, 4]]);
    }

    #[test]
    fn a_queue_is_shared_while_jobs_of_several_clients_come() {
        let (queue, claims) = fair(10);
        let contention = queue.contention();
        let mut answers = Vec::new();
        let mut after = |from: Client| {
            let (job, answer) = Job::new(Bytes::new(), Some(Instant::now()), None);
            answers.push(answer);
            queue.try_send(from, job).unwrap();
            contention.is_shared()
        };
        assert_eq!([client(1), client(1), Client::default(), client(1)].map(&mut after), [false; 4]);
        assert_eq!([client(2), client(2), client(1)].map(&mut after), [true; 3]);
        claims.try_iter().for_each(|claim| drop(claim.take()));
        assert!(contention.is_shared(), "the clients may send again");
        queue.state.lock().alternated = Instant::now().checked_sub(SHARED_FOR);
        assert!(!contention.is_shared());
    }

    #[test]
    fn at_the_bound_the_client_with_most_jobs_gives_way_until_all_have_as_many() {
        let (queue, claims) = fair(4);
        let mut flood: Vec<_> = (1..=4).map(|number| send(&queue, 1, number).unwrap()).collect();
        assert!(queue.is_full_for(client(1)) && send(&queue, 1, 5).is_none());
        assert!(!queue.is_full_for(client(2)));
        let _other: Vec<_> = (1..=2).map(|number| send(&queue, 2, number).unwrap()).collect();
        assert!(queue.is_full_for(client(2)) && send(&queue, 2, 3).is_none(), "both have two");
        // The last two of the first client were displaced and answered.
        for displaced in [3, 2] {
            let reply = flood.remove(displaced).try_recv().unwrap();
            assert!(matches!(reply, Err(LaneError::Displaced)));
        }
        assert!(flood.iter_mut().all(|answer| answer.try_recv().is_err()), "the others wait");
        assert_eq!(taken(&claims), [[1, 1], [2, 1], [1, 2], [2, 2]]);
    }

    #[test]
    fn images_of_one_client_that_wait_for_memory_keep_no_other_out() {
        let waiters = Waiters::default();
        let enter = |from, is_full| waiters.enter(client(from), is_full, 4);
        let mut flood: Vec<_> = (0..4).map(|_| enter(1, false).unwrap()).collect();
        assert!(enter(1, true).is_none());
        let second = enter(2, true).unwrap();
        // Each may have two of four.
        let third = enter(2, true).unwrap();
        assert!(enter(2, true).is_none() && enter(1, true).is_none());
        flood.truncate(1);
        assert!(enter(1, true).is_some(), "it has fewer than its share");
        drop((second, third, flood));
        assert!(waiters.0.lock().is_empty());
    }

    #[test]
    fn a_closed_queue_gives_what_waits() {
        let (queue, claims) = fair(2);
        let _answer = send(&queue, 1, 1).unwrap();
        drop(queue);
        assert_eq!(taken(&claims), [[1, 1]]);
        assert!(claims.recv().is_err());
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let at = |text: &str| Client::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), client(1));
        assert_ne!(at("::1"), at("::2"));
    }
}
