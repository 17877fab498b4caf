//! Proving to a registry who we are (distribution, "Token authentication";
//! OAuth 2 for identity tokens; RFC 7617).
//!
//! A registry that wants to know says how: `Basic`, or `Bearer` and where its
//! token server is. The credentials of a registry go to its own host, and to a
//! token server elsewhere only if the registry named it over TLS: in plain HTTP
//! anybody on the way could have named it. All of them are spoken to over TLS,
//! but for hosts named insecure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::credentials::{Found, Login};
use super::endpoint::Endpoint;
use super::error::{Error, Failure, clean};
use super::options::{Notice, Options};
use super::secret::Secret;
use super::transport::{Ask, Transport, host_of};

/// The longest answer of a token server that is read, in bytes.
const LONGEST_TOKEN: u64 = 256 << 10;
/// What counts if a token server does not say how long a token is good for.
const TOKEN_LIFE: u64 = 60;
/// Tokens are renewed this much before their end, as clocks differ.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);

/// What is known of how registries want to be asked.
#[derive(Debug, Default)]
pub(super) struct Grants {
    slots: StdMutex<HashMap<String, Arc<Slot>>>,
}

/// For one repository of one registry. Who holds the lock gets a grant; the
/// others wait for it instead of asking for one each.
pub(super) type Slot = Mutex<Grant>;

/// What goes with a request.
#[derive(Debug, Default)]
pub(super) struct Grant {
    header: Option<HeaderValue>,
    expires: Option<Instant>,
}

impl Grant {
    /// The header to send now, if there is one.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let over = self
            .expires
            .is_some_and(|expires| expires <= Instant::now());
        self.header.clone().filter(|_| !over)
    }

    /// The header of a grant that was got this moment, however short its life.
    pub(super) fn fresh(&self) -> Option<HeaderValue> {
        self.header.clone()
    }
}

impl Grants {
    pub(super) fn slot(&self, endpoint: &Endpoint) -> Arc<Slot> {
        let key = format!("{}/{}", endpoint.registry, endpoint.repository);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(key).or_default().clone()
    }
}

/// How a registry wants to know who we are.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The answer of a token server.
#[derive(Deserialize)]
struct Token {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

/// Gets what a registry asks for in a 401 answer.
pub(super) async fn grant(
    transport: &Transport,
    options: &Options,
    endpoint: &Endpoint,
    image: &str,
    challenges: &HeaderMap,
) -> Result<Grant, Failure> {
    let challenge = parse(challenges).ok_or_else(|| Error::Unauthorised {
        image: image.to_owned(),
        host: endpoint.registry.clone(),
        why: "it does not say in a way that we know how to log in".to_owned(),
    })?;
    let found = options
        .credentials
        .find(
            &endpoint.registry,
            &endpoint.repository,
            options.deadlines.helper,
        )
        .await;
    for why in &found.problems {
        options.tell(&Notice::Credentials { why: why.clone() });
    }
    let (realm, service) = match (challenge, &found.login) {
        (_, Some(Login::Access(token))) => return Ok(bearer(token, None)?),
        (Challenge::Basic, Some(Login::Password { user, password })) => {
            return Ok(Grant {
                header: Some(basic(user, password)?),
                expires: None,
            });
        }
        (Challenge::Basic, _) => {
            return Err(refused(endpoint, image, &endpoint.registry, &found).into());
        }
        (Challenge::Bearer { realm, service }, _) => (realm, service),
    };
    let secret = matches!(
        found.login,
        Some(Login::Password { .. } | Login::Identity(_))
    );
    let url = realm_url(options, endpoint, image, &realm, secret)?;
    let what = format!("a token for {image}");
    let ask = token_request(
        url,
        endpoint,
        &what,
        service.as_deref(),
        found.login.as_ref(),
    )?;
    let mut answer = transport.ask(&ask).await?;
    match answer.response.status() {
        StatusCode::OK => {}
        // 400 is what OAuth 2 servers answer to a bad refresh token.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            return Err(refused(endpoint, image, &answer.host, &found).into());
        }
        _ => return Err(transport.status(answer, &what).await),
    }
    let host = answer.host.clone();
    let body = Zeroizing::new(
        transport
            .document(&mut answer, &what, LONGEST_TOKEN)
            .await?,
    );
    // The parser's error could quote the token.
    let malformed = |why: &str| Error::Malformed {
        what: what.clone(),
        host: host.clone(),
        why: why.to_owned(),
    };
    let token: Token =
        serde_json::from_slice(&body).map_err(|_| malformed("it is not the JSON of a token"))?;
    let life = Duration::from_secs(token.expires_in.unwrap_or(TOKEN_LIFE).min(24 * 60 * 60));
    let secret = token
        .token
        .filter(|token| !token.expose().is_empty())
        .or(token.access_token)
        .ok_or_else(|| malformed("there is no token in it"))?;
    Ok(bearer(&secret, Some(life))?)
}

