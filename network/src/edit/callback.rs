//! Whom rules ask: closures of the program that this is a part of, or somebody behind a
//! socket.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::request;
use thiserror::Error;

use super::forms::Decoded;
use super::head::{self, Headers};
use super::query;
use crate::host::Host;
use crate::http::Later;

/// A request as callbacks see it: with placeholders, never with values of secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestSeen {
    /// The host, without a port.
    pub host: String,
    /// The method.
    pub method: String,
    /// The path, its encodings undone.
    pub path: String,
    /// The first value of each parameter of the query.
    pub query: BTreeMap<String, String>,
    /// The headers, without `Host`.
    pub headers: Headers,
}

/// The head of a response as callbacks see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseSeen {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Headers,
    /// Whether the body is a stream of events.
    pub is_events: bool,
}

/// What becomes of a request. Without anything in it, it passes as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestAnswer {
    /// Whether it is refused.
    pub block: bool,
    /// All headers that it has from now on, but for those that say where it goes and
    /// where it ends.
    pub headers: Option<Headers>,
    /// All parameters that its query has from now on.
    pub query: Option<BTreeMap<String, String>>,
    /// Its path from now on, not encoded.
    pub path: Option<String>,
}

/// What becomes of a response. Without anything in it, it passes as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseAnswer {
    /// Whether it is refused.
    pub block: bool,
    /// All headers that it has from now on, but for those that say where it ends.
    pub headers: Option<Headers>,
    /// What is replaced in its body, and by what, in order.
    pub replacements: Vec<(String, String)>,
    /// Its whole body.
    pub body: Option<Bytes>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CallbackError {
    /// Who is asked said so.
    #[error("the callback failed: {0}")]
    Failed(String),
    /// Nobody can be asked.
    #[error("the callback cannot be asked: {0}")]
    Unreachable(String),
    /// There was none in time.
    #[error("the callback did not answer in time")]
    Deadline,
    /// It makes no sense.
    #[error("the callback's answer makes no sense: {0}")]
    Answer(String),
}

/// Who is asked about requests and responses. It may take its time, within the deadline of
/// the rule, and change rules meanwhile: nothing waits for it but the one request.
pub trait Callback: Send + Sync + fmt::Debug {
    /// What becomes of a request.
    fn before<'a>(
        &'a self,
        request: &'a RequestSeen,
    ) -> Later<'a, Result<RequestAnswer, CallbackError>> {
        let _ = request;
        Box::pin(async { Ok(RequestAnswer::default()) })
    }

    /// What becomes of a response.
    fn after<'a>(
        &'a self,
        request: &'a RequestSeen,
        response: &'a ResponseSeen,
    ) -> Later<'a, Result<ResponseAnswer, CallbackError>> {
        let _ = (request, response);
        Box::pin(async { Ok(ResponseAnswer::default()) })
    }
}

struct OnRequest<F>(F);
struct OnResponse<F>(F);

impl<F> fmt::Debug for OnRequest<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnRequest")
    }
}

impl<F> fmt::Debug for OnResponse<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnResponse")
    }
}

impl<F, T> Callback for OnRequest<F>
where
    F: Fn(RequestSeen) -> T + Send + Sync,
    T: Future<Output = Result<RequestAnswer, CallbackError>> + Send,
{
    fn before<'a>(
        &'a self,
        request: &'a RequestSeen,
    ) -> Later<'a, Result<RequestAnswer, CallbackError>> {
        Box::pin(async { (self.0)(request.clone()).await })
    }
}

impl<F, T> Callback for OnResponse<F>
where
    F: Fn(RequestSeen, ResponseSeen) -> T + Send + Sync,
    T: Future<Output = Result<ResponseAnswer, CallbackError>> + Send,
{
    fn after<'a>(
        &'a self,
        request: &'a RequestSeen,
        response: &'a ResponseSeen,
    ) -> Later<'a, Result<ResponseAnswer, CallbackError>> {
        Box::pin(async { (self.0)(request.clone(), response.clone()).await })
    }
}

/// A callback for requests.
pub fn on_request<F, T>(decide: F) -> Arc<dyn Callback>
where
    F: Fn(RequestSeen) -> T + Send + Sync + 'static,
    T: Future<Output = Result<RequestAnswer, CallbackError>> + Send + 'static,
{
    Arc::new(OnRequest(decide))
}

/// A callback for responses.
pub fn on_response<F, T>(decide: F) -> Arc<dyn Callback>
where
    F: Fn(RequestSeen, ResponseSeen) -> T + Send + Sync + 'static,
    T: Future<Output = Result<ResponseAnswer, CallbackError>> + Send + 'static,
{
    Arc::new(OnResponse(decide))
}

