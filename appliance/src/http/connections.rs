//! Open connections by address: their limits, what each address uses, and which connection is closed for a new one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use inference::lanes::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;

const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// The reply is complete, but part of it may not have been written yet.
const FLUSHING: u8 = 2;

/// The connections of one listener.
pub(super) struct Connections {
    limit: usize,
    per_address: usize,
    started: Instant,
    table: Mutex<Table>,
    /// A connection ended or became idle.
    changed: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
    addresses: HashMap<Client, Arc<Address>>,
}

/// What one address uses. All addresses of an IPv6 /64 count as one: a single machine may have that many.
#[derive(Debug, Default)]
pub(super) struct Address {
    connections: AtomicUsize,
    held: [AtomicUsize; 3],
}

/// Resources with a limit per address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    /// Bytes of bodies in memory.
    BodyBytes,
    /// Batches that are being submitted.
    Submissions,
    /// Results that are being downloaded.
    Downloads,
}

/// An address's share of a resource, released on drop.
#[derive(Debug)]
pub(super) struct Share {
    address: Arc<Address>,
    of: Resource,
    amount: usize,
}

/// One connection.
pub(super) struct Connection {
    id: u64,
    pub(super) client: Client,
    pub(super) address: Arc<Address>,
    connections: Arc<Connections>,
    state: AtomicU8,
    /// Milliseconds since the listener's start.
    idle_since: AtomicU64,
    closing: std::sync::atomic::AtomicBool,
    close: Notify,
}

/// A connection's place, released on drop.
pub(super) struct Place(pub(super) Arc<Connection>);

/// The request is in flight until this is dropped.
pub(super) struct Busy(Arc<Connection>);

/// The decision on a new connection.
pub(super) enum Admission {
    Admitted(Place),
    /// The address is at its limit, and all of its connections are active.
    AddressFull,
    /// There is no place until a connection is closed or becomes idle.
    Wait,
}

impl Connections {
    pub(super) fn new(limit: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            per_address,
            started: Instant::now(),
            table: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// A place for a connection from this address. Where there is none, an idle connection is closed: one of the same address
    /// at that address's limit, otherwise one of the address that has most of them.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Admission {
        let client = Client::at(from);
        let mut table = self.table.lock();
        let of_address = table.addresses.get(&client).map_or(0, |a| a.connections.load(Ordering::Relaxed));
        // An address that may have all connections waits as all do.
        if self.per_address < self.limit && of_address >= self.per_address {
            return if table.close_idle(Some(client)) { Admission::Wait } else { Admission::AddressFull };
        }
        if table.open.len() >= self.limit {
            table.close_idle(None);
            return Admission::Wait;
        }
        let address = Arc::clone(table.addresses.entry(client).or_default());
        address.connections.fetch_add(1, Ordering::Relaxed);
        table.next += 1;
        let connection = Arc::new(Connection {
            id: table.next,
            client,
            address,
            connections: Arc::clone(self),
            state: AtomicU8::new(IDLE),
            idle_since: AtomicU64::new(self.now()),
            closing: false.into(),
            close: Notify::new(),
        });
        table.open.insert(connection.id, Arc::clone(&connection));
        Admission::Admitted(Place(connection))
    }

    /// Waits until a connection has ended or become idle. For one task only.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Open connections.
    pub(super) fn open(&self) -> usize {
        self.table.lock().open.len()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Table {
    /// Closes the connection that has been idle longest; false if none is idle.
    fn close_idle(&self, of: Option<Client>) -> bool {
        let candidates =
            self.open.values().filter(|c| of.is_none_or(|client| c.client == client) && c.is_idle());
        let longest = candidates.max_by_key(|c| {
            let count = c.address.connections.load(Ordering::Relaxed);
            (count, std::cmp::Reverse((c.idle_since.load(Ordering::Relaxed), c.id)))
        });
        let Some(connection) = longest else { return false };
        connection.closing.store(true, Ordering::Relaxed);
        connection.close.notify_one();
        true
    }
}

impl Connection {
    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.state.store(BUSY, Ordering::Release);
        Busy(Arc::clone(self))
    }

    /// Whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.state.load(Ordering::Acquire) == BUSY
    }

