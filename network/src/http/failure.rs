//! What a guest is told instead of a response.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode, Version};

use crate::policy::{Code, Denial};

/// How much of what went wrong is told, in characters: a host may have a hand in it.
const MAX_WHY: usize = 300;

/// A refusal, or something that went wrong, and its status.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) denial: Denial,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: Code, host: String) -> Self {
        let denial = Denial {
            code,
            host,
            rule: None,
        };
        Self { status, denial }
    }

    /// The same, with what went wrong.
    pub(crate) fn because(mut self, why: &str) -> Self {
        let printable = why
            .chars()
            .map(|one| if one.is_control() { ' ' } else { one });
        self.denial.rule = Some(printable.take(MAX_WHY).collect());
        self
    }

    /// A request that could be read in more than one way.
    pub(crate) fn ambiguous(host: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::Ambiguous, host)
    }

    /// The response. A connection of HTTP/1 on which nobody knows where the next request
    /// begins ends with it.
    pub(crate) fn response(&self, version: Version) -> Response<Bytes> {
        let denial = &self.denial;
        let body = serde_json::json!({
            "code": denial.code.as_str(),
            "host": denial.host,
            "rule": denial.rule,
            "hint": denial.hint(),
        });
        let mut response = Response::new(Bytes::from(format!("{body}\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            "x-flashpan-denied",
            HeaderValue::from_static(denial.code.as_str()),
        );
        let is_doubtful = matches!(denial.code, Code::Ambiguous | Code::UnknownProtocol);
        if is_doubtful && version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        let status = match denial.code {
            Code::Ambiguous | Code::UnknownProtocol => StatusCode::BAD_REQUEST,
            Code::Resolve | Code::Connect | Code::Certificate => StatusCode::BAD_GATEWAY,
            Code::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        };
        Self { status, denial }
    }
}
