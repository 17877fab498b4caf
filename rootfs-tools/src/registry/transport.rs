//! One HTTP request: where it may go, what it may carry there, and what went
//! wrong with it.
//!
//! Redirects are followed here and not by the HTTP client: credentials stay
//! with the origin that they were meant for, and plain HTTP is only spoken to
//! hosts that are named insecure.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Proxy, Request, Response, StatusCode, Url};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{Again, Error, Failure, Tls, clean};
use super::options::Options;
use super::proxy::{self, Routes};
use super::{dns, tls};

/// Redirects that are followed for one request.
const MOST_HOPS: usize = 8;
/// What is read of an answer that explains an error, in bytes.
const LONGEST_EXPLANATION: u64 = 16 << 10;

/// Makes requests.
#[derive(Debug)]
pub(super) struct Transport {
    client: Client,
    options: Arc<Options>,
    routes: Arc<Routes>,
    /// Why no authority is trusted, if that is so.
    nobody: Option<String>,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub(super) url: Url,
    /// What it is for, in messages.
    pub(super) what: &'a str,
    /// The media types that we take.
    pub(super) accept: Option<&'static str>,
    /// The first byte that is wanted, if that is not the first one.
    pub(super) from: u64,
    /// Sent to the origin of `url` and to nobody else.
    pub(super) authorization: Option<HeaderValue>,
    /// A form to send (POST).
    pub(super) form: Option<zeroize::Zeroizing<String>>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(url: Url, what: &'a str) -> Self {
        Self {
            url,
            what,
            accept: None,
            from: 0,
            authorization: None,
            form: None,
        }
    }
}

/// An answer, its body not read yet.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// Who gave it.
    pub(super) host: String,
    /// Is that who was asked, and not one whom it sent us to?
    pub(super) direct: bool,
}

impl Transport {
    pub(super) fn new(options: Arc<Options>) -> Result<Self, Error> {
        let routes = Arc::new(Routes::new(&options.proxies)?);
        let chosen = routes.clone();
        let (tls, nobody) = tls::config(&options)?;
        let builder = Client::builder()
            .user_agent(concat!("flashpan/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .dns_resolver(dns::Resolver::default())
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(options.deadlines.connect)
            .no_proxy()
            .proxy(Proxy::custom(move |url| {
                chosen.of(url).map(|route| route.url().clone())
            }));
        let client = builder.build().map_err(|error| Error::Options {
            why: format!("cannot set HTTP up: {}", innermost(&error)),
        })?;
        Ok(Self {
            client,
            options,
            routes,
            nobody,
        })
    }

    /// Asks, and follows redirects, until there is an answer of another kind.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let origin = ask.url.origin();
        let mut url = ask.url.clone();
        for _ in 0..=MOST_HOPS {
            let host = host_of(&url);
            let direct = url.origin() == origin;
            let response = self.send(ask, &url, direct, &host).await?;
            let Some(next) = redirect(&response) else {
                return Ok(Answer {
                    response,
                    host,
                    direct,
                });
            };
            let refuse = |to: String, why| Error::Redirect {
                what: ask.what.to_owned(),
                host: host.clone(),
                to,
                why,
            };
            let next = url
                .join(&next)
                .map_err(|_| refuse(clean(&next), "which is no address"))?;
            let shown = || format!("{}://{}", next.scheme(), host_of(&next));
            match next.scheme() {
                "https" => {}
                "http" if self.options.may_be_plain(&next) => {}
                "http" => {
                    return Err(refuse(
                        shown(),
                        "in plain HTTP, which is only spoken to registries named insecure",
                    )
                    .into());
                }
                _ => return Err(refuse(shown(), "which is not HTTP").into()),
            }
            if ask.form.is_some() && next.origin() != origin {
                return Err(refuse(shown(), "and the secret stays here").into());
            }
            url = next;
        }
        Err(Error::Redirect {
            what: ask.what.to_owned(),
            host: host_of(&ask.url),
            to: host_of(&url),
            why: "and on and on",
        }
        .into())
    }

    async fn send(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        direct: bool,
        host: &str,
    ) -> Result<Response, Failure> {
        let method = if ask.form.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let mut request = Request::new(method, url.clone());
        let headers = request.headers_mut();
        if let Some(accept) = ask.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(authorization) = ask.authorization.as_ref().filter(|_| direct) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if ask.from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", ask.from))
        {
            headers.insert(RANGE, range);
        }
        if let Some(form) = &ask.form {
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(reqwest::header::CONTENT_TYPE, form_type);
            *request.body_mut() = Some(form.as_bytes().to_vec().into());
        }
        let deadlines = &self.options.deadlines;
        let limit = deadlines.connect + deadlines.idle;
        match timeout(limit, self.client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.explain(&error, url, ask.what)),
            Err(_) => Err(Failure::passing(Error::TimedOut {
                what: ask.what.to_owned(),
                host: host.to_owned(),
                doing: "to answer the request for",
                limit,
            })),
        }
    }