    /// Everything has been written.
    pub(super) fn flushed(&self) {
        let done = self.state.compare_exchange(FLUSHING, IDLE, Ordering::AcqRel, Ordering::Relaxed);
        if done.is_ok() {
            self.idle_since.store(self.connections.now(), Ordering::Relaxed);
            self.connections.changed.notify_one();
        }
    }

    /// Waits until the connection has to close for another one.
    pub(super) async fn closed_for_another(&self) {
        self.close.notified().await;
    }

    fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == IDLE && !self.closing.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.store(FLUSHING, Ordering::Release);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let connections = &self.0.connections;
        let mut table = connections.table.lock();
        table.open.remove(&self.0.id);
        if self.0.address.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            table.addresses.remove(&self.0.client);
        }
        drop(table);
        connections.changed.notify_one();
    }
}

impl Address {
    /// An empty share of a resource.
    pub(super) fn share(self: &Arc<Self>, of: Resource) -> Share {
        Share { address: Arc::clone(self), of, amount: 0 }
    }
}

impl Share {
    /// Grows the share to at least this much, if the address stays within `limit`.
    pub(super) fn grow_to(&mut self, amount: usize, limit: usize) -> bool {
        let more = amount.saturating_sub(self.amount);
        let held = &self.address.held[self.of as usize];
        let grown = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|all| *all <= limit)
        });
        if grown.is_ok() {
            self.amount += more;
        }
        grown.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.address.held[self.of as usize].fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn admitted(connections: &Arc<Connections>, last: u8) -> Place {
        match connections.admit(ip(last)) {
            Admission::Admitted(place) => place,
            Admission::AddressFull => panic!("the address is full"),
            Admission::Wait => panic!("there is no room"),
        }
    }

    fn is_closing(place: &Place) -> bool {
        place.0.closing.load(Ordering::Relaxed)
    }

    #[test]
    fn an_address_at_its_limit_loses_an_idle_connection_of_its_own_or_is_refused() {
        let connections = Connections::new(10, 2);
        let (first, second, other) =
            (admitted(&connections, 1), admitted(&connections, 1), admitted(&connections, 2));
        let busy = first.0.begin();
        assert!(matches!(connections.admit(ip(1)), Admission::Wait));
        assert!(is_closing(&second) && !is_closing(&first) && !is_closing(&other));
        drop(second);
        let second = admitted(&connections, 1);
        let _busy = second.0.begin();
        assert!(matches!(connections.admit(ip(1)), Admission::AddressFull));
        // A reply that is not written yet is not cut.
        drop(busy);
        assert!(matches!(connections.admit(ip(1)), Admission::AddressFull));
        first.0.flushed();
        assert!(matches!(connections.admit(ip(1)), Admission::Wait));
        assert!(is_closing(&first));
    }

    #[test]
    fn when_all_are_taken_the_address_that_has_most_loses_its_longest_idle_one() {
        let connections = Connections::new(4, 3);
        let alone = admitted(&connections, 9);
        let flood: Vec<_> = (0..3).map(|_| admitted(&connections, 1)).collect();
        flood[0].0.idle_since.store(7, Ordering::Relaxed);
        flood[1].0.idle_since.store(5, Ordering::Relaxed);
        flood[2].0.idle_since.store(6, Ordering::Relaxed);
        assert!(matches!(connections.admit(ip(2)), Admission::Wait));
        assert!(
            is_closing(&flood[1]) && !is_closing(&flood[0]) && !is_closing(&flood[2]) && !is_closing(&alone)
        );
        drop(flood);
        let _place = admitted(&connections, 2);
        assert_eq!(connections.open(), 2);
    }

    #[test]
    fn shares_are_bounded_and_given_back() {
        let address = Arc::new(Address::default());
        let (mut one, mut two) = (address.share(Resource::BodyBytes), address.share(Resource::BodyBytes));
        assert!(one.grow_to(6, 10) && one.grow_to(3, 10) && two.grow_to(4, 10));
        assert!(!two.grow_to(5, 10));
        assert!(address.share(Resource::Downloads).grow_to(1, 1), "another resource");
        drop(one);
        assert!(two.grow_to(10, 10));
    }
}
