//! The URL of an image: which ones are taken, and how much of one others get to see.

use std::borrow::Cow;

use cloud_sync::event::ItemOutcome;
use url::Url;

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 4096;

/// Longest URL, in bytes, that the result of a failed image has whole.
pub const MAX_FAILED_URL_BYTES: usize = 256;
/// What is kept of one that is longer, before its digest.
const KEPT_URL_BYTES: usize = 200;

/// Most of a URL that an error shows.
const SHOWN_CHARS: usize = 100;

/// Where an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// On a web server.
    Web,
    /// In an object storage.
    Object {
        /// The bucket.
        bucket: &'a str,
        /// The whole key, with nothing in it decoded.
        key: &'a str,
    },
}

/// Where a URL leads: the one rule for those who take a list of URLs and those who load from them. Whether that place
/// may be reached is decided when it is.
///
/// # Errors
/// Why no image can be loaded from it.
pub fn source(text: &str) -> Result<Source<'_>, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_URL_BYTES {
        return Err("it is longer than 4096 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it has a control character in it");
    }
    // As the parser does.
    let text = text.trim_matches(' ');
    let url = Url::parse(text).map_err(|_| "it is no URL")?;
    if has_userinfo(&url) {
        return Err("it has a user name or password in it");
    }
    match url.scheme() {
        "http" | "https" => Ok(Source::Web),
        "s3" => object(text, &url),
        _ => Err("its scheme is not http, https or s3"),
    }
}

/// The key is taken from the text: it may have any characters, also those that mean something in a URL.
fn object<'a>(text: &'a str, url: &Url) -> Result<Source<'a>, &'static str> {
    let path = text.split_once("://").map_or("", |(_, path)| path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    if bucket.is_empty() || url.host_str() != Some(bucket) {
        return Err("it names no bucket");
    }
    if key.is_empty() {
        return Err("it names no object in the bucket");
    }
    // A server may take such parts for steps out of the bucket.
    if key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("it has a part that is . or ..");
    }
    Ok(Source::Object { bucket, key })
}

/// The URL as results have it: as it was sent, but for a user name and password.
pub fn without_userinfo(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    match Url::parse(text) {
        Ok(mut url) if has_userinfo(&url) => {
            let cut = url.set_username("").and_then(|()| url.set_password(None));
            if cut.is_ok() { Cow::Owned(url.into()) } else { without_anything_before_the_host(text) }
        }
        Ok(url) if !url.cannot_be_a_base() => Cow::Borrowed(text),
        // What the parser can't tell apart may still be a URL with a slip in it.
        _ => without_anything_before_the_host(text),
    }
}

/// The URL as the result of an image has it. Where the image has failed, one that is long is cut and ends in its digest:
/// anybody can send a list of the longest, and each would be kept in the results, in an event and in a dead letter.
pub fn in_result<'a>(outcome: &ItemOutcome, text: &'a str) -> Cow<'a, str> {
    let url = without_userinfo(text);
    if matches!(outcome, ItemOutcome::Ok { .. }) || url.len() <= MAX_FAILED_URL_BYTES {
        return url;
    }
    let digest = blake3::hash(url.as_bytes()).to_hex();
    let mut end = KEPT_URL_BYTES;
    while !url.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}…blake3:{}", &url[..end], &digest[..32]))
}

fn without_anything_before_the_host(text: &str) -> Cow<'_, str> {
    let Some(at) = text.rfind('@') else { return Cow::Borrowed(text) };
    let before = &text[..at];
    match before.split_once("://").or_else(|| before.split_once(':')) {
        Some((scheme, _)) => Cow::Owned(format!("{scheme}:…{}", &text[at..])),
        None => Cow::Borrowed(text),
    }
}

/// The URL without what may be a secret: user name, password, and the query with its signatures.
pub fn public(text: &str) -> Cow<'_, str> {
    let url = without_userinfo(text);
    match url.find(['?', '#']) {
        Some(end) => Cow::Owned(format!("{}…", &url[..end])),
        None => url,
    }
}

/// The beginning of [`public`], for a sentence.
pub fn shown(text: &str) -> String {
    let url = public(text);
    let mut start: String = url.chars().take(SHOWN_CHARS).collect();
    if start.len() < url.len() {
        start.push('…');
    }
    start
}

fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests;
