//! What is changed in requests and responses, between the policy, which allows a request,
//! and the host that it goes to.
//!
//! A request passes
//!
//! 1. the rules for requests ([`Hook`]), in their order, each with its callback after it;
//! 2. [`Secrets`]: values come in place of placeholders.
//!
//! A response passes
//!
//! 1. the rules for responses, likewise;
//! 2. the replacements of its body, its content coding undone;
//! 3. the removal of values: neither host nor rule nor callback gives the guest one.
//!
//! Rules and callbacks therefore see placeholders in requests, never values.
//!
//! What remains: a value is found as a whole, and in its usual encodings only. A host that is
//! for a secret can show the value in any other; a part of it, as where it cuts long texts; one
//! byte in each response, where it answers to `Range`
//! ([`Options::forbid_range`]); or in what is no body of a response, as in a WebSocket.

mod body;
mod callback;
mod decode;
mod filter;
mod forms;
mod glob;
mod head;
mod hook;
mod places;
mod query;
mod replace;
mod secret;
mod socket;
mod sse;
mod substitute;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, StatusCode, request, response};
use hyper::ext::ReasonPhrase;

pub use self::callback::{
    Callback, CallbackError, RequestAnswer, RequestSeen, ResponseAnswer, ResponseSeen, on_request,
    on_response,
};
pub use self::filter::Broken;
pub use self::glob::{Glob, GlobError};
pub use self::head::Headers;
pub use self::hook::{Action, Ask, CALLBACK_DEADLINE, Hook, HookError, HookSpec, Phase};
pub use self::places::{PlaceError, Places};
pub use self::secret::{Secret, SecretError, Secrets};
pub use self::socket::SocketCallback;

use self::body::Body;
use self::replace::{Replacer, Table};
use self::secret::Set;
use self::substitute::Substituted;
use crate::host::Host;
use crate::http::{
    BodyEdit, Editor, Later, Refused, RequestContext, RequestEdit, ResponseEdit, State, Transform,
};
use crate::policy::{Code, Denial, path};
use crate::report::SecretUse;

/// How requests and responses are changed beyond what rules and secrets say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether values are taken out of the responses of hosts that secrets are for. Such
    /// responses come without content coding, and one with a coding that cannot be undone
    /// is refused. Values of fewer than four bytes are found everywhere and not taken out.
    pub scrub: bool,
    /// Whether requests to hosts that secrets are for lose their `Range`: part by part a
    /// value could be read without ever being in a response.
    pub forbid_range: bool,
    /// Whether connections to hosts that no secret and no rule is for are passed on as they
    /// are. That a placeholder is sent there, where it is worth nothing, is not seen then.
    pub splice: bool,
    /// Whether all requests are looked at, whatever for.
    pub all: bool,
}

impl Default for Options {
    /// Only [`Self::scrub`].
    fn default() -> Self {
        Self {
            scrub: true,
            forbid_range: false,
            splice: false,
            all: false,
        }
    }
}

/// Changes requests and responses.
#[derive(Debug)]
pub struct Edits {
    hooks: Vec<Hook>,
    secrets: Arc<Secrets>,
    options: Options,
    /// For decoders.
    room: decode::Room,
}

/// What is kept of a request until its response.
struct Kept {
    method: Method,
    /// The path after the rules, with placeholders.
    path: String,
    /// The request as callbacks see it, if one may be asked.
    seen: Option<RequestSeen>,
    set: Arc<Set>,
    /// Whose values are taken out.
    scrubbed: Vec<bool>,
}

impl Edits {
    /// Changes by these rules, in their order, and with these secrets, which can be changed
    /// later.
    #[must_use]
    pub fn new(hooks: Vec<Hook>, secrets: Arc<Secrets>, options: Options) -> Self {
        Self {
            hooks,
            secrets,
            options,
            room: decode::Room::default(),
        }
    }