    /// The next piece of a body; nothing at its end. The deadline is for it.
    pub(super) async fn chunk(
        &self,
        answer: &mut Answer,
        what: &str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        match timeout_at(deadline, answer.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.explain(&error, answer.response.url(), what)),
            Err(_) => Err(Failure::passing(Error::TimedOut {
                what: what.to_owned(),
                host: answer.host.clone(),
                doing: "in the middle of",
                limit,
            })),
        }
    }

    /// A whole body of no more than `limit` bytes.
    pub(super) async fn document(
        &self,
        answer: &mut Answer,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let too_large = |size: String| Error::TooLarge {
            what: what.to_owned(),
            size,
            limit,
        };
        if let Some(size) = answer
            .response
            .content_length()
            .filter(|size| *size > limit)
        {
            return Err(too_large(size.to_string()).into());
        }
        let wait = self.options.deadlines.document;
        let deadline = Instant::now() + wait;
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(answer, what, deadline, wait).await? {
            let chunk = chunk.as_ref();
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large("more".to_owned()).into());
            }
            body.extend_from_slice(chunk);
        }
        Ok(body)
    }

    /// The error that a status other than success means, but for those that
    /// mean something in particular to the one who asked.
    pub(super) async fn status(&self, mut answer: Answer, what: &str) -> Failure {
        let status = answer.response.status();
        let wait = retry_after(&answer.response);
        // Registries have no such status: in plain HTTP, proxies answer for them.
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
            && let Some(route) = self.routes.of(answer.response.url())
        {
            let host = format!("{} through {route}", answer.host);
            let why = proxy::LOGIN.to_owned();
            return Error::Connect { host, why }.into();
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Failure {
                error: Error::RateLimited {
                    host: answer.host,
                    wait,
                },
                again: Again::After(wait),
            };
        }
        let body = self.document(&mut answer, what, LONGEST_EXPLANATION).await;
        let body = body.unwrap_or_default();
        let mut text = code(&body);
        // What servers in Go say.
        let wants_tls = String::from_utf8_lossy(&body).contains("HTTP request to an HTTPS server");
        if status == StatusCode::BAD_REQUEST && wants_tls {
            text = "it is named insecure and speaks HTTPS".to_owned();
        }
        let error = Error::Status {
            what: what.to_owned(),
            host: answer.host,
            status: status.as_u16(),
            text,
        };
        let again = if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
            Again::After(wait)
        } else {
            Again::Never
        };
        Failure { error, again }
    }

    /// What an error of the HTTP client means.
    fn explain(&self, error: &reqwest::Error, url: &Url, what: &str) -> Failure {
        let route = self.routes.of(url);
        if let Some(dns) = find::<dns::Failure>(error) {
            let mut why = clean(&dns.why.why);
            let host = match route {
                Some(route) if url.host_str() != Some(dns.name.as_str()) => route.to_string(),
                Some(route) => {
                    // Only here because it is asked for an address.
                    why.push_str(&format!("; {route} looks it up itself as socks5h://"));
                    host_of(url)
                }
                None => host_of(url),
            };
            let definite = dns.why.definite;
            let error = Error::Name { host, why };
            return if definite {
                error.into()
            } else {
                Failure::passing(error)
            };
        }
        let host = match route {
            Some(route) => format!("{} through {route}", host_of(url)),
            None => host_of(url),
        };
        if let Some(error) = find::<rustls::Error>(error) {
            let why = match (tls::explain(error), &self.nobody) {
                (Tls::UnknownAuthority, Some(why)) => Tls::NoAuthorities(why.clone()),
                (why, _) => why,
            };
            return Error::Tls { host, why }.into();
        }
        if error.is_connect() && error.is_timeout() {
            return Failure::passing(Error::TimedOut {
                what: what.to_owned(),
                host,
                doing: "to connect for",
                limit: self.options.deadlines.connect,
            });
        }
        let text = innermost(error);
        if route.is_some() && error.is_connect() && proxy::wants_login(&text) {
            let why = proxy::LOGIN.to_owned();
            return Error::Connect { host, why }.into();
        }
        let kind = find::<io::Error>(error).map(io::Error::kind);
        let why = match kind {
            Some(io::ErrorKind::ConnectionRefused) if route.is_some() => {
                "the proxy refuses connections; is its port right, and does it run?".to_owned()
            }
            _ if route.is_some() && proxy::is_away(&text) => {
                "the proxy cannot be reached; is its port right, and does it run?".to_owned()
            }
            Some(io::ErrorKind::ConnectionRefused) => {
                "connection refused; is the port right, and does the registry run?".to_owned()
            }
            Some(io::ErrorKind::UnexpectedEof) => "it was closed".to_owned(),
            _ if route.is_some() && proxy::refuses(&text) => {
                "the proxy does not let us through, or cannot reach it".to_owned()
            }
            _ => clean(&text),
        };
        Failure::passing(if error.is_connect() {
            Error::Connect { host, why }
        } else {
            let what = what.to_owned();
            Error::Broken { what, host, why }
        })
    }
}

