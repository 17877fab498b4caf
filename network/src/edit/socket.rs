//! Callbacks behind a Unix socket: a line of JSON each way, each time on a connection of its
//! own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::callback::{
    Callback, CallbackError, RequestAnswer, RequestSeen, ResponseAnswer, ResponseSeen,
};
use super::head::Headers;
use crate::host::shown;
use crate::http::Later;

/// The longest answer, in bytes: a body of 48 MiB.
const MAX_ANSWER: u64 = 64 << 20;

/// For how many seconds a question waits for those before it, at most.
const WAIT_IN_LINE: i64 = 60;

/// Asks about one thing at a socket.
#[derive(Debug, Clone)]
pub struct SocketCallback {
    /// Where the socket is.
    pub path: PathBuf,
    /// What is asked about: the `callback_id`.
    pub id: String,
}

/// What is asked. What is empty is left out.
#[derive(Serialize)]
struct Question<'a> {
    callback_id: &'a str,
    phase: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    request_headers: &'a Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers: Option<&'a Headers>,
    #[serde(skip_serializing_if = "is_false")]
    is_sse: bool,
}

// Serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// What is answered. `null` is as good as nothing.
#[derive(Deserialize, Default)]
struct Answer {
    action: Option<String>,
    request: Option<RequestChange>,
    response: Option<ResponseChange>,
    error: Option<String>,
}

/// Names and lists of values, which may be `null`.
type Lists = BTreeMap<String, Option<Vec<String>>>;

#[derive(Deserialize, Default)]
struct RequestChange {
    headers: Option<Lists>,
    query: Option<BTreeMap<String, String>>,
    path: Option<String>,
}

#[derive(Deserialize, Default)]
struct ResponseChange {
    headers: Option<Lists>,
    body_replacements: Option<Vec<Replacement>>,
    set_body_base64: Option<String>,
}

#[derive(Deserialize)]
struct Replacement {
    find: Option<String>,
    replace: Option<String>,
}

impl Answer {
    fn blocks(&self) -> bool {
        let action = self.action.as_deref().unwrap_or_default();
        action.trim().eq_ignore_ascii_case("block")
    }
}

fn headers(lists: Option<Lists>) -> Option<Headers> {
    let lists = lists?.into_iter();
    let headers = lists.map(|(name, values)| (name, values.unwrap_or_default()));
    Some(headers.collect())
}

impl SocketCallback {
    async fn ask(&self, question: &Question<'_>) -> Result<Answer, CallbackError> {
        let unreachable = |error: io::Error| CallbackError::Unreachable(error.to_string());
        let wrong = |what: &str| CallbackError::Answer(what.to_owned());
        let line = serde_json::to_vec(question);
        let mut line = line.map_err(|error| unreachable(error.into()))?;
        line.push(b'\n');
        let mut stream = connect(&self.path).await.map_err(unreachable)?;
        stream.write_all(&line).await.map_err(unreachable)?;
        let mut answer = Vec::new();
        let mut stream = BufReader::new(stream.take(MAX_ANSWER + 1));
        let read = stream.read_until(b'\n', &mut answer).await;
        if u64::try_from(read.map_err(unreachable)?).unwrap_or(u64::MAX) > MAX_ANSWER {
            return Err(wrong("it is longer than 64 MiB"));
        }
        // What JSON is wrong is told, but not what is in it.
        let answer: Result<Answer, _> = serde_json::from_slice(&answer);
        let answer = answer.map_err(|error| {
            let (line, column) = (error.line(), error.column());
            CallbackError::Answer(format!("it is no JSON of an answer ({line}:{column})"))
        })?;
        match answer.error.as_deref().map(str::trim) {
            Some(error) if !error.is_empty() => Err(CallbackError::Failed(shown(error))),
            _ => Ok(answer),
        }
    }

    fn question<'a>(&'a self, phase: &'static str, request: &'a RequestSeen) -> Question<'a> {
        Question {
            callback_id: &self.id,
            phase,
            host: &request.host,
            method: &request.method,
            path: &request.path,
            query: &request.query,
            request_headers: &request.headers,
            status_code: None,
            response_headers: None,
            is_sse: false,
        }
    }
}

