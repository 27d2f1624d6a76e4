//! The URL of an image: which ones are accepted, and how much of one is shown.

use std::borrow::Cow;

use cloud_sync::event::ItemOutcome;
use url::Url;

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 4096;

/// Longest URL, in bytes, that the result of a failed image holds unabridged.
pub const MAX_FAILED_URL_BYTES: usize = 256;
/// Bytes kept of a longer one, before its digest.
const KEPT_URL_BYTES: usize = 200;

/// Characters of a URL that an error shows at most.
const SHOWN_CHARS: usize = 100;

/// Where an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// On a web server.
    Web,
    /// In object storage.
    Object {
        /// The bucket.
        bucket: &'a str,
        /// The whole key, not decoded.
        key: &'a str,
    },
}

/// Where an image is, by its URL: the same rule for submissions and for the loader. Whether the location may be accessed
/// is checked when it is loaded.
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

/// The key is taken from the text: it may have any characters, also those with a meaning in a URL.
fn object<'a>(text: &'a str, url: &Url) -> Result<Source<'a>, &'static str> {
    let path = text.split_once("://").map_or("", |(_, path)| path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    if bucket.is_empty() || url.host_str() != Some(bucket) {
        return Err("it names no bucket");
    }
    if key.is_empty() {
        return Err("it names no object in the bucket");
    }
    // A server may interpret such parts as steps out of the bucket.
    if key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("it has a part that is . or ..");
    }
    Ok(Source::Object { bucket, key })
}

/// The URL as it was sent, without a user name and password.
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
        // What the parser rejects may still be a URL with a mistake in it.
        _ => without_anything_before_the_host(text),
    }
}

/// The URL in the result of an image. Where the image has failed, a long one is cut and ends in its digest: any client can
/// send a list of the longest, and each would be stored in the results, in an event and in a dead letter.
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

/// The URL without what may be secret: user name, password, and the query with its signatures.
pub fn public(text: &str) -> Cow<'_, str> {
    let url = without_userinfo(text);
    match url.find(['?', '#']) {
        Some(end) => Cow::Owned(format!("{}…", &url[..end])),
        None => url,
    }
}

/// The beginning of [`public`], for an error message.
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
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_a_worker_can_load_are_taken() {
        let longest = format!("https://h/{}", "a".repeat(MAX_URL_BYTES - 10));
        for url in ["http://h/a.jpg", "HTTPS://h:8080/?q=1#f", "http://[::1]/", " http://h/a@b ", &longest] {
            assert_eq!(source(url), Ok(Source::Web), "{url}");
        }
        for (url, bucket, key) in [
            ("s3://bucket/a/b c.jpg", "bucket", "a/b c.jpg"),
            ("S3://bucket/A%20b?c#d@e", "bucket", "A%20b?c#d@e"),
            (" s3://my_bucket.eu/ü", "my_bucket.eu", "ü"),
            ("s3://bucket//a", "bucket", "/a"),
        ] {
            assert_eq!(source(url), Ok(Source::Object { bucket, key }), "{url}");
        }
        let longer = format!("{longest}a");
        for (url, reason) in [
            ("", "empty"),
            (longer.as_str(), "4096"),
            ("http://h/\n", "control"),
            ("fish.jpg", "no URL"),
            ("http://", "no URL"),
            ("file:///etc/passwd", "scheme"),
            ("blob:0", "scheme"),
            ("ftp://h/a", "scheme"),
            ("data:image/png;base64,AA==", "scheme"),
            ("s3:///key", "bucket"),
            ("s3:/bucket/key", "bucket"),
            ("s3:bucket/key", "bucket"),
            ("s3://bucket:80/key", "bucket"),
            ("s3://bucket?a/key", "bucket"),
            ("s3://bucket", "object"),
            ("s3://bucket/", "object"),
            ("s3://bucket/a/../b", ".."),
            ("s3://bucket/.", ".."),
            ("https://user:hunter2@h/a.jpg", "password"),
            ("https://user@h/a.jpg", "password"),
            ("https://:hunter2@h/a.jpg", "password"),
            ("https:user:hunter2@h/a.jpg", "password"),
            ("s3://key:hunter2@bucket/a.jpg", "password"),
        ] {
            assert!(source(url).unwrap_err().contains(reason), "{url}: {:?}", source(url));
        }
    }

    #[test]
    fn results_have_the_url_as_it_was_sent_but_for_the_password() {
        for url in [
            "https://h/a.jpg?X-Amz-Signature=abc",
            "https://h/a@2x.jpg?mail=a@b#@",
            "s3://bucket/a@b c.jpg",
            "photos/fish@2x.jpg",
            " http://h/%7Ea ",
            "",
        ] {
            assert_eq!(without_userinfo(url), url);
        }
        for (url, cut) in [
            ("https://user:hunter2@h:8443/a.jpg?q=1", "https://h:8443/a.jpg?q=1"),
            ("https://hunter2@h/a", "https://h/a"),
            ("http:hunter:hunter2@h/a", "http://h/a"),
            ("http:\\\\u:hunter2@h\\a", "http://h/a"),
            ("ftp://u:hunter2@h/a", "ftp://h/a"),
            ("s3://u:hunter2@bucket/a b", "s3://bucket/a%20b"),
            ("http://u:hunter2@h o/a", "http:…@h o/a"),
            ("http://u:hun?ter2@h/a", "http:…@h/a"),
            ("file://u:hunter2@h/a", "file:…@h/a"),
            ("blob:https://u:hunter2@h/a", "blob:https:…@h/a"),
        ] {
            assert_eq!(without_userinfo(url), cut, "{url}");
            assert!(!shown(url).contains("ter2"), "{url}: {}", shown(url));
        }
    }

    #[test]
    fn what_is_shown_of_a_url_has_no_secret() {
        assert_eq!(public("https://h/a?X-Amz-Signature=abc"), "https://h/a…");
        assert_eq!(shown("ftp://user:hunter2@h/a?k=v#f"), "ftp://h/a…");
        assert_eq!(shown("ftp://user:hunter2@h/a"), "ftp://h/a");
        assert_eq!(shown("gopher"), "gopher");
        assert_eq!(shown(&"ä".repeat(200)), format!("{}…", "ä".repeat(100)));
        assert_eq!(public(&"ä".repeat(200)), "ä".repeat(200));
    }
}
