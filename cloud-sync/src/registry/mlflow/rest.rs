//! Calls of MLflow's REST API: requests, and responses within limits of time and size.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    IF_NONE_MATCH,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::config::MlflowConfig;
use super::failure::{Answer, Failure, looks_like_a_page, refused, unanswered, web_page};
use crate::error::{Link, SyncError, SyncResult};

/// Maximum length of a response other than a file, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Responses that are cached for conditional requests.
const MAX_REMEMBERED: usize = 64;

/// The API of one server.
pub(super) struct Rest {
    client: Client,
    base: Url,
    headers: HeaderMap,
    timeout: Duration,
    /// URL -> ETag and body of its latest response.
    remembered: Mutex<HashMap<String, (HeaderValue, Bytes)>>,
}

impl Rest {
    pub(super) fn new(config: &MlflowConfig) -> SyncResult<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(value) = config.authorization()? {
            headers.insert(AUTHORIZATION, value);
        }
        let (client, base) = (config.client()?, config.base()?);
        Ok(Self { client, base, headers, timeout: config.timeout, remembered: Mutex::default() })
    }

    /// The server, for messages.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// Timeout of a response.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The URL of `path` (parts between slashes, with any characters) with a query.
    pub(super) fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path.split('/'));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// GET of `api/2.0/mlflow/{call}`. `what` completes "cannot ...".
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        what: &str,
        call: &str,
        query: &[(&str, &str)],
    ) -> Answer<T> {
        self.get_url(what, self.url(&format!("api/2.0/mlflow/{call}"), query)).await
    }

    /// GET of a JSON text.
    pub(super) async fn get_url<T: DeserializeOwned>(&self, what: &str, url: Url) -> Answer<T> {
        let (_, body) = self.whole(what, self.client.get(url)).await?;
        parse(what, &body)
    }

    /// Like [`Rest::get`], as a conditional request with the cached response.
    pub(super) async fn get_changed<T: DeserializeOwned>(
        &self,
        what: &str,
        call: &str,
        query: &[(&str, &str)],
    ) -> Answer<T> {
        let url = self.url(&format!("api/2.0/mlflow/{call}"), query);
        let known = self.remembered.lock().get(url.as_str()).cloned();
        let mut request = self.client.get(url.clone());
        if let Some((etag, _)) = &known {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let (headers, body) = match (self.whole(what, request).await?, known) {
            ((None, _), Some((_, body))) => return parse(what, &body),
            ((Some(headers), body), _) => (headers, body),
            ((None, _), None) => {
                let error = SyncError::transient(Link::Mlflow, format!("cannot {what}"));
                return Err(error
                    .because("it responded with 304 Not Modified to an unconditional request")
                    .into());
            }
        };
        let parsed = parse(what, &body)?;
        let mut remembered = self.remembered.lock();
        if let Some(etag) = headers.get(ETAG) {
            if remembered.len() >= MAX_REMEMBERED {
                remembered.clear();
            }
            remembered.insert(url.into(), (etag.clone(), body));
        } else {
            remembered.remove(url.as_str());
        }
        Ok(parsed)
    }

    /// POST of `api/2.0/mlflow/{call}`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        what: &str,
        call: &str,
        body: &impl Serialize,
    ) -> Answer<T> {
        let body = serde_json::to_vec(body)
            .map_err(|error| SyncError::permanent(Link::Mlflow, format!("cannot {what}")).because(error))?;
        let url = self.url(&format!("api/2.0/mlflow/{call}"), &[]);
        let json = HeaderValue::from_static("application/json");
        let request = self.client.post(url).header(CONTENT_TYPE, json).body(body);
        let (_, body) = self.whole(what, request).await?;
        parse(what, &body)
    }

    /// The server's version.
    pub(super) async fn version(&self) -> Answer<String> {
        let what = "reach the server";
        let (_, body) = self.whole(what, self.client.get(self.url("version", &[]))).await?;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        if text.len() < 100 && text.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(text);
        }
        let error = format!("cannot {what}: /version does not answer with a version: is the URI right?");
        Err(Failure { of_the_link: true, ..SyncError::permanent(Link::Mlflow, error).into() })
    }

    /// Requests a file; the body is not read yet. `timeout` is for the beginning of the response.
    pub(super) async fn file(
        &self,
        what: &str,
        url: Url,
        headers: HeaderMap,
        timeout: Duration,
    ) -> Answer<Response> {
        let request = self.client.get(url).headers(headers);
        let answer = tokio::time::timeout(timeout, self.send(what, request))
            .await
            .unwrap_or_else(|_| Err(late(what, timeout)))?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(answer);
        }
        let body = tokio::time::timeout(self.timeout, body_of(what, answer, MAX_ANSWER)).await;
        let body = body.unwrap_or_else(|_| Err(late(what, self.timeout)))?;
        Err(refused(what, status, &body))
    }

    /// Reads a response to its end: headers and body, no headers for "not modified".
    async fn whole(&self, what: &str, request: RequestBuilder) -> Answer<(Option<HeaderMap>, Bytes)> {
        let whole = async {
            let answer = self.send(what, request).await?;
            let status = answer.status();
            if status == StatusCode::NOT_MODIFIED {
                return Ok((None, Bytes::new()));
            }
            let headers = answer.headers().clone();
            let body = body_of(what, answer, MAX_ANSWER).await?;
            if !status.is_success() {
                return Err(refused(what, status, &body));
            }
            if looks_like_a_page(&body) {
                let error = web_page(what);
                return Err(Failure { of_the_link: true, ..error.into() });
            }
            Ok((Some(headers), body))
        };
        timeout(self.timeout, whole).await.unwrap_or_else(|_| Err(late(what, self.timeout)))
    }

    async fn send(&self, what: &str, request: RequestBuilder) -> Answer<Response> {
        let sent = request.headers(self.headers.clone()).send().await;
        let answer = sent.map_err(|error| unanswered(what, error))?;
        let encoding = answer.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let text = format!(
                "cannot {what}: the response is compressed, which was not requested: is a proxy in between?"
            );
            return Err(SyncError::permanent(Link::Mlflow, text).into());
        }
        Ok(answer)
    }
}

async fn body_of(what: &str, mut answer: Response, limit: usize) -> Answer<Bytes> {
    let over = || {
        let text = format!("cannot {what}: the response has more than {limit} bytes");
        Failure::from(SyncError::permanent(Link::Mlflow, text))
    };
    if answer.content_length().is_some_and(|length| length > limit as u64) {
        return Err(over());
    }
    let mut body = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| unanswered(what, error))? {
        if body.len() + piece.len() > limit {
            return Err(over());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

fn late(what: &str, timeout: Duration) -> Failure {
    let error = SyncError::transient(Link::Mlflow, format!("cannot {what}"));
    error.because(format!("no response within {}", humantime::format_duration(timeout))).into()
}

fn parse<T: DeserializeOwned>(what: &str, body: &[u8]) -> Answer<T> {
    if looks_like_a_page(body) {
        return Err(Failure { of_the_link: true, ..web_page(what).into() });
    }
    serde_json::from_slice(body).map_err(|error| {
        let text = format!("cannot {what}: the answer is not what MLflow's API gives: is the URI right?");
        Failure { of_the_link: true, ..SyncError::permanent(Link::Mlflow, text).because(error).into() }
    })
}
