//! Result lines: one JSON object per image, in the order of the images. What lies in a store may be damaged, so lines
//! are bounded and need not be results, or even text.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use cloud_sync::batch_status::BatchSpec;
use cloud_sync::event::{BatchItem, ItemOutcome};
use serde::Deserialize;

use crate::batch::chunker;

/// Longest line that is read; a line has at most a URL and the model's labels.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Bytes read at once.
const BLOCK_BYTES: usize = 64 << 10;

/// What is needed of a result to count it and to place it.
#[derive(Debug, Deserialize)]
struct Line {
    /// Place of the image in the batch.
    #[serde(default)]
    index: u64,
    status: String,
}

impl Line {
    /// None when the line is no result.
    fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

/// Reads lines, each within [`MAX_LINE_BYTES`].
struct Lines<R> {
    from: R,
    line: Vec<u8>,
}

impl Lines<BufReader<File>> {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { from: BufReader::with_capacity(BLOCK_BYTES, File::open(path)?), line: Vec::new() })
    }
}

impl<R: BufRead> Lines<R> {
    /// The next line, without its end. A line over the bound is skipped and comes as an empty one, which is no result.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let line = &mut self.line;
        line.clear();
        let read = self.from.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', line)?;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read as u64 == MAX_LINE_BYTES {
            line.clear();
            self.from.skip_until(b'\n')?;
        }
        Ok((read > 0).then_some(line))
    }
}

/// Results counted by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::batch) struct Tally {
    /// Images classified.
    pub(in crate::batch) completed: u64,
    /// Images that failed.
    pub(in crate::batch) failed: u64,
    /// The results as one JSON array, where they are few.
    pub(in crate::batch) inline: Option<String>,
}

impl Tally {
    /// Counts results, and keeps them too if there are at most `inline` of them.
    pub(in crate::batch) fn of(items: &[BatchItem], inline: u64) -> Result<Self, serde_json::Error> {
        let failed =
            items.iter().filter(|item| matches!(item.outcome, ItemOutcome::Failed { .. })).count() as u64;
        let few = items.len() as u64 <= inline;
        let inline = few.then(|| serde_json::to_string(items)).transpose()?;
        Ok(Self { completed: items.len() as u64 - failed, failed, inline })
    }

    /// Counts the lines of a file, and keeps them too if there are at most `inline` of them. A damaged line stands for
    /// an image that has no result; blocking.
    pub(super) fn of_file(file: &Path, inline: u64) -> io::Result<Self> {
        let mut tally = Self::default();
        let (mut kept, mut damaged): (Vec<String>, bool) = (Vec::new(), false);
        let mut lines = Lines::open(file)?;
        while let Some(line) = lines.next()? {
            let result = Line::parse(line);
            damaged |= result.is_none();
            match result {
                Some(result) if result.is_ok() => tally.completed += 1,
                _ => tally.failed += 1,
            }
            if tally.images() <= inline {
                kept.push(String::from_utf8_lossy(line).into_owned());
            }
        }
        let few = tally.images() <= inline && !damaged;
        tally.inline = few.then(|| format!("[{}]", kept.join(",")));
        Ok(tally)
    }

    /// Images counted.
    pub(in crate::batch) fn images(&self) -> u64 {
        self.completed + self.failed
    }
}