/// The error of a registry, or its token server, that does not let us in.
pub(super) fn refused(endpoint: &Endpoint, image: &str, host: &str, found: &Found) -> Error {
    let registry = &endpoint.registry;
    let mut why = if found.login.is_some() {
        format!(
            "it does not accept our credentials, or they do not allow it; check the name, or log \
             in again with `docker login {registry}` or `podman login {registry}`"
        )
    } else {
        format!(
            "it wants a login, or there is no such image; check the name, or log in with `docker \
             login {registry}` or `podman login {registry}`"
        )
    };
    for problem in &found.problems {
        why.push_str("; ");
        why.push_str(problem);
    }
    Error::Unauthorised {
        image: image.to_owned(),
        host: host.to_owned(),
        why,
    }
}

/// Where the token server is, if it is a place to go to, and with a `secret`, one
/// to send credentials to.
fn realm_url(
    options: &Options,
    endpoint: &Endpoint,
    image: &str,
    realm: &str,
    secret: bool,
) -> Result<Url, Error> {
    let refuse = |why: &'static str, to: String| Error::Redirect {
        what: format!("a token for {image}"),
        host: endpoint.registry.clone(),
        to,
        why,
    };
    let url = Url::parse(realm).map_err(|_| refuse("which is no address", clean(realm)))?;
    let host = host_of(&url);
    if secret && !endpoint.is_authenticated() && !endpoint.is_host_of(&url) {
        return Err(refuse(
            "which was named in plain HTTP, where credentials go nowhere but to the registry's own \
             host",
            format!("{}://{host}", url.scheme()),
        ));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if options.may_be_plain(&url) => Ok(url),
        "http" => Err(refuse(
            "in plain HTTP, which is only spoken to registries named insecure",
            format!("http://{host}"),
        )),
        _ => Err(refuse("which is not HTTP", clean(realm))),
    }
}

fn token_request<'a>(
    mut url: Url,
    endpoint: &Endpoint,
    what: &'a str,
    service: Option<&str>,
    login: Option<&Login>,
) -> Result<Ask<'a>, Error> {
    // What the registry itself proposes could be more than reading.
    let scope = format!("repository:{}:pull", endpoint.repository);
    if let Some(Login::Identity(token)) = login {
        let mut form = reqwest::Url::parse("form:").map_err(|_| unsendable())?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or_default())
            .append_pair("client_id", "flashpan")
            .append_pair("scope", &scope)
            .append_pair("refresh_token", token.expose());
        let body = Zeroizing::new(form.query().unwrap_or_default().to_owned());
        drop(Zeroizing::new(String::from(form)));
        let mut ask = Ask::new(url, what);
        ask.form = Some(body);
        return Ok(ask);
    }
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &scope);
    }
    let mut ask = Ask::new(url, what);
    if let Some(Login::Password { user, password }) = login {
        ask.authorization = Some(basic(user, password)?);
    }
    Ok(ask)
}

fn basic(user: &str, password: &Secret) -> Result<HeaderValue, Error> {
    let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
    let coded = base64::engine::general_purpose::STANDARD.encode(pair.as_bytes());
    sensitive(&Zeroizing::new(format!(
        "Basic {}",
        &*Zeroizing::new(coded)
    )))
}

fn bearer(token: &Secret, life: Option<Duration>) -> Result<Grant, Error> {
    let header = sensitive(&Zeroizing::new(format!("Bearer {}", token.expose())))?;
    let expires =
        life.and_then(|life| Instant::now().checked_add(life.saturating_sub(TOKEN_MARGIN)));
    Ok(Grant {
        header: Some(header),
        expires,
    })
}

/// A value that is not shown in debugging output.
fn sensitive(text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| unsendable())?;
    value.set_sensitive(true);
    Ok(value)
}

fn unsendable() -> Error {
    Error::Options {
        why: "the credentials for a registry have characters that cannot be sent".to_owned(),
    }
}

/// The first challenge that we can meet; `Bearer` is better than `Basic`.
fn parse(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        // What comes before something that cannot be read is good.
        let challenges = http_auth::ChallengeParser::new(text).map_while(Result::ok);
        for challenge in challenges {
            let get = |name: &str| {
                let mut params = challenge.params.iter();
                let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = get("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: get("service"),
                    });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests;
