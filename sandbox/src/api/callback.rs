//! What is said over a callback socket: one line of JSON each way.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::hook::{HookPhase, NetworkBodyTransform, NetworkHookAction};
use super::lenient;

/// Names and their values, in order.
pub type Headers = BTreeMap<String, Vec<String>>;

/// What a rule with a `callback_id` asks. Fields that are empty are left out;
/// those of a response are empty before there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkHookCallbackRequest {
    /// The `callback_id` of the rule.
    #[serde(default)]
    pub callback_id: String,
    /// The phase of the rule, always written.
    #[serde(default)]
    pub phase: HookPhase,
    /// The host, without a port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The HTTP method.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// The path of the URL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The first value of every parameter of the query.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub query: BTreeMap<String, String>,
    /// The headers of the request, without `Host`.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub request_headers: Headers,
    /// The status of the response; 0: there is none yet.
    #[serde(default, skip_serializing_if = "lenient::is_default")]
    pub status_code: u16,
    /// The headers of the response.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub response_headers: Headers,
    /// Whether the response is a stream of events (`text/event-stream`).
    #[serde(default, skip_serializing_if = "lenient::is_default")]
    pub is_sse: bool,
}

/// What a callback answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkHookCallbackResponse {
    /// `allow` (the default), `block` or `mutate`; changes with `allow` count.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub action: NetworkHookAction,
    /// Changes of the request.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub request: Option<NetworkHookRequestMutation>,
    /// Changes of the response.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub response: Option<NetworkHookResponseMutation>,
    /// Why the callback failed; blank: it did not.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub error: String,
}

/// How a callback changes a request. `None` (JSON: `null`) leaves a part as it
/// is; an empty map clears it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkHookRequestMutation {
    /// All headers.
    #[serde(default, deserialize_with = "lenient::optional_map")]
    pub headers: Option<Headers>,
    /// All parameters of the query.
    #[serde(default, deserialize_with = "lenient::optional_map")]
    pub query: Option<BTreeMap<String, String>>,
    /// The path; empty: unchanged.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub path: String,
}

/// How a callback changes a response. `None` (JSON: `null`) leaves a part as it
/// is; an empty map or text clears it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkHookResponseMutation {
    /// All headers.
    #[serde(default, deserialize_with = "lenient::optional_map")]
    pub headers: Option<Headers>,
    /// Texts that are replaced in the body.
    #[serde(
        default,
        deserialize_with = "lenient::objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub body_replacements: Vec<NetworkBodyTransform>,
    /// The whole body, in base64 (RFC 4648 §4, with padding).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_body_base64: Option<String>,
}

impl NetworkHookResponseMutation {
    /// The whole body, if there is one to set.
    ///
    /// # Errors
    /// The text is not base64.
    pub fn set_body(&self) -> Result<Option<Vec<u8>>, base64::DecodeError> {
        let text = self.set_body_base64.as_deref();
        text.map(|text| STANDARD.decode(text)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_leaves_out_what_there_is_not() {
        let request = NetworkHookCallbackRequest {
            callback_id: "network_hook_1".to_owned(),
            host: "a.com".to_owned(),
            request_headers: [("Accept".to_owned(), vec!["*/*".to_owned()])].into(),
            ..Default::default()
        };
        let json = concat!(
            r#"{"callback_id":"network_hook_1","phase":"before","host":"a.com","#,
            r#""request_headers":{"Accept":["*/*"]}}"#
        );
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        let read: NetworkHookCallbackRequest = serde_json::from_str(json).unwrap();
        assert_eq!(read, request);
    }

    #[test]
    fn nothing_and_empty_are_different_answers() {
        let json = concat!(
            r#"{"action":"mutate","request":{"headers":{},"query":null},"#,
            r#""response":{"headers":null,"set_body_base64":""}}"#
        );
        let answer: NetworkHookCallbackResponse = serde_json::from_str(json).unwrap();
        let request = answer.request.as_ref().unwrap();
        assert_eq!(request.headers, Some(Headers::new()));
        assert_eq!(request.query, None);
        let response = answer.response.as_ref().unwrap();
        assert_eq!(response.headers, None);
        assert_eq!(response.set_body(), Ok(Some(vec![])));
        assert_eq!(serde_json::to_string(&answer).unwrap(), json);
    }

    #[test]
    fn a_body_that_is_no_base64_is_an_error() {
        let mut response = NetworkHookResponseMutation::default();
        assert_eq!(response.set_body(), Ok(None));
        response.set_body_base64 = Some("aGk=".to_owned());
        assert_eq!(response.set_body(), Ok(Some(b"hi".to_vec())));
        response.set_body_base64 = Some("?".to_owned());
        assert!(response.set_body().is_err());
    }
}
