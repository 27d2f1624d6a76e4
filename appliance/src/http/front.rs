//! What every request passes before the routes: checks of host and origin, limits of its address, decompression of its body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyDataStream, BodyExt, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::Service;
use inference::lanes::Client;
use warp::http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ALLOW,
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, VARY,
};
use warp::http::{HeaderMap, Method, Request, Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::body;
use super::connections::{Address, Busy, Connection, Resource, Share};
use super::inbound::{AddressShare, Coding, Inbound};
use super::reply::ApiError;
use super::sites::{Caller, Sites};
use super::{Surface, allowed};
use crate::batch::{MAX_DOWNLOADS, MAX_SUBMISSIONS};
use crate::http::state::ServerState;
use crate::pace::Rate;

/// Headers that pages of allowed origins may send, and headers that they may read.
const REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-encoding, content-type, x-deadline-ms, x-request-id");
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static("location, retry-after, x-request-id");
/// How long a browser may cache a preflight reply, in seconds.
const PREFLIGHT_AGE: HeaderValue = HeaderValue::from_static("600");

const UNSUPPORTED: &str = "unsupported_encoding";

/// Settings that all connections share.
pub(super) struct Policy {
    pub(super) state: Arc<ServerState>,
    pub(super) surface: Surface,
    pub(super) sites: Sites,
    pub(super) rate: Rate,
    /// Limit of bodies in memory per address, in bytes.
    pub(super) bodies_per_address: usize,
    pub(super) max_body: usize,
}

/// The service of one connection: the routes, behind the checks.
pub(super) struct Front<S> {
    pub(super) policy: Arc<Policy>,
    pub(super) connection: Arc<Connection>,
    pub(super) routes: S,
}

impl<S> Service<Request<Incoming>> for Front<S>
where
    S: Service<Request<Inbound>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = HttpResponse<Outbound>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = self.connection.begin();
        let policy = &self.policy;
        let from = match policy.sites.check(request.method(), request.uri(), request.headers()) {
            Ok(from) => from,
            Err(error) => return answered(policy.refuse(request, error), busy),
        };
        if *request.method() == Method::OPTIONS
            && let Some(methods) = allowed(policy.surface, request.uri().path())
        {
            let mut response = options(methods, request.headers());
            policy.share_with(&from, &mut response);
            policy.state.metrics().request("options", response.status().as_u16());
            return answered(response, busy);
        }
        let admitted = match policy.admit(&request, &self.connection.address) {
            Ok(admitted) => admitted,
            Err(error) => {
                let mut response = policy.refuse(request, error);
                policy.share_with(&from, &mut response);
                return answered(response, busy);
            }
        };
        let (request, held) = policy.prepare(request, admitted, self.connection.client);
        let answer = self.routes.call(request);
        let policy = Arc::clone(policy);
        Box::pin(async move {
            let mut response = answer.await?;
            policy.share_with(&from, &mut response);
            Ok(response.map(|body| Outbound { body: body.boxed(), _held: held, _busy: Some(busy) }))
        })
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<HttpResponse<Outbound>, Infallible>> + Send>>;

fn answered(response: Response, busy: Busy) -> Answer {
    let response =
        response.map(|body| Outbound { body: body.boxed(), _held: Held::default(), _busy: Some(busy) });
    Box::pin(std::future::ready(Ok(response)))
}

/// An address's shares, held until the reply is sent.
#[derive(Default)]
struct Held(Vec<Share>);

/// A request that has passed the checks.
struct Admitted {
    coding: Coding,
    of_body: Option<AddressShare>,
    held: Held,
}

impl Policy {
    /// The shares of the request's address, if it is within its limits.
    fn admit(&self, request: &Request<Incoming>, address: &Arc<Address>) -> Result<Admitted, ApiError> {
        let coding = coding(request.headers())?;
        let mut admitted = Admitted { coding, of_body: None, held: Held::default() };
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/predict") => {
                let declared =
                    request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
                // The route refuses what is too large, and compressed bodies are counted as they are decompressed.
                let declared = declared.filter(|n| *n <= self.max_body && coding == Coding::Identity);
                admitted.of_body = Some(AddressShare {
                    share: address.share(Resource::BodyBytes),
                    limit: self.bodies_per_address,
                    declared: declared.unwrap_or(0),
                });
            }
            (&Method::POST, "/batch/predict") => {
                admitted.held.0.push(share(address, Resource::Submissions, MAX_SUBMISSIONS, "submissions")?);
            }
            (&Method::GET, path) if path.starts_with("/batch/results/") => {
                admitted.held.0.push(share(address, Resource::Downloads, MAX_DOWNLOADS, "downloads")?);
            }
            _ => {}
        }
        Ok(admitted)
    }

    /// The request in the form that the routes expect.
    fn prepare(
        &self,
        request: Request<Incoming>,
        admitted: Admitted,
        client: Client,
    ) -> (Request<Inbound>, Held) {
        let Admitted { coding, of_body, held } = admitted;
        let rate = self.rate;
        let mut request = request.map(|body| Inbound::new(body, rate, coding, of_body));
        request.extensions_mut().insert(client);
        let headers = request.headers_mut();
        if headers.remove(CONTENT_ENCODING).is_some() && coding != Coding::Identity {
            headers.remove(CONTENT_LENGTH);
        }
        if let Some(plain) = headers.get(CONTENT_TYPE).and_then(without_blanks) {
            headers.insert(CONTENT_TYPE, plain);
        }
        (request, held)
    }

    /// A refusal without the routes; the body is discarded.
    fn refuse(&self, request: Request<Incoming>, error: ApiError) -> Response {
        let (head, incoming) = request.into_parts();
        body::discard(&head.headers, BodyDataStream::new(incoming));
        let (status, code, path) = (error.status.as_u16(), error.code, head.uri.path());
        tracing::info!(status, code, path = path.get(..100).unwrap_or(path), "request refused");
        self.state.metrics().request("refused", status);
        let unpackable = code == UNSUPPORTED;
        let mut response = error.into_response(None);
        if unpackable {
            response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
        }
        response
    }

    /// Lets a page of an allowed origin read the reply.
    fn share_with(&self, from: &Caller, response: &mut Response) {
        let headers = response.headers_mut();
        if let Caller::Page(origin) = from {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        }
        if self.sites.has_origins() {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
    }
}