impl RequestSeen {
    pub(super) fn of(host: &Host, parts: &request::Parts) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let parameters = query::parse(head::query(parts)).into_iter();
        let first = |(name, values): (Vec<u8>, Vec<Vec<u8>>)| {
            let value = values.into_iter().next().unwrap_or_default();
            (text(name), text(value))
        };
        Self {
            // Of IPv6 without brackets.
            host: match host {
                Host::Name(name) => name.to_string(),
                Host::Address(address) => address.to_string(),
            },
            method: parts.method.to_string(),
            path: text(Decoded::of(head::path(parts).as_bytes()).bytes),
            query: parameters.map(first).collect(),
            headers: head::seen(&parts.headers),
        }
    }
}

impl RequestAnswer {
    /// Changes a request: wholly or, with an error, not at all.
    pub(super) fn apply(&self, parts: &mut request::Parts) -> Result<(), CallbackError> {
        let wrong = |what: &str| CallbackError::Answer(what.to_owned());
        let headers = self.headers.as_ref().map(|by| {
            let headers = head::replace(&parts.headers, by);
            headers.ok_or_else(|| wrong("a header is none"))
        });
        let headers = headers.transpose()?;
        if self.path.is_some() || self.query.is_some() {
            let path = match &self.path {
                Some(path) if path.starts_with('/') => query::encode_path(path),
                Some(_) => return Err(wrong("a path has to begin with `/`")),
                None => head::path(parts).to_owned(),
            };
            let query = match &self.query {
                Some(parameters) => {
                    let bytes = |text: &String| text.clone().into_bytes();
                    let parameters = parameters.iter();
                    let parameters =
                        parameters.map(|(name, value)| (bytes(name), vec![bytes(value)]));
                    query::write(&parameters.collect())
                }
                None => head::query(parts).to_owned(),
            };
            head::set_target(parts, &path, &query).ok_or_else(|| wrong("the URL is too long"))?;
        }
        if let Some(headers) = headers {
            parts.headers = headers;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::hook::tests::{map, request};
    use super::*;

    #[test]
    fn what_is_seen_is_decoded() {
        let headers = [("host", "a.test"), ("x-api-key", "1"), ("x-api-key", "2")];
        let parts = request("POST", "/a%20b/%C3%A4?q=1+2&q=3&r", &headers);
        let seen = RequestSeen::of(&"[::1]".parse().unwrap(), &parts);
        let expected = RequestSeen {
            host: "::1".to_owned(),
            method: "POST".to_owned(),
            path: "/a b/ä".to_owned(),
            query: map(&[("q", "1 2"), ("r", "")]),
            headers: [("X-Api-Key".to_owned(), vec!["1".to_owned(), "2".to_owned()])].into(),
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_answer_replaces_all_of_what_it_has() {
        let headers = [("host", "a.test"), ("content-length", "3"), ("x", "1")];
        let changed = |answer: RequestAnswer| {
            let mut parts = request("POST", "/p?b=1&a=2", &headers);
            let applied = answer.apply(&mut parts);
            let headers: Vec<_> = parts.headers.keys().map(ToString::to_string).collect();
            (applied.is_ok(), parts.uri.to_string(), headers.join(" "))
        };
        let told = |uri: &str, headers: &str| (true, uri.to_owned(), headers.to_owned());
        let none = RequestAnswer::default;
        assert_eq!(changed(none()), told("/p?b=1&a=2", "host content-length x"));
        let answer = RequestAnswer {
            headers: Some(Headers::new()),
            query: Some(BTreeMap::new()),
            ..none()
        };
        assert_eq!(changed(answer), told("/p", "host content-length"));
        let answer = RequestAnswer {
            headers: Some([("Y".to_owned(), vec!["1".to_owned()])].into()),
            query: Some(map(&[("c", "?"), ("a", " ")])),
            path: Some("/q r".to_owned()),
            ..none()
        };
        assert_eq!(
            changed(answer),
            told("/q%20r?a=+&c=%3F", "host content-length y")
        );
        let header = |name: &str, value: &str| RequestAnswer {
            headers: Some([(name.to_owned(), vec![value.to_owned()])].into()),
            path: Some("/other".to_owned()),
            ..none()
        };
        let path = RequestAnswer {
            path: Some("other".to_owned()),
            ..none()
        };
        for answer in [header("a b", "1"), header("a", "1\n"), path] {
            assert!(!changed(answer).0);
        }
    }
}
