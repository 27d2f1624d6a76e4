//! Reads the outbox for the uplink: in groups, only durable events, after the last one sent; and the key and id of each
//! event in the topic.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::outbox::{Outbox, OutboxError, Reader, StoredEvent};

/// Events to be sent together.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) events: Vec<StoredEvent>,
    /// When these are sent, everything up to this sequence is.
    pub(super) upto: u64,
}

#[derive(Debug)]
pub(super) struct Source {
    outbox: Arc<Outbox>,
    reader: Reader,
    /// Everything up to this sequence was returned.
    at: u64,
    /// An event already read, for the next group.
    held: Option<StoredEvent>,
}

impl Source {
    pub(super) fn open(dir: &Path, outbox: Arc<Outbox>) -> Result<Self, OutboxError> {
        Ok(Self { reader: Reader::open(dir)?, outbox, at: 0, held: None })
    }

    /// Continues after `at`.
    pub(super) fn seek(&mut self, at: u64) {
        self.at = at;
        self.held = None;
        self.reader.seek(at + 1);
    }

    /// When the next event was appended, if there is one. Does not advance.
    pub(super) fn oldest(&mut self) -> Option<SystemTime> {
        // From disk each time: what was read earlier may have been deleted meanwhile.
        self.seek(self.at);
        let event = self.reader.try_next().ok().flatten();
        let appended =
            event.filter(|event| event.sequence <= self.outbox.last_sequence()).map(|e| e.appended);
        self.seek(self.at);
        appended
    }

    /// The next events up to the sequence `bound`, at most `max_events` and `max_bytes`, at least one if there is
    /// any.
    pub(super) fn gather(
        &mut self,
        bound: u64,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Group, OutboxError> {
        // A reader sees events before they are durable: those must not be sent.
        let limit = self.outbox.last_sequence().min(bound);
        let mut group = Group { upto: self.at, ..Group::default() };
        let mut bytes = 0;
        while self.at < limit && group.events.len() < max_events {
            let event = match self.read() {
                Ok(event) => event,
                // Events read before the error are sent first.
                Err(_) if !group.events.is_empty() => {
                    self.seek(self.at);
                    break;
                }
                Err(error) => return Err(error),
            };
            let Some(event) = event.filter(|event| self.hold_if_beyond(limit, event)) else {
                // Up to the limit there is nothing more: deleted by retention, or damaged.
                self.at = limit;
                break;
            };
            if !group.events.is_empty() && bytes + event.payload.len() > max_bytes {
                self.held = Some(event);
                break;
            }
            bytes += event.payload.len();
            self.at = event.sequence;
            group.events.push(event);
        }
        group.upto = self.at;
        Ok(group)
    }

    /// Whether `event` may be sent; otherwise it is held for later.
    fn hold_if_beyond(&mut self, limit: u64, event: &StoredEvent) -> bool {
        let may_go = event.sequence <= limit;
        if !may_go {
            self.held = Some(event.clone());
        }
        may_go
    }

    fn read(&mut self) -> Result<Option<StoredEvent>, OutboxError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let next = self.reader.try_next().and_then(|event| match event {
            Some(event) => Ok(Some(event)),
            // There should be one. The reader may have been at a segment that was just deleted: seek again.
            None => {
                self.reader.seek(self.at + 1);
                self.reader.try_next()
            }
        });
        // What cannot be read now is not lost: it is never skipped, however long the disk takes.
        next.inspect_err(|_| self.seek(self.at))
    }
}

/// Key and id of an event in the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Its camera, else its request, else the node: a camera's events stay in order on one partition.
    pub(super) key: String,
    /// Its id, for the header; made from node and sequence when it has none.
    pub(super) id: String,
}

/// The relevant fields. The others are skipped without being parsed into values.
#[derive(Debug, Default, Deserialize)]
struct Fields {
    id: Option<String>,
    camera: Option<String>,
    request_id: Option<String>,
}

/// Reads the route of an event; the error says why it is not an event.
pub(super) fn route(payload: &[u8], node: &str, sequence: u64) -> Result<Route, String> {
    let fields = match serde_json::from_slice::<Fields>(payload) {
        Ok(fields) if payload.trim_ascii_start().starts_with(b"{") => fields,
        // A newer appliance may use these names for other types: then they are ignored.
        _ => of_any_object(payload)?,
    };
    let named = |field: Option<String>| field.filter(|text| !text.is_empty());
    Ok(Route {
        key: named(fields.camera).or_else(|| named(fields.request_id)).unwrap_or_else(|| node.to_owned()),
        id: named(fields.id).unwrap_or_else(|| format!("{node}-{sequence}")),
    })
}

fn of_any_object(payload: &[u8]) -> Result<Fields, String> {
    let object: Map<String, Value> =
        serde_json::from_slice(payload).map_err(|e| format!("not a JSON object: {e}"))?;
    let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Fields { id: text("id"), camera: text("camera"), request_id: text("request_id") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<(String, String), String> {
        route(json.as_bytes(), "box", 7).map(|route| (route.key, route.id))
    }

    #[test]
    fn the_camera_decides_then_the_request_then_the_node() {
        let pair = |key: &str, id: &str| Ok((key.to_owned(), id.to_owned()));
        assert_eq!(of(r#"{"id":"a","camera":"dock","request_id":"r"}"#), pair("dock", "a"));
        assert_eq!(of(r#" {"id":"a","camera":null,"request_id":"r","x":{"camera":"y"}}"#), pair("r", "a"));
        assert_eq!(of(r#"{"camera":"","kind":"new"}"#), pair("box", "box-7"));
        assert_eq!(of(r#"{"id":5,"camera":{"name":"x"},"request_id":"r"}"#), pair("r", "box-7"));
        assert_eq!(of("{}"), pair("box", "box-7"));
    }

    #[test]
    fn what_is_no_json_object_is_refused_with_the_reason() {
        for bad in
            ["", "not json", "5", "null", "[\"a\",\"b\",\"c\"]", "{\"id\":\"a\"", "{\"id\":\"a\"} x", "\u{0}"]
        {
            assert!(of(bad).unwrap_err().starts_with("not a JSON object: "), "{bad}");
        }
        assert!(route(b"{\"id\":\"\xff\"}", "box", 7).is_err());
    }
}
