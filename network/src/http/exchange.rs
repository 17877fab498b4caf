//! One request: judged, sent on, and answered.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{ALT_SVC, CONTENT_LENGTH, EXPECT, HOST, TE, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request, response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::Dial;
use super::body::{Outgoing, Passing, Reply, Watched};
use super::editor::{BodyEdit, Editor, Refused, RequestContext, RequestEdit};
use super::failure::Failure;
use super::gate::{Gate, Opener};
use super::head::Fault;
use super::headers;
use super::ongoing::Ongoing;
use super::outgoing::{add_upgrade, outgoing, with_opener};
use super::pool::{self, Lease, Pool};
use super::relay::relay;
use super::strict::Switch;
use super::target::Target;
use super::tasks::{self, Spawner};
use crate::counted::Counted;
use crate::host::Host;
use crate::meter::{Meter, Untold};
use crate::policy::{Basis, Code, Denial, Policy, path};
use crate::report::{Outcome, Reporter};
use crate::script::{self, Script};

mod told;

/// A body of so many bytes or fewer that is changed is read as a whole first.
const READ_AHEAD: u64 = 64 * 1024;

/// What comes after an upgrade.
pub(crate) type Relay = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// All requests of one connection of a guest.
pub(crate) struct Exchange<D> {
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) editor: Arc<dyn Editor>,
    pub(crate) reporter: Reporter,
    pub(crate) dial: Arc<D>,
    pub(crate) pool: Pool<D>,
    pub(crate) spawner: Spawner,
    /// The host that TLS named, if there is TLS.
    pub(crate) named: Option<Host>,
    /// Where the guest sent it.
    pub(crate) destination: SocketAddr,
    /// With HTTP/1.
    pub(crate) switch: Option<Arc<Switch>>,
    /// What is told if nothing is asked for.
    pub(crate) untold: Arc<Untold>,
    /// Why no request may pass.
    pub(crate) refusal: Option<Failure>,
    /// What comes after an upgrade.
    pub(crate) relay: Mutex<Option<Relay>>,
}

/// A request that may be sent.
struct Judged {
    target: Target,
    basis: Basis,
    /// What is left of its URI.
    path: PathAndQuery,
    /// Whether rules tell it from others to the same host.
    is_ruled: bool,
    /// What is to be asked about it.
    script: Option<Script>,
}

/// A response that the guest may have.
struct Passed {
    parts: response::Parts,
    content: Content,
    ongoing: Arc<Ongoing>,
}

enum Content {
    Whole(Bytes),
    Passing(Box<Passing>, Option<Lease>, Option<Arc<Opener>>),
    /// The connections are of another protocol from here on.
    Upgraded(OnUpgrade, OnUpgrade),
}

/// A response of a host, and what it came with.
struct Answered {
    response: Response<Incoming>,
    lease: Option<Lease>,
    opener: Option<Arc<Opener>>,
}

impl<D: Dial> Exchange<D> {
    /// Answers a request, in any case.
    pub(crate) async fn answer(&self, mut request: Request<Incoming>) -> Response<Reply> {
        self.untold.forget();
        let version = request.version();
        let values = request.headers().get_all(UPGRADE).iter();
        let mut words = values.map(HeaderValue::as_bytes);
        let is_for_upgrade = words.any(|word| word.eq_ignore_ascii_case(b"websocket"));
        let is_websocket = version == Version::HTTP_11
            && request.method() == Method::GET
            && headers::is_websocket(request.headers());
        let upgrade = is_websocket.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        let mut meter = self.meter(&parts);
        let passed = match self.fault(&parts.uri) {
            Some(failure) => {
                // There is no request, but what stands for one.
                let report = &mut meter.report;
                (report.method, report.url) = (String::new(), String::new());
                report.host.clone_from(&failure.denial.host);
                Err(failure)
            }
            None => self.pass(parts, &mut body, upgrade, &mut meter).await,
        };
        let response = match passed {
            Ok(passed) => self.reply(passed, meter),
            Err(failure) => {
                meter.report.status = failure.status.as_u16();
                meter.report.outcome = Outcome::Refused(failure.denial.clone());
                let response = failure.response(version);
                response.map(|answer| Reply::whole(answer, Some(meter)).beside(body))
            }
        };
        if is_for_upgrade && let Some(switch) = &self.switch {
            switch.decide(response.status() == StatusCode::SWITCHING_PROTOCOLS);
        }
        response
    }

