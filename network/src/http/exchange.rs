//! One request: judged, sent on, and answered.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flashpan_protocol::network::Protocol;
use http::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{PathAndQuery, Scheme as UriScheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request, response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::Dial;
use super::body::{Gate, Opener, Outgoing, Passing, Reply};
use super::editor::{BodyEdit, Editor, Refused, RequestContext, RequestEdit};
use super::failure::Failure;
use super::head::Fault;
use super::headers;
use super::pool::{Lease, Pool, Taken};
use super::relay::relay;
use super::strict::Switch;
use super::target::Target;
use crate::counted::Counted;
use crate::host::Host;
use crate::meter::Meter;
use crate::policy::{Basis, Code, Denial, Policy, path};
use crate::report::{Outcome, Report, Reporter, Scheme};
use crate::script;

/// What comes after an upgrade.
pub(crate) type Relay = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// All requests of one connection of a guest.
pub(crate) struct Exchange<D> {
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) editor: Arc<dyn Editor>,
    pub(crate) reporter: Reporter,
    pub(crate) pool: Pool<D>,
    /// The host that TLS named, if there is TLS.
    pub(crate) named: Option<Host>,
    /// Where the guest sent it.
    pub(crate) destination: SocketAddr,
    /// With HTTP/1.
    pub(crate) switch: Option<Arc<Switch>>,
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
}

/// A response that the guest may have.
struct Passed {
    parts: response::Parts,
    content: Content,
}

enum Content {
    Whole(Bytes),
    Passing(Passing, Option<Lease>, Option<Arc<Opener>>),
    /// The connections are of another protocol from here on.
    Upgraded(OnUpgrade, OnUpgrade, Target),
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
                // In HTTP/2 a body that is dropped before the answer to it resets the stream,
                // answer and all.
                response.map(|answer| Reply::whole(answer, Some(meter)).beside(body))
            }
        };
        if is_for_upgrade && let Some(switch) = &self.switch {
            switch.decide(response.status() == StatusCode::SWITCHING_PROTOCOLS);
        }
        response
    }

    /// The beginning of what is told of a request: that nothing is known of it.
    fn meter(&self, parts: &request::Parts) -> Meter {
        let scheme = match self.named {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        };
        let host = match (parts.headers.get(HOST), parts.uri.authority()) {
            (_, Some(authority)) => authority.to_string(),
            (Some(host), None) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
            (None, None) => self.destination.to_string(),
        };
        let denial = Denial {
            code: Code::Connect,
            host: host.clone(),
            rule: None,
        };
        let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let url = format!("{}://{host}{path}", scheme.as_str());
        // Dropped before it is known, it is a request whose guest has gone away.
        let mut report = Report::new(scheme, host, Outcome::Refused(denial));
        report.destination = Some(self.destination);
        parts.method.as_str().clone_into(&mut report.method);
        report.url = url;
        Meter::new(self.reporter.clone(), report)
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

    /// Tells of a request that nobody could read.
    pub(crate) fn tell_unread(&self) {
        let scheme = match self.named {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        };
        let denial = Failure::ambiguous(self.place()).denial;
        let mut report = Report::refused(scheme, denial);
        report.destination = Some(self.destination);
        self.reporter.tell(report);
    }

    /// Where a request goes that does not say it.
    fn place(&self) -> String {
        match &self.named {
            Some(host) => format!("{host}:{}", self.destination.port()),
            None => self.destination.to_string(),
        }
    }

    fn reply(&self, passed: Passed, mut meter: Meter) -> Response<Reply> {
        meter.report.status = passed.parts.status.as_u16();
        let body = match passed.content {
            Content::Whole(bytes) => Reply::whole(bytes, Some(meter)),
            Content::Passing(passing, lease, opener) => {
                Reply::passing(passing, meter, lease, opener)
            }
            Content::Upgraded(guest, host, target) => {
                let relay = after_upgrade(guest, host, target, self.policy.clone(), meter);
                *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(relay));
                Reply::whole(Bytes::new(), None)
            }
        };
        Response::from_parts(passed.parts, body)
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
        Ok(Judged {
            target,
            basis,
            path,
            is_ruled,
        })
    }

    async fn pass(
        &self,
        mut parts: request::Parts,
        body: &mut Option<Incoming>,
        upgrade: Option<OnUpgrade>,
        meter: &mut Meter,
    ) -> Result<Passed, Failure> {
        let judged = self.judge(&parts)?;
        let target = judged.target;
        meter.report.host = target.name();
        meter.report.outcome = Outcome::Allowed(judged.basis);
        let version = parts.version;
        let wants_trailers = headers::has_word(&parts.headers, &TE, "trailers");
        headers::strip(&mut parts.headers);
        if judged.is_ruled {
            for name in headers::OVERRIDES {
                parts.headers.remove(name);
            }
        }
        parts.uri = Uri::from(judged.path);
        parts.headers.insert(HOST, target.authority.clone());
        self.ask_script(&target, &parts).await?;
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
            state,
        } = edited.map_err(|refused| fail(refused, meter))?;
        meter.report.secrets = secrets;
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
        if transform
            .as_ref()
            .is_some_and(|transform| !transform.keeps_length())
        {
            parts.headers.remove(CONTENT_LENGTH);
        }
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
        let body = Outgoing::new(Passing::new(body, transform), gate, Arc::clone(&meter.sent));
        let is_upgrade = upgrade.is_some();
        let answered = self.send(&target, parts, body, opener, is_upgrade).await;
        if let Some(refused) = why.as_ref().and_then(|why| why.get()) {
            return Err(fail(refused.clone(), meter));
        }
        let mut answered = answered?;
        let upgraded = hyper::upgrade::on(&mut answered.response);
        let (mut parts, body) = answered.response.into_parts();
        parts.version = version.max(Version::HTTP_11);
        let is_upgraded = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        if is_upgraded && !(is_upgrade && headers::is_websocket(&parts.headers)) {
            return Err(unreachable(&target, StatusCode::BAD_GATEWAY));
        }
        headers::strip(&mut parts.headers);
        parts.headers.remove(ALT_SVC);
        let edited = self.editor.response(&cx, state, &mut parts).await;
        let edited = edited.map_err(|refused| fail(refused, meter))?;
        meter.report.secrets.scrubbed += edited.scrubbed;
        headers::strip(&mut parts.headers);
        if is_upgraded && let Some(guest) = upgrade {
            add_upgrade(&mut parts.headers);
            let content = Content::Upgraded(guest, upgraded, target);
            return Ok(Passed { parts, content });
        }
        let has_body = !is_head
            && !matches!(
                parts.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let (lease, opener) = (answered.lease, answered.opener);
        let content = match edited.body {
            BodyEdit::Replace(bytes) if has_body || is_head => {
                parts.headers.remove(CONTENT_LENGTH);
                Content::Whole(bytes)
            }
            BodyEdit::Transform(transform) => {
                parts.headers.remove(CONTENT_LENGTH);
                let transform = has_body.then_some(transform);
                Content::Passing(Passing::new(body, transform), lease, opener)
            }
            BodyEdit::Replace(_) | BodyEdit::Keep => {
                Content::Passing(Passing::new(body, None), lease, opener)
            }
        };
        Ok(Passed { parts, content })
    }

    /// Shows a request to the policy's script, before any secret is in it.
    async fn ask_script(&self, target: &Target, parts: &request::Parts) -> Result<(), Failure> {
        let policy = Arc::clone(&self.policy.borrow());
        let Some(script) = policy.script.as_ref().filter(|of| of.judges_requests()) else {
            return Ok(());
        };
        let (uri, method) = (&parts.uri, parts.method.as_str());
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let (host, tls) = (target.host.clone(), self.named.is_some());
        let request = script::Request::new(host, target.port, tls, method, path, query);
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
    ) -> Result<Answered, Failure> {
        let mut is_again = false;
        loop {
            let mut taken = self.pool.take(&target.host, is_again).await?;
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
                        lease: self.pool.lease(&target.host, taken.connection, is_sent),
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
                _ if error.is_timeout() => {
                    return Err(unreachable(target, StatusCode::GATEWAY_TIMEOUT));
                }
                _ => return Err(unreachable(target, StatusCode::BAD_GATEWAY)),
            };
            is_again = true;
        }
    }
}

