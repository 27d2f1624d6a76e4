//! Which URLs are taken, and what is cut out of those that are shown.

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
