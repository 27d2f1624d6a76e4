//! The results of chunks joined to those of the batch; what is damaged is made good as far as it can be.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use cloud_sync::batch_status::BatchSpec;
use cloud_sync::event::BatchItem;

use super::image::failed;
use crate::batch::chunker;
use crate::batch::lines::{Line, next_line};

/// Appends a part to `to`. A line that is no result, and the ones that are missing after it, are replaced by results of
/// images that have failed: their message is out of the queue, so nobody can do them again. Returns how many that were.
pub(super) fn append(part: &Path, to: File, spec: &BatchSpec, chunk: u32) -> io::Result<u64> {
    let range = chunker::range(spec, chunk);
    let (mut from, mut to) = (BufReader::new(File::open(part)?), BufWriter::new(to));
    let (mut line, mut next, mut replaced) = (Vec::new(), range.start, 0);
    while next_line(&mut from, &mut line)? {
        match Line::parse(&line) {
            Some(result) => {
                if replaced > 0 {
                    replaced += replace(&mut to, spec, next..result.index.min(spec.total))?;
                }
                to.write_all(&line)?;
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

    fn joined(part: &[u8]) -> (u64, Vec<(u64, bool)>) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("part"), dir.path().join("whole"));
        std::fs::write(&from, part).unwrap();
        let spec = BatchSpec { request_id: "b".into(), total: 10, chunks: 2, digest: "d".into() };
        let replaced = append(&from, File::create(&to).unwrap(), &spec, 1).unwrap();
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
