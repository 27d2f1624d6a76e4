//! The wire format of events: exact, and tolerant of later versions.

use std::time::UNIX_EPOCH;

use serde_json::json;

use super::*;

fn prediction() -> Event {
    Event::new(
        "box-7",
        EventBody::Prediction(Prediction {
            request_id: "01JD0000000000000000000000".into(),
            camera: Some("dock-3".into()),
            model: ModelRef { name: "fish".into(), version: "1".into(), digest: "ab12".into() },
            image: ImageRef {
                digest: "00ff".into(),
                format: "jpeg".into(),
                bytes: 48_213,
                width: 640,
                height: 480,
            },
            species: "anemone_fish".into(),
            confidence: 0.93,
            predictions: vec![Score { label: "anemone_fish".into(), score: 0.93 }],
            cached: false,
        }),
    )
}

#[test]
fn the_wire_form_is_flat_and_exact() {
    let mut event = prediction();
    event.time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_042);
    event.id = Ulid::from_parts(1_700_000_000_042, 1);
    let value: Value = serde_json::from_slice(&event.to_json().unwrap()).unwrap();
    assert_eq!(
        value,
        json!({
            "v": 1, "id": event.id.to_string(), "time": "2023-11-14T22:13:20.042Z", "node": "box-7",
            "kind": "prediction", "request_id": "01JD0000000000000000000000", "camera": "dock-3",
            "model": {"name": "fish", "version": "1", "digest": "ab12"},
            "image": {"digest": "00ff", "format": "jpeg", "bytes": 48213, "width": 640, "height": 480},
            "species": "anemone_fish", "confidence": 0.93,
            "predictions": [{"label": "anemone_fish", "score": 0.93}], "cached": false
        })
    );
    assert_eq!(value["id"].as_str().unwrap().len(), 26);
}

#[test]
fn what_is_written_is_what_is_read() {
    let event = prediction();
    assert_eq!(Event::from_json(&event.to_json().unwrap()).unwrap(), event);
    let EventBody::Prediction(mut body) = event.body.clone() else { panic!("a prediction") };
    body.camera = None;
    let event = Event { body: EventBody::Prediction(body), ..event };
    assert_eq!(Event::from_json(&event.to_json().unwrap()).unwrap(), event);
}

#[test]
fn ids_differ_and_carry_the_time() {
    let (a, b) = (prediction(), prediction());
    assert_ne!(a.id, b.id);
    assert_eq!(a.id.datetime(), a.time);
}

#[test]
fn fields_of_a_newer_version_are_passed_over() {
    let event = prediction();
    let mut value: Value = serde_json::from_slice(&event.to_json().unwrap()).unwrap();
    value["v"] = json!(2);
    value["tide"] = json!("ebb");
    value["image"]["depth"] = json!(16);
    let read = Event::from_json(value.to_string().as_bytes()).unwrap();
    assert_eq!(read, Event { v: 2, ..event });
}

#[test]
fn an_unknown_kind_is_kept_whole() {
    let line = json!({"v": 3, "id": Ulid::from_parts(5, 6), "time": "2031-01-02T03:04:05.006Z",
                      "node": "n", "kind": "tide_turned", "height_m": 2.5, "nested": {"a": [1, 2]}});
    let read = Event::from_json(line.to_string().as_bytes()).unwrap();
    assert_eq!(read.body.kind(), "tide_turned");
    let again: Value = serde_json::from_slice(&read.to_json().unwrap()).unwrap();
    assert_eq!(again, line);
}

#[test]
fn a_known_kind_with_a_broken_field_is_an_error_that_names_it() {
    let mut value: Value = serde_json::from_slice(&prediction().to_json().unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("species");
    let error = Event::from_json(value.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("species"), "{error}");
    value["time"] = json!("yesterday");
    let error = Event::from_json(value.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("yesterday"), "{error}");
}