    fn is_needed(&self, host: &Host, port: u16) -> bool {
        let set = self.secrets.now();
        let of_secrets = match self.options.splice {
            true => set.scrubbed(host, port).contains(&true),
            false => !set.is_empty(),
        };
        self.options.all || of_secrets || self.hooks.iter().any(|hook| hook.is_for(host, port))
    }

    /// The rules of a phase that may concern a host.
    fn hooks(&self, phase: Phase, cx: &RequestContext) -> impl Iterator<Item = &Hook> {
        let is_for = |hook: &&Hook| hook.is_for(&cx.host, cx.port);
        let hooks = self.hooks.iter().filter(move |hook| hook.phase() == phase);
        hooks.filter(move |hook| is_for(hook))
    }

    /// Makes what rules judge the one thing that it can be taken for.
    fn settle(&self, cx: &RequestContext, parts: &mut request::Parts) -> Result<(), Denial> {
        let hooks = || {
            self.hooks
                .iter()
                .filter(|hook| hook.is_for(&cx.host, cx.port))
        };
        if hooks().any(Hook::judges_methods) {
            // Some servers take `post` for POST.
            if parts
                .method
                .as_str()
                .bytes()
                .any(|byte| byte.is_ascii_lowercase())
            {
                return Err(denial(cx, Code::Ambiguous, None));
            }
            crate::http::remove_overrides(&mut parts.headers);
        }
        if hooks().any(Hook::judges_paths) {
            crate::http::remove_overrides(&mut parts.headers);
            let query = head::query(parts).to_owned();
            let path = path::normal(head::path(parts));
            let set = path.and_then(|path| head::set_target(parts, &path, &query));
            set.ok_or_else(|| denial(cx, Code::Ambiguous, None))?;
        }
        Ok(())
    }

    /// What a body with this coding goes through. None if nothing is looked for in it.
    fn filters(
        &self,
        coded: &HeaderMap,
        replacements: &[(String, String)],
        table: Option<&Arc<Table>>,
        headers: &HeaderMap,
    ) -> Result<Option<Body>, Broken> {
        let replacer = body::in_order(replacements, is_events(headers));
        if replacer.is_none() && table.is_none() {
            return Ok(None);
        }
        let mut filters: Vec<Box<dyn filter::Filter>> = Vec::new();
        if let Some(decoder) = decode::decoder(coded, &self.room)? {
            filters.push(Box::new(decoder));
        }
        filters.extend(replacer);
        let scrubber = table.map(|table| Replacer::new(Arc::clone(table)));
        Ok(Some(Body::new(filters, scrubber)))
    }

    async fn edit_request(
        &self,
        cx: &RequestContext,
        parts: &mut request::Parts,
    ) -> Result<RequestEdit, Refused> {
        self.settle(cx, parts)?;
        for hook in self.hooks(Phase::Before, cx) {
            if !hook.matches(&cx.host, cx.port, parts.method.as_str(), head::path(parts)) {
                continue;
            }
            if hook.blocks || hook.change_request(parts).is_none() {
                return Err(denial(cx, Code::Rule, hook.name()).into());
            }
            let Some(ask) = &hook.ask else { continue };
            let seen = RequestSeen::of(&cx.host, parts);
            let answer = answered(ask, ask.callback.before(&seen)).await;
            let applied = match answer {
                Ok(answer) if answer.block => {
                    return Err(denial(cx, Code::Rule, hook.name()).into());
                }
                Ok(answer) => answer.apply(parts),
                Err(error) => Err(error),
            };
            if let Err(error) = applied
                && !ask.fail_open
            {
                return Err(unanswered(cx, hook, &error).into());
            }
        }
        let set = self.secrets.now();
        let bound = set.bound(&cx.host, cx.port);
        let scrubbed = set.scrubbed(&cx.host, cx.port);
        let scrubs = self.options.scrub && scrubbed.contains(&true);
        let asks = self.hooks(Phase::After, cx).any(|hook| hook.ask.is_some());
        let kept = Kept {
            method: parts.method.clone(),
            path: head::path(parts).to_owned(),
            seen: asks.then(|| RequestSeen::of(&cx.host, parts)),
            set: Arc::clone(&set),
            scrubbed,
        };
        let substituted = substitute::substitute(&set, &bound, cx, parts);
        let Substituted {
            secrets,
            body,
            noted,
        } = substituted.map_err(|refused| *refused)?;
        if scrubs && self.options.forbid_range {
            substitute::without_range(&mut parts.headers);
        }
        if scrubs || self.hooks(Phase::After, cx).any(Hook::is_of_bodies) {
            decode::restrict(&mut parts.headers);
            if substitute::has_range(&parts.headers) {
                // Of what is encoded no part can be decoded.
                let identity = HeaderValue::from_static("identity");
                parts.headers.insert(ACCEPT_ENCODING, identity);
            }
        }
        let host = format!("{}:{}", cx.host, cx.port);
        let (body, why) = body.map(|filter| Body::of_request(filter, host)).unzip();
        Ok(RequestEdit {
            body: body.map(|body| -> Box<dyn Transform> { Box::new(body) }),
            why,
            secrets,
            noted,
            state: Some(Box::new(kept)),
        })
    }

