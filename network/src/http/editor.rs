//! The seam at which requests and responses are changed: rules, secrets, hooks.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, request, response};

use crate::host::Host;
use crate::policy::Denial;
use crate::report::{Noted, SecretUse};

/// What an [`Editor`] answers with, later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a request is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestContext {
    /// The host. The policy allows this request to it.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// Whether it is sent in TLS, to a host that has to prove who it is.
    pub tls: bool,
}

/// What changes a body as it passes, from its first byte to its last.
///
/// What it does not need to keep it gives at once: responses may be streams of events.
pub trait Transform: Send {
    /// Takes what came, and puts what may go on to the end of `out`.
    ///
    /// # Errors
    /// The body is broken off, visibly for who gets it.
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<()>;

    /// Puts what is left to the end of `out`: nothing more comes.
    ///
    /// # Errors
    /// The body is broken off, visibly for who gets it.
    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()>;

    /// Whether it gives on as many bytes as it takes, so that the length of the body stays
    /// known. Some servers refuse a body without one.
    fn keeps_length(&self) -> bool {
        false
    }

    /// Whether what it keeps back depends on what nobody may know. What it gives is then passed
    /// on with what follows, if that comes at once, so that nobody can tell.
    fn keeps_back(&self) -> bool {
        false
    }

    /// The longest input that it is to be given: what it makes of that is in memory at once.
    fn piece(&self) -> usize {
        usize::MAX
    }

    /// Changes the trailers, after the last byte and before [`Self::finish`].
    ///
    /// # Errors
    /// The body is broken off, visibly for who gets it.
    fn trailers(&mut self, trailers: &mut HeaderMap) -> io::Result<()> {
        let _ = trailers;
        Ok(())
    }

    /// How often it has taken the value of a secret out so far.
    fn scrubbed(&self) -> u64 {
        0
    }
}

/// What becomes of the body of a response.
#[derive(Default)]
pub enum BodyEdit {
    /// It stays what it is.
    #[default]
    Keep,
    /// It is changed as it passes. It has no known length then.
    Transform(Box<dyn Transform>),
    /// It is this instead, which is sent in one, with its length.
    Replace(Bytes),
}

impl fmt::Debug for BodyEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "Keep",
            Self::Transform(_) => "Transform",
            Self::Replace(_) => "Replace",
        })
    }
}

/// What an editor keeps of a request until its response. It is dropped with the last byte
/// of the response.
pub type State = Box<dyn Any + Send>;

/// A request that may be sent.
#[derive(Default)]
pub struct RequestEdit {
    /// What changes its body, which has no known length then.
    pub body: Option<Box<dyn Transform>>,
    /// Why the request may not pass after all, once its body has been broken off for that.
    pub why: Option<Arc<OnceLock<Refused>>>,
    /// What was done with secrets in its head.
    pub secrets: SecretUse,
    /// What is done with them in its body, as that passes.
    pub noted: Noted,
    /// What [`Editor::response`] gets.
    pub state: Option<State>,
}

impl fmt::Debug for RequestEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestEdit")
            .field("body", &self.body.is_some())
            .field("secrets", &self.secrets)
            .finish_non_exhaustive()
    }
}

/// A response that may be sent to the guest.
#[derive(Debug, Default)]
pub struct ResponseEdit {
    /// What becomes of its body.
    pub body: BodyEdit,
    /// How often the value of a secret was taken out of its head.
    pub scrubbed: u64,
}

/// A request or response that may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What the guest is told.
    pub denial: Denial,
    /// What was done with secrets until then.
    pub secrets: SecretUse,
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Self {
            denial,
            secrets: SecretUse::default(),
        }
    }
}

/// What looks at each request that the policy allows, and at each response to one, and may
/// change both. Nothing of a request has been sent when it is asked.
///
/// It sees heads without the headers that are of one connection (`Connection`, `TE`,
/// `Transfer-Encoding` and so on), and what it puts there of these does not pass. A
/// request's URI has a path and a query and nothing else; its `Host` header is there, and
/// is put back if it is changed. Of HTTP/2 there is nothing to be seen. `Content-Length`
/// is as it was sent; it is put right after a change of the body.
///
/// Futures are dropped when the guest goes away, at any point.
pub trait Editor: Send + Sync + fmt::Debug {
    /// Whether requests to this host have to be looked at. Where not, TLS may be passed on
    /// as it is; what is in the clear is looked at anyway.
    fn needs(&self, host: &Host, port: u16) -> bool;

    /// Looks at the head of a request.
    ///
    /// # Errors
    /// It may not be sent.
    fn request<'a>(
        &'a self,
        cx: &'a RequestContext,
        parts: &'a mut request::Parts,
    ) -> Later<'a, Result<RequestEdit, Refused>>;

    /// Looks at the head of a response; of 1xx only at that of 101, what follows which is
    /// no body. `state` is what [`RequestEdit::state`] was.
    ///
    /// # Errors
    /// The guest may not have it.
    fn response<'a>(
        &'a self,
        cx: &'a RequestContext,
        state: Option<State>,
        parts: &'a mut response::Parts,
    ) -> Later<'a, Result<ResponseEdit, Refused>>;
}

/// Changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Editor for Plain {
    fn needs(&self, _: &Host, _: u16) -> bool {
        false
    }

    fn request<'a>(
        &'a self,
        _: &'a RequestContext,
        _: &'a mut request::Parts,
    ) -> Later<'a, Result<RequestEdit, Refused>> {
        Box::pin(async { Ok(RequestEdit::default()) })
    }

    fn response<'a>(
        &'a self,
        _: &'a RequestContext,
        _: Option<State>,
        _: &'a mut response::Parts,
    ) -> Later<'a, Result<ResponseEdit, Refused>> {
        Box::pin(async { Ok(ResponseEdit::default()) })
    }
}