/// Connects to a socket; if more wait for it already than may, as one of those that wait. A
/// socket that does not block is told of no end of that, so a thread waits for it.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        connected => return connected,
    }
    let address = UnixAddr::new(path)?;
    let waited = tokio::task::spawn_blocking(move || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // Longer than that no rule waits.
        let within = TimeVal::seconds(WAIT_IN_LINE);
        setsockopt(&socket, sockopt::SendTimeout, &within)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
        Ok::<_, io::Error>(std::os::unix::net::UnixStream::from(socket))
    });
    let stream = waited.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl Callback for SocketCallback {
    fn before<'a>(
        &'a self,
        request: &'a RequestSeen,
    ) -> Later<'a, Result<RequestAnswer, CallbackError>> {
        Box::pin(async move {
            let answer = self.ask(&self.question("before", request)).await?;
            let block = answer.blocks();
            let change = answer.request.unwrap_or_default();
            Ok(RequestAnswer {
                block,
                headers: headers(change.headers),
                query: change.query,
                path: change.path.filter(|path| !path.is_empty()),
            })
        })
    }

    fn after<'a>(
        &'a self,
        request: &'a RequestSeen,
        response: &'a ResponseSeen,
    ) -> Later<'a, Result<ResponseAnswer, CallbackError>> {
        Box::pin(async move {
            let question = Question {
                status_code: Some(response.status).filter(|status| *status != 0),
                response_headers: Some(&response.headers).filter(|headers| !headers.is_empty()),
                is_sse: response.is_events,
                ..self.question("after", request)
            };
            let answer = self.ask(&question).await?;
            let block = answer.blocks();
            let change = answer.response.unwrap_or_default();
            let body = change.set_body_base64.map(|text| STANDARD.decode(text));
            let wrong = |_| CallbackError::Answer("set_body_base64 is no base64".to_owned());
            let replacements = change.body_replacements.unwrap_or_default().into_iter();
            Ok(ResponseAnswer {
                block,
                headers: headers(change.headers),
                replacements: replacements
                    .map(|one| {
                        (
                            one.find.unwrap_or_default(),
                            one.replace.unwrap_or_default(),
                        )
                    })
                    .filter(|(find, _)| !find.is_empty())
                    .collect(),
                body: body.transpose().map_err(wrong)?.map(Bytes::from),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::net::UnixListener;

    use super::super::hook::tests::{map, strings};
    use super::*;

    /// Asks a server that answers each connection with one of these, and gives what it was
    /// asked.
    async fn asked<T>(
        answer: &[u8],
        ask: impl AsyncFnOnce(SocketCallback) -> T,
    ) -> (T, serde_json::Value) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("callbacks");
        let listener = UnixListener::bind(&path).unwrap();
        let id = "network_hook_1".to_owned();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).await.unwrap();
            // Whoever has read enough may have gone.
            let _ = stream.write_all(answer).await;
            serde_json::from_slice(&line).unwrap()
        };
        tokio::join!(ask(SocketCallback { path, id }), serve)
    }

    async fn before(answer: &[u8]) -> Result<RequestAnswer, CallbackError> {
        let request = RequestSeen::default();
        let asked = asked(answer, async |callback| callback.before(&request).await);
        asked.await.0
    }

    async fn after(answer: &[u8]) -> Result<ResponseAnswer, CallbackError> {
        let (request, response) = (RequestSeen::default(), ResponseSeen::default());
        let ask = async |callback: SocketCallback| callback.after(&request, &response).await;
        asked(answer, ask).await.0
    }

    #[tokio::test]
    async fn what_is_empty_is_left_out() {
        let request = RequestSeen {
            host: "a.test".to_owned(),
            method: "GET".to_owned(),
            path: "/x".to_owned(),
            query: map(&[("q", "1")]),
            headers: [("Accept".to_owned(), strings(&["a", "b"]))].into(),
        };
        let ask = async |callback: SocketCallback| callback.before(&request).await;
        let (answer, question) = asked(b"{}\n", ask).await;
        assert_eq!(answer, Ok(RequestAnswer::default()));
        let mut expected = serde_json::json!({
            "callback_id": "network_hook_1", "phase": "before", "host": "a.test",
            "method": "GET", "path": "/x", "query": {"q": "1"},
            "request_headers": {"Accept": ["a", "b"]},
        });
        assert_eq!(question, expected);
        let response = ResponseSeen {
            status: 200,
            headers: [("X".to_owned(), strings(&["1"]))].into(),
            is_events: true,
        };
        let ask = async |callback: SocketCallback| callback.after(&request, &response).await;
        let (_, question) = asked(b"{}", ask).await;
        expected["phase"] = "after".into();
        expected["status_code"] = 200.into();
        expected["response_headers"] = serde_json::json!({"X": ["1"]});
        expected["is_sse"] = true.into();
        assert_eq!(question, expected);
        let none = RequestSeen::default();
        let ask = async |callback: SocketCallback| callback.before(&none).await;
        let (_, question) = asked(b"{}", ask).await;
        let expected = serde_json::json!({"callback_id": "network_hook_1", "phase": "before"});
        assert_eq!(question, expected);
    }

    #[tokio::test]
    async fn nothing_and_empty_are_different_answers() {
        let none = RequestAnswer::default;
        let header = |values: &[&str]| Some([("A".to_owned(), strings(values))].into());
        for (json, answer) in [
            (r#"{"action":"allow","request":null,"error":" "}"#, none()),
            (
                r#"{"action":" BLOCK "}"#,
                RequestAnswer {
                    block: true,
                    ..none()
                },
            ),
            (r#"{"action":"later","other":1}"#, none()),
            (
                r#"{"request":{"headers":null,"query":null,"path":""}}"#,
                none(),
            ),
            (
                r#"{"request":{"headers":{},"query":{},"path":"/x"}}"#,
                RequestAnswer {
                    headers: Some(Headers::new()),
                    query: Some(BTreeMap::new()),
                    path: Some("/x".to_owned()),
                    ..none()
                },
            ),
            (
                r#"{"action":"mutate","request":{"headers":{"A":["1","2"]}}}"#,
                RequestAnswer {
                    headers: header(&["1", "2"]),
                    ..none()
                },
            ),
            (
                r#"{"request":{"headers":{"A":null}}}"#,
                RequestAnswer {
                    headers: header(&[]),
                    ..none()
                },
            ),
        ] {
            let line = format!("{json}\nnot read");
            assert_eq!(before(line.as_bytes()).await, Ok(answer), "{json}");
        }
        let none = ResponseAnswer::default;
        for (json, answer) in [
            (r#"{"response":{"set_body_base64":null}}"#, none()),
            (
                r#"{"response":{"set_body_base64":""}}"#,
                ResponseAnswer {
                    body: Some(Bytes::new()),
                    ..none()
                },
            ),
            (
                r#"{"response":{"set_body_base64":"aGk=","body_replacements":[{"find":"a"},{"find":""}]}}"#,
                ResponseAnswer {
                    body: Some(Bytes::from_static(b"hi")),
                    replacements: vec![("a".to_owned(), String::new())],
                    ..none()
                },
            ),
        ] {
            assert_eq!(after(json.as_bytes()).await, Ok(answer), "{json}");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer() {
        for answer in ["", "\n", "x", "[]", r#"{"request":1}"#, r#"{"action":"#] {
            let refused = before(answer.as_bytes()).await;
            assert!(matches!(refused, Err(CallbackError::Answer(_))), "{answer}");
        }
        let failed = before(br#"{"error":" network hook callback not found "}"#).await;
        let why = "network hook callback not found".to_owned();
        assert_eq!(failed, Err(CallbackError::Failed(why)));
        let refused = after(br#"{"response":{"set_body_base64":"?"}}"#).await;
        assert!(matches!(refused, Err(CallbackError::Answer(_))));
        let nobody = SocketCallback {
            path: "/nonexistent/socket".into(),
            id: String::new(),
        };
        let refused = nobody.before(&RequestSeen::default()).await;
        assert!(matches!(refused, Err(CallbackError::Unreachable(_))));
    }

    /// More questions than may wait for an answer at once wait for the others.
    #[tokio::test]
    async fn a_callback_that_is_busy_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("callbacks");
        let address = UnixAddr::new(&path).unwrap();
        let listener = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        );
        let listener = listener.unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &address).unwrap();
        // One waits, beside the one that is served.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let listener = std::os::unix::net::UnixListener::from(listener);
        let request = RequestSeen::default();
        let callback = SocketCallback {
            path,
            id: String::new(),
        };
        let ask = || callback.before(&request);
        let questions = async { tokio::join!(ask(), ask(), ask(), ask(), ask(), ask()) };
        let mut questions = Box::pin(questions);
        // All have tried before anybody is served.
        let first = std::future::poll_fn(|cx| Poll::Ready(questions.as_mut().poll(cx))).await;
        assert!(first.is_pending());
        let served = std::thread::spawn(move || {
            for _ in 0..6 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                io::BufRead::read_line(&mut io::BufReader::new(&stream), &mut line).unwrap();
                io::Write::write_all(&mut stream, b"{}\n").unwrap();
            }
        });
        let (a, b, c, d, e, f) = questions.await;
        for answer in [a, b, c, d, e, f] {
            assert_eq!(answer, Ok(RequestAnswer::default()));
        }
        served.join().unwrap();
    }

    #[tokio::test]
    async fn an_answer_has_a_limit() {
        let endless = vec![b' '; (64 << 20) + 1];
        let refused = before(&endless).await;
        let CallbackError::Answer(why) = refused.unwrap_err() else {
            panic!("another error");
        };
        assert!(why.contains("64 MiB"));
    }
}