    async fn edit_response(
        &self,
        cx: &RequestContext,
        kept: Kept,
        parts: &mut response::Parts,
    ) -> Result<ResponseEdit, Refused> {
        let table = match self.options.scrub {
            true => Some(kept.set.scrubber(&kept.scrubbed)).filter(|table| !table.is_empty()),
            false => None,
        };
        let table = table.as_ref();
        let coded = coding(&parts.headers);
        let mut replacements = Vec::new();
        let mut body: Option<Bytes> = None;
        let (method, path) = (kept.method.as_str(), kept.path.as_str());
        for hook in self.hooks(Phase::After, cx) {
            if !hook.matches(&cx.host, cx.port, method, path) {
                continue;
            }
            if hook.blocks {
                return Err(denial(cx, Code::Rule, hook.name()).into());
            }
            hook.change_response(&mut parts.headers);
            replacements.extend_from_slice(&hook.replacements);
            let (Some(ask), Some(request)) = (&hook.ask, &kept.seen) else {
                continue;
            };
            // It is shown no values either.
            let mut shown = parts.headers.clone();
            if let Some(table) = table {
                substitute::scrub(table, &mut shown);
            }
            let response = ResponseSeen {
                status: parts.status.as_u16(),
                headers: head::seen(&shown),
                is_events: is_events(&parts.headers),
            };
            let answer = answered(ask, ask.callback.after(request, &response)).await;
            let applied = answer.and_then(|answer| {
                let wrong = || CallbackError::Answer("a header is none".to_owned());
                let headers = answer.headers.as_ref();
                let headers = headers.map(|by| head::replace(&parts.headers, by).ok_or_else(wrong));
                Ok((headers.transpose()?, answer))
            });
            match applied {
                Ok((_, answer)) if answer.block => {
                    return Err(denial(cx, Code::Rule, hook.name()).into());
                }
                Ok((headers, answer)) => {
                    if answer.body.is_some() {
                        // The new one has no coding unless it came with it.
                        body = answer.body;
                        parts.headers.remove(CONTENT_ENCODING);
                    }
                    if let Some(headers) = headers {
                        parts.headers = headers;
                    }
                    replacements.extend(answer.replacements);
                }
                Err(_) if ask.fail_open => {}
                Err(error) => return Err(unanswered(cx, hook, &error).into()),
            }
        }
        if table.is_some() {
            // What HTTP/1 says beside a status can be anything.
            parts.extensions.remove::<ReasonPhrase>();
        }
        let mut scrubbed = table.map_or(0, |table| substitute::scrub(table, &mut parts.headers));
        let refused = |scrubbed, why: &Broken| Refused {
            denial: denial(cx, Code::Rule, Some(&why.to_string())),
            secrets: SecretUse {
                scrubbed,
                ..SecretUse::default()
            },
        };
        let is_new = body.is_some();
        let mut coded = if is_new {
            coding(&parts.headers)
        } else {
            coded
        };
        if let Some(table) = table {
            // It is told if it cannot be undone.
            substitute::scrub(table, &mut coded);
        }
        let is_empty = kept.method == Method::HEAD
            || matches!(
                parts.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        if !is_new && is_empty {
            return Ok(ResponseEdit {
                body: BodyEdit::Keep,
                scrubbed,
            });
        }
        let unseen = decode::coded_messages(&parts.headers);
        if let (Some(coding), true) = (unseen, table.is_some()) {
            return Err(refused(scrubbed, &Broken::Coding(coding)));
        }
        let filters = self.filters(&coded, &replacements, table, &parts.headers);
        let filters = filters.map_err(|why| refused(scrubbed, &why))?;
        if filters.is_some() {
            parts.headers.remove(CONTENT_ENCODING);
        }
        let body = match (body, filters) {
            (None, None) => BodyEdit::Keep,
            (None, Some(filters)) => BodyEdit::Transform(Box::new(filters)),
            (Some(body), None) => BodyEdit::Replace(body),
            (Some(body), Some(filters)) => {
                let whole = filters.whole(&body);
                let (body, times) = whole.map_err(|why| refused(scrubbed, &why))?;
                scrubbed += times;
                BodyEdit::Replace(body)
            }
        };
        Ok(ResponseEdit { body, scrubbed })
    }
}

/// The content codings of a body, and nothing else of its headers.
fn coding(headers: &HeaderMap) -> HeaderMap {
    let values = headers.get_all(CONTENT_ENCODING).iter();
    values
        .map(|value| (CONTENT_ENCODING, value.clone()))
        .collect()
}

fn is_events(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let start = value.and_then(|value| value.get(.."text/event-stream".len()));
    start.is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

fn denial(cx: &RequestContext, code: Code, rule: Option<&str>) -> Denial {
    Denial {
        code,
        host: format!("{}:{}", cx.host, cx.port),
        rule: rule.map(str::to_owned),
    }
}

/// The refusal of what a callback had to judge, and did not.
fn unanswered(cx: &RequestContext, hook: &Hook, error: &CallbackError) -> Denial {
    let why = match hook.name() {
        Some(name) => format!("{name}: {error}"),
        None => error.to_string(),
    };
    denial(cx, Code::Callback, Some(&why))
}

/// An answer, if it comes in time.
async fn answered<T>(
    ask: &Ask,
    answer: Later<'_, Result<T, CallbackError>>,
) -> Result<T, CallbackError> {
    let answer = tokio::time::timeout(ask.deadline, answer).await;
    answer.unwrap_or(Err(CallbackError::Deadline))
}

impl Editor for Edits {
    fn needs(&self, host: &Host, port: u16) -> bool {
        self.is_needed(host, port)
    }

    fn request<'a>(
        &'a self,
        cx: &'a RequestContext,
        parts: &'a mut request::Parts,
    ) -> Later<'a, Result<RequestEdit, Refused>> {
        Box::pin(self.edit_request(cx, parts))
    }

    fn response<'a>(
        &'a self,
        cx: &'a RequestContext,
        state: Option<State>,
        parts: &'a mut response::Parts,
    ) -> Later<'a, Result<ResponseEdit, Refused>> {
        Box::pin(async move {
            // Of what request it is, is not known without it: nothing can be said of it.
            let kept = state.and_then(|state| state.downcast::<Kept>().ok());
            let kept = kept.ok_or_else(|| denial(cx, Code::Ambiguous, None))?;
            self.edit_response(cx, *kept, parts).await
        })
    }
}

#[cfg(test)]
mod tests;
