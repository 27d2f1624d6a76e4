//! Bodies under bounds, and the headers of a refusal. The routes are tested on the whole daemon.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use warp::http::header::RETRY_AFTER;
use warp::http::{HeaderMap, HeaderValue};

use super::body::{self, BodyBudget, BodyError, BodyLimits};
use super::reply::ApiError;
use crate::predict::PredictError;

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
    let budget = BodyBudget::new(100);
    let (body, _share) =
        body::read(&HeaderMap::new(), chunks(&[b"01234", b"56789"]), LIMITS, &budget).await.unwrap();
    assert_eq!(&body[..], b"0123456789");
    let (body, _share) = body::read(&length(5), chunks(&[b"01234"]), LIMITS, &budget).await.unwrap();
    assert_eq!(&body[..], b"01234");
    let over = body::read(&HeaderMap::new(), chunks(&[b"01234", b"567890"]), LIMITS, &budget).await;
    assert!(matches!(over, Err(BodyError::TooLarge { limit: 10, .. })));
    let declared = body::read(&length(11), chunks(&[]), LIMITS, &budget).await;
    assert!(matches!(declared, Err(BodyError::TooLarge { limit: 10, .. })));
}

#[tokio::test]
async fn all_bodies_together_are_bounded_and_give_their_share_back() {
    let budget = BodyBudget::new(15);
    let (_, share) = body::read(&length(10), chunks(&[b"0123456789"]), LIMITS, &budget).await.unwrap();
    let second = body::read(&length(10), chunks(&[b"0123456789"]), LIMITS, &budget).await;
    assert!(matches!(second, Err(BodyError::NoRoom)));
    let promised =
        body::read(&length(10), stream::pending::<Result<Bytes, Infallible>>(), NO_TIME, &budget).await;
    assert!(matches!(promised, Err(BodyError::TimedOut { .. })), "what has not come takes no room");
    let chunked = body::read(&HeaderMap::new(), chunks(&[b"0123", b"4567"]), LIMITS, &budget).await;
    assert!(matches!(chunked, Err(BodyError::NoRoom)));
    drop(share);
    assert!(body::read(&length(10), chunks(&[b"0123456789"]), LIMITS, &budget).await.is_ok());
}

#[test]
fn retry_after_is_whole_seconds_and_never_zero() {
    for (millis, seconds) in [(1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (61_000, "61")] {
        let refusal = PredictError::Overloaded { capacity: 8, retry_after: Duration::from_millis(millis) };
        let response = ApiError::from(refusal).into_response(None);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], seconds, "{millis} ms");
    }
}