    /// What was wrong with what this stands for.
    fn fault(&self, uri: &Uri) -> Option<Failure> {
        let fault = self.switch.as_ref()?.fault(uri.path())?;
        let (status, code) = match fault {
            Fault::Unknown => (StatusCode::BAD_REQUEST, Code::UnknownProtocol),
            Fault::Ambiguous => (StatusCode::BAD_REQUEST, Code::Ambiguous),
            Fault::TooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::Ambiguous),
        };
        Some(Failure::new(status, code, self.place()))
    }

    fn reply(&self, passed: Passed, mut meter: Meter) -> Response<Reply> {
        meter.report.status = passed.parts.status.as_u16();
        let body = match passed.content {
            Content::Whole(bytes) => Reply::whole(bytes, Some(meter)),
            Content::Passing(passing, lease, opener) => {
                Reply::passing(passing, meter, lease, opener).watched(self.watch(passed.ongoing))
            }
            Content::Upgraded(guest, host) => {
                let relay = after_upgrade(guest, host, passed.ongoing, meter);
                *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(relay));
                Reply::whole(Bytes::new(), None)
            }
        };
        Response::from_parts(passed.parts, body)
    }

    /// Ends a request when it may not be any more, whoever takes what of it just then.
    fn watch(&self, ongoing: Arc<Ongoing>) -> Watched {
        let (of_watch, end) = (Arc::clone(&ongoing), tasks::end());
        let watch = async move {
            of_watch.revoked().await;
            of_watch.end();
            if let Some(end) = end {
                end.notify_one();
            }
        };
        Watched {
            ongoing,
            watch: self.spawner.spawn(watch),
        }
    }

    /// Decides whether a request may be.
    fn judge(&self, parts: &request::Parts) -> Result<Judged, Failure> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        // What these are for is to reach further than the host, or to see what was added.
        if matches!(parts.method, Method::CONNECT | Method::TRACE) {
            let denial = Denial {
                code: Code::Denied,
                host: parts
                    .uri
                    .authority()
                    .map_or_else(|| self.place(), ToString::to_string),
                rule: Some(format!("no {}", parts.method)),
            };
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return Err(Failure { status, denial });
        }
        let target = Target::of(parts, self.named.as_ref(), self.destination)?;
        let policy = Arc::clone(&self.policy.borrow());
        let as_sent = parts.uri.path();
        let is_ruled = policy.has_rules_for(&target.host, target.port);
        let path = match is_ruled {
            true => path::normal(as_sent).ok_or_else(|| Failure::ambiguous(target.name()))?,
            false => as_sent.to_owned(),
        };
        let basis = policy.request(&target.host, target.port, parts.method.as_str(), &path)?;
        let whole = match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let path = PathAndQuery::try_from(whole).map_err(|_| Failure::ambiguous(target.name()))?;
        let script = policy.script.as_ref().filter(|of| of.judges_requests());
        Ok(Judged {
            target,
            basis,
            path,
            is_ruled,
            script: script.cloned(),
        })
    }

    /// What is to be asked again of a request that was allowed, whenever the policy changes.
    fn ongoing(&self, judged: &Judged, method: &Method) -> Arc<Ongoing> {
        let dial = Arc::clone(&self.dial);
        let (host, port) = (judged.target.host.clone(), judged.target.port);
        let (method, path) = (method.clone(), judged.path.path().to_owned());
        let script = judged.script.clone();
        let may_be = move |policy: &Policy, address| {
            // One that was sent as it is where nothing told paths from each other.
            if policy.has_rules_for(&host, port)
                && path::normal(&path).as_deref() != Some(path.as_str())
            {
                return Err(Failure::ambiguous(format!("{host}:{port}")).denial);
            }
            policy.request(&host, port, method.as_str(), &path)?;
            policy.still_judged_by(script.as_ref(), &host, port)?;
            match address {
                Some(address) => pool::may_stay(&*dial, policy, &host, port, address),
                None => Ok(()),
            }
        };
        Arc::new(Ongoing::new(self.policy.clone(), Box::new(may_be)))
    }

    async fn pass(
        &self,
        parts: request::Parts,
        body: &mut Option<Incoming>,
        upgrade: Option<OnUpgrade>,
        meter: &mut Meter,
    ) -> Result<Passed, Failure> {
        let judged = self.judge(&parts)?;
        meter.report.host = judged.target.name();
        if let Outcome::Refused(given_up) = &mut meter.report.outcome {
            given_up.host.clone_from(&meter.report.host);
        }
        let ongoing = self.ongoing(&judged, &parts.method);
        let passed = tokio::select! {
            biased;
            denial = ongoing.revoked() => Err(denial.into()),
            passed = self.send_on(judged, parts, body, upgrade, meter, &ongoing) => passed,
        };
        if passed.is_err() {
            // What is left of it stays beside the answer.
            if let Some(unread) = ongoing.end() {
                *body = Some(unread);
            }
        }
        passed
    }

    /// Sends a request on, and gets a response to it.
    async fn send_on(
        &self,
        judged: Judged,
        mut parts: request::Parts,
        body: &mut Option<Incoming>,
        upgrade: Option<OnUpgrade>,
        meter: &mut Meter,
        ongoing: &Arc<Ongoing>,
    ) -> Result<Passed, Failure> {
        let target = judged.target;
        let version = parts.version;
        let wants_trailers = headers::has_word(&parts.headers, &TE, "trailers");
        headers::strip(&mut parts.headers);
        headers::join_cookies(&mut parts.headers);
        if judged.is_ruled {
            headers::remove_overrides(&mut parts.headers);
        }
        parts.uri = Uri::from(judged.path);
        parts.headers.insert(HOST, target.authority.clone());
        if let Some(script) = &judged.script {
            self.ask(script, &target, &parts, upgrade.is_some()).await?;
        }
        let cx = RequestContext {
            host: target.host.clone(),
            port: target.port,
            tls: self.named.is_some(),
        };
        let edited = self.editor.request(&cx, &mut parts).await;
        let RequestEdit {
            body: transform,
            why,
            secrets,
            noted,
            state,
        } = edited.map_err(|refused| fail(refused, meter))?;
        meter.report.secrets = secrets;
        meter.noted = noted;
        headers::strip(&mut parts.headers);
        parts.headers.insert(HOST, target.authority.clone());
        if wants_trailers {
            parts
                .headers
                .insert(TE, HeaderValue::from_static("trailers"));
        }
        // It was put there by the only caller.
        let body = body
            .take()
            .ok_or_else(|| Failure::ambiguous(target.name()))?;
        let transform = transform.filter(|_| !body.is_end_stream());
        let changes_length = transform.as_ref().is_some_and(|of| !of.keeps_length());
        let length = match changes_length {
            true => parts.headers.remove(CONTENT_LENGTH),
            false => None,
        };
        let expects = version == Version::HTTP_11
            && !body.is_end_stream()
            && headers::has_word(&parts.headers, &EXPECT, "100-continue");
        if !expects {
            parts.headers.remove(EXPECT);
        }
        let (opener, gate) = match expects {
            true => {
                let (opener, gate) = Gate::new();
                (Some(opener), Some(gate))
            }
            false => (None, None),
        };
        let is_head = parts.method == Method::HEAD;
        let mut passing = Passing::new(body, transform);
        let is_short = |length: u64| length <= READ_AHEAD;
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if !expects && length.is_some_and(is_short) && passing.read_ahead().await.is_err() {
            return Err(match why.as_ref().and_then(|why| why.get()) {
                Some(refused) => fail(refused.clone(), meter),
                // It was the guest's body.
                None => Failure::ambiguous(target.name()),
            });
        }
        let body = Outgoing::new(passing, gate, Arc::clone(&meter.sent));
        ongoing.uploads(body.upload());
        let is_upgrade = upgrade.is_some();
        let sent = self.send(&target, parts, body, opener, is_upgrade, ongoing);
        let answered = sent.await;
        if let Some(refused) = why.as_ref().and_then(|why| why.get()) {
            return Err(fail(refused.clone(), meter));
        }
        let mut answered = answered?;
        meter.report.outcome = Outcome::Allowed(judged.basis);
        let upgraded = hyper::upgrade::on(&mut answered.response);
        let (mut parts, body) = answered.response.into_parts();
        parts.version = version.max(Version::HTTP_11);
        let is_upgraded = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        if is_upgraded && !(is_upgrade && headers::is_websocket(&parts.headers)) {
            let why = "it speaks another protocol from here on";
            return Err(unreachable(&target, StatusCode::BAD_GATEWAY, why));
        }
        if let Some(coding) = headers::transfer_coding(&parts.headers) {
            let why = format!("its response has the transfer coding {coding:?}");
            return Err(unreachable(&target, StatusCode::BAD_GATEWAY, &why));
        }
        headers::strip(&mut parts.headers);
        parts.headers.remove(ALT_SVC);
        let edited = self.editor.response(&cx, state, &mut parts).await;
        let edited = edited.map_err(|refused| fail(refused, meter))?;
        meter.report.secrets.scrubbed += edited.scrubbed;
        headers::strip(&mut parts.headers);
        if is_upgraded && let Some(guest) = upgrade {
            add_upgrade(&mut parts.headers);
            return Ok(Passed {
                parts,
                content: Content::Upgraded(guest, upgraded),
                ongoing: Arc::clone(ongoing),
            });
        }
        let has_body = !is_head
            && !matches!(
                parts.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let (lease, opener) = (answered.lease, answered.opener);
        let content = match edited.body {
            BodyEdit::Replace(bytes) if has_body => {
                parts.headers.remove(CONTENT_LENGTH);
                Content::Whole(bytes)
            }
            // Its head ends it, and tells by that how it ended, as in gRPC: what the guest gets
            // has to end there too.
            BodyEdit::Transform(mut transform) if has_body && body.is_end_stream() => {
                let mut all = Vec::new();
                let finished = transform.finish(&mut all);
                finished.map_err(|error| {
                    unreachable(&target, StatusCode::BAD_GATEWAY, &error.to_string())
                })?;
                match all.is_empty() {
                    true => Content::Passing(Box::new(Passing::new(body, None)), lease, opener),
                    false => {
                        parts.headers.remove(CONTENT_LENGTH);
                        Content::Whole(all.into())
                    }
                }
            }
            BodyEdit::Replace(bytes) if is_head => {
                parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
                Content::Whole(Bytes::new())
            }
            edit => {
                let passing = match edit {
                    // Whatever the host sends all the same nobody has looked at, and nobody
                    // waits for.
                    _ if !has_body => Passing::none(body),
                    BodyEdit::Transform(transform) => {
                        parts.headers.remove(CONTENT_LENGTH);
                        Passing::new(body, Some(transform))
                    }
                    BodyEdit::Replace(_) | BodyEdit::Keep => Passing::new(body, None),
                };
                Content::Passing(Box::new(passing), lease, opener)
            }
        };
        Ok(Passed {
            parts,
            content,
            ongoing: Arc::clone(ongoing),
        })
    }

    /// Shows a request to the policy's script, before any secret is in it.
    async fn ask(
        &self,
        script: &Script,
        target: &Target,
        parts: &request::Parts,
        is_upgrade: bool,
    ) -> Result<(), Failure> {
        let (uri, method) = (&parts.uri, parts.method.as_str());
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let (host, tls) = (target.host.clone(), self.named.is_some());
        let mut request = script::Request::new(host, target.port, tls, method, path, query);
        if is_upgrade {
            request = request.for_websocket();
        }
        Ok(script.request(request.with_headers(&parts.headers)).await?)
    }

    /// Sends a request, and once more if the connection that was used had ended before.
    async fn send(
        &self,
        target: &Target,
        parts: request::Parts,
        mut body: Outgoing,
        opener: Option<Arc<Opener>>,
        is_upgrade: bool,
        ongoing: &Ongoing,
    ) -> Result<Answered, Failure> {
        let mut is_again = false;
        loop {
            let mut taken = self.pool.take(&target.host, is_again).await?;
            ongoing.goes_to(taken.line.address, taken.alone())?;
            let is_sent = body.done();
            let may_repeat = taken.is_used && body.is_end_stream() && parts.method.is_idempotent();
            let request = outgoing(&parts, body, target, &taken, is_upgrade)?;
            let request = with_opener(request, opener.as_ref(), &taken);
            let mut error = match taken.connection.send(request).await {
                Ok(response) => {
                    if let Some(opener) = &opener {
                        opener.answered();
                    }
                    return Ok(Answered {
                        response,
                        lease: self.pool.lease(&target.host, taken, is_sent),
                        opener,
                    });
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            let error = error.into_error();
            body = match unsent {
                // Nobody has looked at it.
                Some(request) if !is_again && taken.is_used => request.into_body(),
                _ if !is_again && may_repeat && !error.is_parse() => Outgoing::empty(),
                // It was the guest's body.
                _ if error.is_user() => return Err(Failure::ambiguous(target.name())),
                _ => {
                    let status = match error.is_timeout() {
                        true => StatusCode::GATEWAY_TIMEOUT,
                        false => StatusCode::BAD_GATEWAY,
                    };
                    return Err(unreachable(target, status, &cause(&error)));
                }
            };
            is_again = true;
        }
    }
}

fn unreachable(target: &Target, status: StatusCode, why: &str) -> Failure {
    Failure::new(status, Code::Connect, target.name()).because(why)
}

/// What an error came of in the end.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn fail(refused: Refused, meter: &mut Meter) -> Failure {
    let Refused { denial, secrets } = refused;
    meter.report.secrets.add(&secrets);
    denial.into()
}

/// Passes on what two ends say to each other that have agreed on another protocol.
async fn after_upgrade(
    guest: OnUpgrade,
    host: OnUpgrade,
    ongoing: Arc<Ongoing>,
    mut meter: Meter,
) -> io::Result<()> {
    let guest = guest.await.map_err(io::Error::other)?;
    let host = host.await.map_err(io::Error::other)?;
    let (sent, received) = (Arc::clone(&meter.sent), Arc::clone(&meter.received));
    let mut guest = Counted::new(TokioIo::new(guest), sent, received);
    let ended = relay(&mut guest, &mut TokioIo::new(host), ongoing.revoked()).await;
    ended.unwrap_or_else(|denial| {
        meter.report.outcome = Outcome::Refused(denial);
        Err(io::ErrorKind::ConnectionAborted.into())
    })
}

impl<D> fmt::Debug for Exchange<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}
