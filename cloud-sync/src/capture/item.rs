//! A captured image: its metadata, its sidecar, and its names in the spool and in the storage.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::blob::{BlobKey, InvalidKey};
use crate::event::ModelRef;

/// Prefix of the keys of captured images.
pub const KEY_PREFIX: &str = "datasets/captured";
/// Folder of images without a camera.
const NO_CAMERA: &str = "unknown";
const MAX_CAMERA_BYTES: usize = 64;

/// An image with its prediction.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The encoded image as received.
    pub bytes: Bytes,
    /// BLAKE3 of `bytes`: 64 hex digits.
    pub digest: String,
    /// Encoding, detected from the bytes: `jpeg`, `png`, ...
    pub format: String,
    /// The camera named by the client, if any.
    pub camera: Option<String>,
    /// The label of the best score.
    pub species: String,
    /// The best score, 0 to 1.
    pub confidence: f32,
    /// The model that answered.
    pub model: ModelRef,
    /// The id of the request that was answered.
    pub request_id: String,
    /// Time of the response.
    pub time: SystemTime,
}

/// A BLAKE3 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    /// Parses 64 lower-case hex digits.
    pub(super) fn parse(hex: &str) -> Option<Self> {
        let lower = !hex.bytes().any(|b| b.is_ascii_uppercase());
        let hash = blake3::Hash::from_hex(hex).ok().filter(|_| lower)?;
        Some(Self(*hash.as_bytes()))
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub(super) fn hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// Its first half: enough to distinguish any number of images.
    pub(super) fn short(self) -> [u8; 16] {
        let mut short = [0; 16];
        short.copy_from_slice(&self.0[..16]);
        short
    }

    /// A pseudo-random number in [0, 1), always the same for the same image.
    pub(super) fn fraction(self) -> f64 {
        let mut head = [0; 8];
        head.copy_from_slice(&self.0[..8]);
        // 53 bits are what a double represents exactly; more could round up to 1.
        (u64::from_be_bytes(head) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Metadata beside an image, in the spool and in the storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Sidecar {
    pub(super) digest: String,
    pub(super) format: String,
    pub(super) bytes: u64,
    pub(super) camera: Option<String>,
    pub(super) species: String,
    pub(super) confidence: Option<f32>,
    pub(super) model: ModelRef,
    pub(super) node: String,
    pub(super) request_id: String,
    /// RFC 3339, UTC, milliseconds.
    pub(super) time: String,
}

impl Sidecar {
    pub(super) fn new(image: &Captured, node: &str) -> Self {
        Self {
            digest: image.digest.clone(),
            format: image.format.clone(),
            bytes: image.bytes.len() as u64,
            camera: image.camera.clone(),
            species: image.species.clone(),
            confidence: Some(image.confidence).filter(|c| c.is_finite()),
            model: image.model.clone(),
            node: node.to_owned(),
            request_id: image.request_id.clone(),
            time: humantime::format_rfc3339_millis(image.time).to_string(),
        }
    }

    /// File extension of the image.
    pub(super) fn extension(&self) -> String {
        let plain = |c: &char| c.is_ascii_alphanumeric();
        match self.format.as_str() {
            "jpeg" => "jpg".into(),
            other => {
                let letters: String = other.chars().filter(plain).take(8).collect();
                // `json` is the sidecar's.
                if letters.is_empty() || letters == "json" { "bin".into() } else { letters }
            }
        }
    }

    pub(super) fn content_type(&self) -> String {
        match self.extension().as_str() {
            "jpg" => "image/jpeg".into(),
            "bin" => "application/octet-stream".into(),
            other => format!("image/{other}"),
        }
    }

    /// The key of the image and that of the sidecar.
    pub(super) fn keys(&self) -> Result<(BlobKey, BlobKey), InvalidKey> {
        let day = self.time.get(..10).unwrap_or("undated");
        let folder = format!("{KEY_PREFIX}/{day}/{}", folder_of(self.camera.as_deref()));
        let image = BlobKey::new(format!("{folder}/{}.{}", self.digest, self.extension()))?;
        Ok((image, BlobKey::new(format!("{folder}/{}.json", self.digest))?))
    }
}

/// The camera as a part of a key. A name that a key cannot contain as it is gets a distinguishing suffix, so that no
/// two cameras share a folder because their names use other characters.
fn folder_of(camera: Option<&str>) -> String {
    let Some(camera) = camera.filter(|name| !name.trim().is_empty()) else { return NO_CAMERA.into() };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.=+@,()".contains(c);
    let safe: String =
        camera.chars().map(|c| if allowed(c) { c } else { '_' }).take(MAX_CAMERA_BYTES).collect();
    // A leading dot hides a folder; `..` leads out of one.
    let safe = safe.replacen('.', "_", usize::from(safe.starts_with('.')));
    if safe == camera {
        return safe;
    }
    let mark = blake3::hash(camera.as_bytes()).to_hex();
    format!("{safe}~{}", mark.get(..8).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camera_names_make_folders_that_do_not_collide() {
        assert_eq!(folder_of(Some("dock-3")), "dock-3");
        assert_eq!(folder_of(None), "unknown");
        assert_eq!(folder_of(Some("  ")), "unknown");
        let odd = ["../../etc", "..", ".", "a/b", "a_b", "камера-1", "камера-2", "x y", "a.partial~"];
        let mut folders: Vec<_> = odd.iter().map(|name| folder_of(Some(name))).collect();
        for folder in &folders {
            assert!(BlobKey::new(format!("p/{folder}/x")).is_ok(), "{folder}");
            assert!(!folder.starts_with('.'), "{folder}");
        }
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), odd.len());
        assert!(folder_of(Some(&"é".repeat(5000))).len() <= MAX_CAMERA_BYTES + 9);
    }

    #[test]
    fn digests_are_hex_in_lower_case_and_spread_evenly() {
        assert_eq!(Digest::parse(&Digest::of(b"a").hex()), Some(Digest::of(b"a")));
        for bad in ["", "../../x", &"A".repeat(64), &"g".repeat(64), &"a".repeat(63)] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
        let low = (0..10_000_u32).filter(|n| Digest::of(&n.to_le_bytes()).fraction() < 0.25).count();
        assert!((2300..2700).contains(&low), "{low}");
        assert!(Digest([0xff; 32]).fraction() < 1.0);
    }
}
