//! A message of 16 MiB takes little more memory than its bytes. A separate process, since it measures the process.

#![allow(clippy::unwrap_used)]

use weir::batch::message::BatchMessage;

/// Peak resident memory, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn eight_million_values_are_not_built() {
    let many = |value: &str| {
        let mut list = format!("{value},").repeat((16 << 20) / (value.len() + 1));
        list.pop();
        list
    };
    let table = [
        (format!(r#"{{"image_url": "u", "x": [{}]}}"#, many("0")), "taken"),
        (format!(r#"{{"image_url": "u", "x": [{}]}}"#, many("{}")), "taken"),
        (format!(r#"{{"image_url": "u", {}}}"#, many("\"k\":1")), "taken"),
        (
            format!(r#"{{"image_url": "u", "camera": [{}]}}"#, many("0")),
            "camera: it is an array, not a string",
        ),
        (format!(r#"{{"image_urls": [{}]}}"#, many("0")), "image_urls: 8388608 images; at most 10000"),
        (format!(r#"{{"image_urls": [{}]}}"#, many("\"u\"")), "image_urls: 4194304 images; at most 10000"),
        (format!("[{}]", many("0")), "an array, not a JSON object"),
        (format!(r#"{{"x": {}"#, "[".repeat(16 << 20)), "not JSON"),
    ];
    for (json, wanted) in table {
        let before = peak();
        let said = match BatchMessage::parse(json.as_bytes(), "requests-0-1", 200_000) {
            Ok(_) => "taken".to_owned(),
            Err(error) => error.to_string(),
        };
        let grown = peak() - before;
        assert!(said.contains(wanted), "{said}");
        assert!(grown < 24 << 20, "{wanted}: it took {grown} bytes");
    }
}