/// One line per image, in their order.
pub(in crate::batch) fn to_lines(items: &[BatchItem]) -> Result<Bytes, serde_json::Error> {
    let mut lines = Vec::with_capacity(items.len() * 512);
    for item in items {
        serde_json::to_writer(&mut lines, item)?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

/// The outcome of an image that has failed.
pub(in crate::batch) fn failed(code: &str, error: impl Into<String>) -> ItemOutcome {
    ItemOutcome::Failed { code: code.to_owned(), error: error.into() }
}

/// The results of `take` lines after the first `skip`, fewer where the file ends; None when one of them is no result;
/// blocking.
pub(super) fn read_range(file: &Path, skip: usize, take: usize) -> io::Result<Option<Vec<BatchItem>>> {
    let mut lines = Lines::open(file)?;
    let (mut items, mut at) = (Vec::new(), 0);
    while items.len() < take
        && let Some(line) = lines.next()?
    {
        at += 1;
        if at <= skip {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(item) => items.push(item),
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(items))
}

/// The results of `images` that are there; a damaged one counts as missing; blocking.
pub(super) fn read_some(file: &Path, images: Range<u64>) -> io::Result<Vec<BatchItem>> {
    let mut lines = Lines::open(file)?;
    let mut items = Vec::new();
    while let Some(line) = lines.next()? {
        let is_wanted = Line::parse(line).is_some_and(|line| images.contains(&line.index));
        if is_wanted && let Ok(item) = serde_json::from_slice(line) {
            items.push(item);
        }
    }
    Ok(items)
}

/// Appends a part to `to`. A line that is no result, and the ones that are missing after it, are replaced by failures:
/// the message is out of the queue, so its images are not computed again. Returns how many were replaced; blocking.
pub(super) fn append(part: &Path, to: &File, spec: &BatchSpec, chunk: u32) -> io::Result<u64> {
    let range = chunker::range(spec, chunk);
    let (mut lines, mut to) = (Lines::open(part)?, BufWriter::new(to));
    let (mut next, mut replaced) = (range.start, 0);
    while let Some(line) = lines.next()? {
        match Line::parse(line) {
            Some(result) => {
                if replaced > 0 {
                    replaced += replace(&mut to, spec, next..result.index.min(spec.total))?;
                }
                to.write_all(line)?;
                to.write_all(b"\n")?;
                next = result.index.saturating_add(1);
            }
            None => {
                replaced += replace(&mut to, spec, next..next.saturating_add(1).min(range.end))?;
                next = next.saturating_add(1);
            }
        }
    }
    if replaced > 0 {
        replaced += replace(&mut to, spec, next..range.end)?;
    }
    to.flush()?;
    Ok(replaced)
}

/// Writes a failure for each of the images. Returns how many there were.
fn replace(to: &mut impl Write, spec: &BatchSpec, images: Range<u64>) -> io::Result<u64> {
    let mut replaced = 0;
    for index in images {
        let item = BatchItem {
            request_id: spec.request_id.clone(),
            index,
            image_url: String::new(),
            camera: None,
            outcome: failed("result_damaged", "the result of this image was damaged in the blob store"),
        };
        serde_json::to_writer(&mut *to, &item)?;
        to.write_all(b"\n")?;
        replaced += 1;
    }
    Ok(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_need_not_be_text() {
        let mut bytes = b"{\"index\":3,\"status\":\"ok\"}\n\xff\xfe\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', (2 << 20) + 7));
        bytes.extend(b"\n{\"status\":\"failed\"}");
        let mut lines = Lines { from: bytes.as_slice(), line: Vec::new() };
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            seen.push(Line::parse(line).map(|line| (line.index, line.is_ok())));
            assert!(lines.line.capacity() <= 2 << 20, "{}", lines.line.capacity());
        }
        assert_eq!(seen, [Some((3, true)), None, None, Some((0, false))]);
    }

    fn joined(part: &[u8]) -> (u64, Vec<(u64, bool)>) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("part"), dir.path().join("whole"));
        std::fs::write(&from, part).unwrap();
        let spec = BatchSpec { request_id: "b".into(), total: 10, chunks: 2, digest: "d".into() };
        let replaced = append(&from, &File::create(&to).unwrap(), &spec, 1).unwrap();
        let lines = std::fs::read(&to).unwrap();
        let lines = std::str::from_utf8(&lines).unwrap().lines();
        (replaced, lines.map(|l| Line::parse(l.as_bytes()).unwrap()).map(|l| (l.index, l.is_ok())).collect())
    }

    #[test]
    fn each_image_has_a_line_whatever_was_damaged() {
        let line = |index: u64| format!("{{\"index\":{index},\"status\":\"ok\"}}\n");
        let whole: String = (5..10).map(line).collect();
        assert_eq!(joined(whole.as_bytes()), (0, (5..10).map(|index| (index, true)).collect()));
        for (damage, failed) in [
            (0..1, vec![5]),
            (3..5, vec![5]),
            // The end of a line is gone too: two lines are one.
            (20..30, vec![5, 6]),
            (whole.len() - 8..whole.len(), vec![9]),
            (10..whole.len(), vec![5, 6, 7, 8, 9]),
        ] {
            let mut part = whole.clone().into_bytes();
            part[damage.clone()].fill(0);
            let expected = (5..10).map(|index| (index, !failed.contains(&index))).collect::<Vec<_>>();
            assert_eq!(joined(&part), (failed.len() as u64, expected), "{damage:?}");
        }
    }
}
