//! Bodies under bounds, and the headers of a refusal. The routes are tested on the whole daemon.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use warp::http::header::RETRY_AFTER;
use warp::http::{HeaderMap, HeaderValue};

use super::body::{self, BodyError, BodyLimits};
use super::forms::{self, Payload};
use super::reply::ApiError;
use crate::memory::BodyMemory;
use crate::serving::ClassificationError;

const NO_TIME: BodyLimits = BodyLimits { bytes: 10, section: "http", time: Duration::from_millis(10) };
const LIMITS: BodyLimits = BodyLimits { bytes: 10, section: "http", time: Duration::from_secs(5) };

fn chunks(
    parts: &[&'static [u8]],
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Unpin + Send + 'static {
    stream::iter(parts.iter().map(|part| Ok(Bytes::from_static(part))).collect::<Vec<_>>())
}

fn length(bytes: u64) -> HeaderMap {
    HeaderMap::from_iter([(warp::http::header::CONTENT_LENGTH, HeaderValue::from(bytes))])
}

#[tokio::test]
async fn bodies_are_put_together_up_to_the_bound() {
    let budget = BodyMemory::new(100, 10);
    let body = body::read(&HeaderMap::new(), chunks(&[b"01234", b"56789"]), LIMITS, &budget).await.unwrap();
    assert_eq!(&body[..], b"0123456789");
    let body = body::read(&length(5), chunks(&[b"01234"]), LIMITS, &budget).await.unwrap();
    assert_eq!(&body[..], b"01234");
    let over = body::read(&HeaderMap::new(), chunks(&[b"01234", b"567890"]), LIMITS, &budget).await;
    assert!(matches!(over, Err(BodyError::TooLarge { limit: 10, .. })));
    let declared = body::read(&length(11), chunks(&[]), LIMITS, &budget).await;
    assert!(matches!(declared, Err(BodyError::TooLarge { limit: 10, .. })));
}

#[tokio::test]
async fn all_bodies_together_are_bounded_for_as_long_as_somebody_holds_their_bytes() {
    let memory = BodyMemory::new(15, 10);
    let first = body::read(&length(10), chunks(&[b"0123456789"]), LIMITS, &memory).await.unwrap();
    // As a lane's queue or a capture does, after the request is answered.
    let elsewhere = first.slice(2..4);
    drop(first);
    let second = body::read(&length(10), chunks(&[b"0123456789"]), LIMITS, &memory).await;
    let Err(refused @ BodyError::NoRoom(_)) = second else { panic!("{second:?}") };
    let response = ApiError::from(refused).into_response(None);
    assert_eq!((response.status().as_u16(), response.headers().contains_key(RETRY_AFTER)), (429, true));
    let promised =
        body::read(&length(10), stream::pending::<Result<Bytes, Infallible>>(), NO_TIME, &memory).await;
    assert!(matches!(promised, Err(BodyError::TimedOut { .. })), "what has not come takes no room");
    let in_parts = body::read(&length(10), chunks(&[b"01234", b"56789"]), LIMITS, &memory).await;
    assert!(matches!(in_parts, Err(BodyError::NoRoom(_))));
    let chunked = body::read(&HeaderMap::new(), chunks(&[b"0123", b"4567"]), LIMITS, &memory).await;
    assert!(matches!(chunked, Err(BodyError::NoRoom(_))));
    assert_eq!(memory.used(), 10, "what was refused holds nothing");
    drop(elsewhere);
    assert_eq!(memory.used(), 0);
    assert!(body::read(&length(10), chunks(&[b"0123456789"]), LIMITS, &memory).await.is_ok());
    assert_eq!(memory.used(), 0);
}

fn typed(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(warp::http::header::CONTENT_TYPE, HeaderValue::from_static(kind))])
}

#[tokio::test]
async fn what_is_copied_out_of_a_form_or_json_is_reserved_first_and_held_by_the_image() {
    let json = br#"{"image": "AAECAwQFBgcICQoLDA0ODw=="}"#;
    let form = b"--x\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n0123456789abcdef\r\n--x--\r\n";
    let cases: [(&str, &'static [u8], usize); 2] =
        [("application/json", json, 16), ("multipart/form-data; boundary=x", form, form.len())];
    for (kind, posted, held) in cases {
        let memory = BodyMemory::new(3 * posted.len(), posted.len());
        let body = memory.reserve(posted.len()).unwrap().hold(Bytes::from_static(posted));
        let image = match forms::parse(&typed(kind), body, 1, &memory).await.unwrap() {
            Payload::Image(image) => image,
            Payload::Files(mut files) => files.remove(0).1,
            Payload::Url(url) => panic!("{url}"),
        };
        assert_eq!((image.len(), memory.used()), (16, held), "{kind}");
        drop(image);
        assert_eq!(memory.used(), 0, "{kind}");
        // Room for the body alone.
        let memory = BodyMemory::new(posted.len(), posted.len());
        let body = memory.reserve(posted.len()).unwrap().hold(Bytes::from_static(posted));
        let refused = forms::parse(&typed(kind), body, 1, &memory).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), memory.used()), (429, 0), "{kind}");
    }
}

#[test]
fn retry_after_is_whole_seconds_and_never_zero() {
    for (millis, seconds) in [(1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (61_000, "61")] {
        let refusal =
            ClassificationError::Overloaded { capacity: 8, retry_after: Duration::from_millis(millis) };
        let response = ApiError::from(&refusal).into_response(None);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], seconds, "{millis} ms");
    }
}
