//! Camera frames as objects on the S3 server: each with bytes of its own.

use anyhow::Context;
use cloud_sync::blob::{BlobKey, BlobStore, S3Config, S3Store};
use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::servers::Servers;
use crate::bench::setup::bench_frames;
use crate::frames::{Frame, Size, with_tag};

/// Uploads at once.
const AT_ONCE: usize = 4;

/// `count` frames of a size, no two with the same bytes.
pub(super) fn distinct(size: Size, count: usize) -> anyhow::Result<Vec<Frame>> {
    let rendered = bench_frames(size)?;
    let tagged = rendered.iter().cycle().take(count).enumerate();
    tagged
        .map(|(number, frame)| {
            let bytes = with_tag(&frame.bytes, 0, number as u64).context("tagging a rendered frame")?;
            Ok(Frame { name: format!("{}-{number:04}.jpg", size.name()), bytes })
        })
        .collect()
}

/// Puts each frame as an object, and gives the objects' URLs.
pub(super) fn put(servers: &Servers, frames: &[Frame]) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let s3 = servers.services.s3();
        let config = S3Config {
            endpoint: Some(s3.endpoint.clone()),
            region: Some(s3.region.clone()),
            credentials_file: Some(s3.credentials_file.clone()),
            ..S3Config::new(&s3.bucket)
        };
        let store = S3Store::open(config, LinkHealth::new(Link::S3)).await?;
        stream::iter(frames).map(|frame| put_one(&store, frame)).buffered(AT_ONCE).try_collect().await
    })
}

async fn put_one(store: &S3Store, frame: &Frame) -> anyhow::Result<String> {
    let key = BlobKey::new(format!("bench/{}", frame.name))?;
    store.put(&key, frame.bytes.clone().into(), "image/jpeg").await?;
    Ok(store.uri(&key))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_frames_have_the_same_name_or_bytes() {
        let frames = distinct(Size::Vga, 70).unwrap();
        let names: HashSet<_> = frames.iter().map(|frame| &frame.name).collect();
        let bytes: HashSet<_> = frames.iter().map(|frame| &frame.bytes).collect();
        assert_eq!((names.len(), bytes.len()), (70, 70));
    }
}