/// A request as it is sent on this connection.
fn outgoing(
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
fn with_opener(
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

fn add_upgrade(headers: &mut http::HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn unreachable(target: &Target, status: StatusCode) -> Failure {
    Failure::new(status, Code::Connect, target.name())
}

fn fail(refused: Refused, meter: &mut Meter) -> Failure {
    let Refused { denial, secrets } = refused;
    let before = std::mem::take(&mut meter.report.secrets);
    let secrets_of = &mut meter.report.secrets;
    *secrets_of = secrets;
    secrets_of.substituted.extend(before.substituted);
    secrets_of.missed.extend(before.missed);
    secrets_of.leaked.extend(before.leaked);
    secrets_of.scrubbed += before.scrubbed;
    denial.into()
}

/// Passes on what two ends say to each other that have agreed on another protocol.
async fn after_upgrade(
    guest: OnUpgrade,
    host: OnUpgrade,
    target: Target,
    mut policy: watch::Receiver<Arc<Policy>>,
    mut meter: Meter,
) -> io::Result<()> {
    let guest = guest.await.map_err(io::Error::other)?;
    let host = host.await.map_err(io::Error::other)?;
    let (sent, received) = (Arc::clone(&meter.sent), Arc::clone(&meter.received));
    let mut guest = Counted::new(TokioIo::new(guest), sent, received);
    let may_be = |policy: &Policy| {
        let connection = policy.connection(Protocol::Tcp, &target.host, target.port);
        connection.map(drop)
    };
    let ended = relay(&mut guest, &mut TokioIo::new(host), &mut policy, may_be).await;
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
