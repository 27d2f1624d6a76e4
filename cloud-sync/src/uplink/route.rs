//! Under which key and id an event goes to the topic.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Where an event goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Its camera, else its request, else the node: a camera's events stay in order on one partition.
    pub(super) key: String,
    /// Its id, for the header; from node and sequence when it has none.
    pub(super) id: String,
}

/// The fields that decide. The rest is passed over without being built.
#[derive(Debug, Default, Deserialize)]
struct Fields {
    id: Option<String>,
    camera: Option<String>,
    request_id: Option<String>,
}

/// Reads the route of an event; the error says why it is no event at all.
pub(super) fn route(payload: &[u8], node: &str, sequence: u64) -> Result<Route, String> {
    let fields = match serde_json::from_slice::<Fields>(payload) {
        Ok(fields) if payload.trim_ascii_start().starts_with(b"{") => fields,
        // A newer appliance may write other things under these names: then they decide nothing.
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
