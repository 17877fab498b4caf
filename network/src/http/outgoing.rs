//! A request as a host gets it.

use std::sync::Arc;

use http::header::{CONNECTION, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{PathAndQuery, Scheme as UriScheme};
use http::{HeaderValue, Request, StatusCode, Uri, Version, request};
use http_body::Body;

use super::body::Outgoing;
use super::failure::Failure;
use super::gate::Opener;
use super::pool::Taken;
use super::target::Target;

/// A request as it is sent on this connection.
pub(crate) fn outgoing(
    parts: &request::Parts,
    body: Outgoing,
    target: &Target,
    taken: &Taken,
    is_upgrade: bool,
) -> Result<Request<Outgoing>, Failure> {
    let mut parts = parts.clone();
    let path = parts.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    if taken.connection.is_http2() {
        parts.version = Version::HTTP_2;
        parts.headers.remove(HOST);
        let uri = Uri::builder()
            .scheme(UriScheme::HTTPS)
            .authority(target.authority.as_bytes())
            .path_and_query(path)
            .build();
        parts.uri = uri.map_err(|_| Failure::ambiguous(target.name()))?;
        return Ok(Request::from_parts(parts, body));
    }
    parts.version = Version::HTTP_11;
    parts.uri = Uri::from(path);
    if is_upgrade {
        add_upgrade(&mut parts.headers);
    } else if parts.headers.contains_key(TE) {
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("TE"));
    }
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        parts
            .headers
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(Request::from_parts(parts, body))
}

/// Has the body sent when the host wants it.
pub(crate) fn with_opener(
    mut request: Request<Outgoing>,
    opener: Option<&Arc<Opener>>,
    taken: &Taken,
) -> Request<Outgoing> {
    let Some(opener) = opener else {
        return request;
    };
    if taken.connection.is_http2() {
        // Nobody tells of 1xx there.
        request.headers_mut().remove(EXPECT);
        opener.open();
        return request;
    }
    let opener = Arc::clone(opener);
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            opener.open();
        }
    });
    request
}

pub(crate) fn add_upgrade(headers: &mut http::HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}