/// One unit of a resource of which an address may have half.
fn share(address: &Arc<Address>, of: Resource, all: usize, what: &str) -> Result<Share, ApiError> {
    let (mut share, limit) = (address.share(of), (all / 2).max(1));
    if share.grow_to(1, limit) {
        return Ok(share);
    }
    Err(ApiError::overloaded(
        format!("this address already has {limit} {what} in flight; try again"),
        Duration::from_secs(1),
    ))
}

fn options(methods: &'static str, headers: &HeaderMap) -> Response {
    let mut response = HttpResponse::new(Bytes::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    answer.insert(ALLOW, HeaderValue::from_static(methods));
    if headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        answer.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE);
    }
    response
}

fn coding(headers: &HeaderMap) -> Result<Coding, ApiError> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return match headers.contains_key(CONTENT_ENCODING) {
            true => Err(unsupported("several")),
            false => Ok(Coding::Identity),
        };
    };
    let value = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
    match value.as_str() {
        "" | "identity" => Ok(Coding::Identity),
        "gzip" | "x-gzip" => Ok(Coding::Gzip),
        "deflate" => Ok(Coding::Deflate),
        other => Err(unsupported(other)),
    }
}

fn unsupported(coding: &str) -> ApiError {
    let shown: String = coding.chars().take(40).collect();
    let message = format!("Content-Encoding: {shown} is not supported; gzip and deflate are");
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, UNSUPPORTED, message)
}

/// A Content-Type without blanks around its semicolons, which parsers of media types refuse; `None` if there are none.
fn without_blanks(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let mut quoted = false;
    let parts = text.split(|c| {
        quoted ^= c == '"';
        c == ';' && !quoted
    });
    let plain = parts.map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(";");
    (plain != text).then(|| HeaderValue::from_str(&plain).ok())?
}

/// The body of a reply. The request is in flight until it is dropped.
pub(super) struct Outbound {
    body: BoxBody<Bytes, warp::Error>,
    _held: Held,
    _busy: Option<Busy>,
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = warp::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, warp::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_semicolons_go_and_quoted_ones_stay() {
        let plain = |text: &'static str| without_blanks(&HeaderValue::from_static(text));
        let form = plain("multipart/form-data ; boundary=edge").unwrap();
        assert_eq!(form, "multipart/form-data;boundary=edge");
        assert_eq!(plain("a/b ; c=\" ; \" ;").unwrap(), "a/b;c=\" ; \"");
        assert_eq!(plain("image/jpeg"), None);
    }

    #[test]
    fn codings_are_known_by_name() {
        let coding = |value: &str| {
            let headers = HeaderMap::from_iter([(CONTENT_ENCODING, value.parse().unwrap())]);
            coding(&headers).map_err(|error| error.code)
        };
        assert_eq!(coding("GZIP"), Ok(Coding::Gzip));
        assert_eq!(coding("identity"), Ok(Coding::Identity));
        for other in ["br", "zstd", "gzip, gzip"] {
            assert_eq!(coding(other), Err(UNSUPPORTED), "{other}");
        }
    }
}