/// `HOST`, or `HOST:PORT` if it is not the scheme's.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn redirect(response: &Response) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    Some(location.to_owned())
}

/// Seconds; the other form, a date, is not used by registries.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// What an answer says about an error in the form of registries: its code, such
/// as `NAME_UNKNOWN`. Of anything else nothing is repeated: a server can echo the
/// credentials that it was sent, in whatever form.
fn code(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
    }
    let body = serde_json::from_slice::<Body>(body).ok();
    let code = body.and_then(|body| body.errors.into_iter().next());
    code.map(|item| item.code)
        .filter(|code| CODES.contains(&code.as_str()))
        .unwrap_or_default()
}

/// The codes of the OCI distribution specification, and one more of docker's.
const CODES: [&str; 15] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DENIED",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "TOOMANYREQUESTS",
    "UNAUTHORIZED",
    "UNKNOWN",
    "UNSUPPORTED",
];

/// The first error of a type among the causes of another. Errors of I/O keep
/// theirs where `source` does not show it.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref::<T>() {
        return Some(found);
    }
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
        .and_then(|inner| find::<T>(inner));
    inner.or_else(|| find::<T>(error.source()?))
}

/// The text of the last of the causes: the others only say what was tried,
/// and some repeat URLs.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn of_an_error_only_a_known_code_is_repeated() {
        let answer = br#"{"errors":[{"code":"DENIED","message":"authorization=Basic am9l"}]}"#;
        assert_eq!(code(answer), "DENIED");
        for echo in [
            &br#"{"errors":[{"code":"am9lOmh1bnRlcjI="}]}"#[..],
            br#"{"errors":[]}"#,
            b"authorization=Basic am9lOmh1bnRlcjI=",
            b"",
        ] {
            assert_eq!(code(echo), "");
        }
    }
}
