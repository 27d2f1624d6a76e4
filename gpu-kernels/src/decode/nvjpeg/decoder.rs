//! Decodes JPEGs on a GPU, in batches, into memory that the preprocess kernel reads.
#![allow(unsafe_code, reason = "nvJPEG writes to memory of the GPU; the block says why it is sound")]

use std::path::PathBuf;

use super::{Eligible, NvJpeg, NvJpegBackend, NvJpegError};
use crate::cuda::{Block, Device, DeviceMemory, DevicePool, GpuError, Stream};
use crate::preprocess::cuda::DeviceImage;

/// Why the GPU can't decode.
#[derive(Debug, thiserror::Error)]
pub enum GpuDecodeError {
    /// nvJPEG returned an error.
    #[error(transparent)]
    NvJpeg(#[from] NvJpegError),
    /// The driver returned an error.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// nvJPEG with a stream of its own. Owned by one thread, which waits while the GPU decodes.
#[derive(Debug)]
pub struct GpuJpegDecoder {
    nvjpeg: NvJpeg,
    stream: Stream,
    device: Device,
    pool: DevicePool,
}

impl GpuJpegDecoder {
    /// Opens nvJPEG on a GPU, for batches of up to `max_batch`; images go to blocks of `pool`.
    ///
    /// # Errors
    /// [`GpuDecodeError`].
    pub fn open(
        device: &Device,
        folders: &[PathBuf],
        backend: NvJpegBackend,
        max_batch: usize,
        pool: DevicePool,
    ) -> Result<Self, GpuDecodeError> {
        device.bind()?;
        let nvjpeg = NvJpeg::open(folders, backend, max_batch)?;
        Ok(Self { nvjpeg, stream: device.stream()?, device: device.clone(), pool })
    }

    /// Number of JPEG engines of this GPU, and cores per engine; `None` if it has none.
    pub fn engines(&self) -> Option<(u32, u32)> {
        self.nvjpeg.engines()
    }

    /// Decodes images, each with its result of [`eligible`](super::eligible()), and waits for the GPU. `None` for images that
    /// the CPU has to decode: nvJPEG does not support them, they are damaged, or there is no memory for them.
    ///
    /// # Errors
    /// [`GpuError`] when the GPU has failed.
    pub fn decode(&mut self, jpegs: &[(&[u8], Eligible)]) -> Result<Vec<Option<DeviceImage>>, GpuError> {
        self.device.bind()?;
        let mut blocks: Vec<Option<Block<DeviceMemory>>> = Vec::with_capacity(jpegs.len());
        for (bytes, eligible) in jpegs {
            let taken = self.nvjpeg.takes(&bytes[..eligible.length.min(bytes.len())], &eligible.planes);
            let room = usize::try_from(eligible.planes.bytes()).unwrap_or(usize::MAX);
            blocks.push(if taken { self.pool.take(room)? } else { None });
        }
        let all: Vec<usize> = (0..jpegs.len()).filter(|&at| blocks[at].is_some()).collect();
        if self.decode_some(jpegs, &blocks, &all)?.is_err() {
            // One of them is damaged, or exceeds nvJPEG's memory; this must not affect the others.
            for &at in &all {
                if self.decode_some(jpegs, &blocks, &[at])?.is_err() {
                    blocks[at] = None;
                }
            }
        }
        let images = jpegs.iter().zip(blocks).map(|((_, Eligible { header, planes, .. }), block)| {
            let block = block?;
            let layout = planes.layout(block.address());
            Some(DeviceImage::decoded(block, layout, (header.width, header.height), header.orientation))
        });
        Ok(images.collect())
    }

    fn decode_some(
        &mut self,
        jpegs: &[(&[u8], Eligible)],
        blocks: &[Option<Block<DeviceMemory>>],
        which: &[usize],
    ) -> Result<Result<(), NvJpegError>, GpuError> {
        let mut bytes = Vec::with_capacity(which.len());
        let mut destinations = Vec::with_capacity(which.len());
        for &at in which {
            let (jpeg, eligible) = &jpegs[at];
            if let Some(block) = &blocks[at] {
                bytes.push(&jpeg[..eligible.length.min(jpeg.len())]);
                destinations.push(eligible.planes.destination(block.address()));
            }
        }
        // SAFETY: the context is current, and the stream has finished the last batch; each block has room for the planes of
        // its JPEG and is not shared; bytes and blocks live until the stream has finished, which is waited for here.
        let decoded = unsafe { self.nvjpeg.decode(&bytes, &destinations, self.stream.raw()) };
        // If the GPU still works, nvJPEG's error is about these images.
        self.stream.synchronize()?;
        Ok(decoded)
    }
}

impl Drop for GpuJpegDecoder {
    fn drop(&mut self) {
        // nvJPEG frees its memory on the current GPU of the thread.
        let _ = self.device.bind();
    }
}
