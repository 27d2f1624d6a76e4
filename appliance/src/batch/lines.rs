//! Lines of results, each within a bound: what lies in a store may be damaged.

use std::io::{self, BufRead, Read};

use serde::Deserialize;

/// Longest line of results that is read; a line has at most a URL and the model's labels.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// What is needed of a result to count it and to place it.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    /// Place of the image in the batch.
    #[serde(default)]
    pub(super) index: u64,
    status: String,
}

impl Line {
    /// None when the line is no result.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(super) fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

/// Reads the next line, without its end, in place of what `line` held; false when there are no more. A line over the
/// bound is read over and comes as an empty one, which is no result.
pub(super) fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = from.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 == MAX_LINE_BYTES {
        line.clear();
        from.skip_until(b'\n')?;
    }
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_need_not_be_text() {
        let mut bytes = b"{\"index\":3,\"status\":\"ok\"}\n\xff\xfe\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', (2 << 20) + 7));
        bytes.extend(b"\n{\"status\":\"failed\"}");
        let (mut from, mut line) = (bytes.as_slice(), Vec::new());
        let mut seen = Vec::new();
        while next_line(&mut from, &mut line).unwrap() {
            assert!(line.capacity() <= 2 << 20, "{}", line.capacity());
            seen.push(Line::parse(&line).map(|line| (line.index, line.is_ok())));
        }
        assert_eq!(seen, [Some((3, true)), None, None, Some((0, false))]);
    }
}
