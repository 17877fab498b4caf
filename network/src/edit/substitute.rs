//! Placeholders in requests: where they may be, values come in their place; where they may
//! not be, the request does not pass.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, request};
use zeroize::Zeroizing;

use super::filter::{Broken, Filter};
use super::forms::{Bytes, Decoded, json, percent, percent_all};
use super::head;
use super::replace::{Replacement, Replacer, Table};
use super::secret::{Secret, Set};
use crate::http::{Refused, RequestContext};
use crate::policy::{Code, Denial};
use crate::report::{Noted, SecretUse};

/// The longest head of a request after values came in.
pub(super) const MAX_HEAD: usize = 256 << 10;

/// Base64 as clients write it in `Basic`: with padding or without.
const BASIC: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What was found in a request, by the number of the secret.
#[derive(Default)]
struct Found {
    substituted: BTreeSet<usize>,
    missed: BTreeSet<usize>,
    leaked: BTreeSet<usize>,
}

struct Work<'a> {
    set: &'a Set,
    /// Which secrets are for this host.
    bound: &'a [bool],
    tls: bool,
    found: Found,
    /// What values may still make of the head.
    room: usize,
    is_long: bool,
}

/// What was done with a request.
#[derive(Default)]
pub(super) struct Substituted {
    pub(super) secrets: SecretUse,
    /// What is to be done with the body.
    pub(super) body: Option<Box<dyn Filter>>,
    /// What that finds.
    pub(super) noted: Noted,
}

/// Puts values in place of placeholders in a request for the host of these `bound` secrets.
pub(super) fn substitute(
    set: &Arc<Set>,
    bound: &[bool],
    cx: &RequestContext,
    parts: &mut request::Parts,
) -> Result<Substituted, Box<Refused>> {
    if set.is_empty() {
        return Ok(Substituted::default());
    }
    let denial = |code, rule: String| Denial {
        code,
        host: format!("{}:{}", cx.host, cx.port),
        rule: Some(rule),
    };
    // It would send the headers back.
    if parts.method == Method::TRACE && bound.contains(&true) {
        let rule = "no TRACE to a host that a secret is for".to_owned();
        return Err(Box::new(denial(Code::Rule, rule).into()));
    }
    let mut work = Work {
        set,
        bound,
        tls: cx.tls,
        found: Found::default(),
        room: MAX_HEAD,
        is_long: false,
    };
    let headers = work.headers(&parts.headers);
    let target = work.target(parts);
    let noted = Noted::default();
    let body = work.body(&parts.headers, &noted);
    let names = |owners: &BTreeSet<usize>| set.names(owners.iter().copied());
    let is_long = work.is_long;
    let mut secrets = SecretUse {
        substituted: names(&work.found.substituted),
        missed: names(&work.found.missed),
        leaked: names(&work.found.leaked),
        scrubbed: 0,
    };
    let refused = |denial, secrets: &mut SecretUse| {
        // Nothing of it was sent.
        secrets.substituted.clear();
        let secrets = std::mem::take(secrets);
        Box::new(Refused { denial, secrets })
    };
    if !secrets.leaked.is_empty() {
        let rule = format!("secret {}", secrets.leaked.join(", "));
        return Err(refused(denial(Code::SecretLeak, rule), &mut secrets));
    }
    let long = || {
        let rule = "a head of at most 256 KiB, with the values of secrets".to_owned();
        denial(Code::Rule, rule)
    };
    if let Some(headers) = headers {
        parts.headers = headers;
    }
    if let Some((path, query)) = target {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).ok();
        let set = text(&path).zip(text(&query));
        let set = set.and_then(|(path, query)| head::set_target(parts, &path, &query));
        if set.is_none() {
            return Err(refused(long(), &mut secrets));
        }
    }
    let target = head::path(parts).len() + head::query(parts).len();
    if is_long || head::len(&parts.headers) + target > MAX_HEAD {
        return Err(refused(long(), &mut secrets));
    }
    Ok(Substituted {
        secrets,
        body,
        noted,
    })
}

impl Work<'_> {
    /// Whether the value of a secret may be in a place, which is noted.
    fn value(&mut self, owner: usize, is_place: impl Fn(&Secret) -> bool) -> Option<&str> {
        if self.bound.get(owner) != Some(&true) {
            self.found.leaked.insert(owner);
            return None;
        }
        let secret = self.set.get(owner)?;
        if !(is_place(secret) && (self.tls || secret.plain_http)) {
            self.found.missed.insert(owner);
            return None;
        }
        self.found.substituted.insert(owner);
        Some(&secret.value)
    }

    /// Notes whose placeholders are in a text, in any form, that may not be there.
    fn disguised(&mut self, text: &[u8]) {
        let set = self.set;
        let is_bound = |owner: usize| self.bound.get(owner) == Some(&true);
        let mut once = Decoded::of(text).bytes;
        // Encoded once or twice.
        let twice = Decoded::of(&once).bytes;
        once.push(0);
        once.extend(twice);
        let found = set.disguises.matches(text);
        let found = found.chain(set.placeholders.matches(&once));
        let owners = found.map(|(_, one)| one.owner);
        let leaked = owners.filter(|owner| !is_bound(*owner));
        self.found.leaked.extend(leaked);
    }

    /// Puts values at these places of a text. None if there is nothing to put.
    fn put(
        &mut self,
        text: &[u8],
        places: impl Iterator<Item = (Range<usize>, usize)>,
        is_place: impl Fn(&Secret) -> bool,
        form: fn(&[u8]) -> Bytes,
    ) -> Option<Bytes> {
        let mut out = Zeroizing::new(Vec::new());
        let (mut done, mut changed) = (0, false);
        for (range, owner) in places {
            let Some(value) = self.value(owner, &is_place) else {
                continue;
            };
            let value = form(value.as_bytes());
            let Some(room) = self.room.checked_sub(value.len()) else {
                self.is_long = true;
                continue;
            };
            self.room = room;
            out.extend_from_slice(text.get(done..range.start).unwrap_or_default());
            out.extend_from_slice(&value);
            done = range.end;
            changed = true;
        }
        out.extend_from_slice(text.get(done..).unwrap_or_default());
        changed.then_some(out)
    }

    /// The same with placeholders as they are.
    fn plain(&mut self, text: &[u8], is_place: impl Fn(&Secret) -> bool) -> Option<Bytes> {
        let set = self.set;
        let places = set.placeholders.matches(text);
        let places = places.map(|(range, one)| (range, one.owner));
        self.put(text, places, is_place, |value| {
            Zeroizing::new(value.to_vec())
        })
    }

    /// The same in a part of a URL, where placeholders may be percent-encoded and values
    /// always are.
    fn encoded(&mut self, text: &str, is_place: impl Fn(&Secret) -> bool) -> Option<Bytes> {
        let set = self.set;
        self.disguised(text.as_bytes());
        let decoded = Decoded::of(text.as_bytes());
        let places = set.placeholders.matches(&decoded.bytes);
        let places = places.map(|(range, one)| (decoded.origin(range), one.owner));
        self.put(text.as_bytes(), places, is_place, percent_all)
    }

    fn headers(&mut self, headers: &HeaderMap) -> Option<HeaderMap> {
        let mut all: Option<HeaderMap> = None;
        let mut changes = Vec::new();
        for (index, (name, value)) in headers.iter().enumerate() {
            self.disguised(value.as_bytes());
            let is_named = |secret: &Secret| {
                let named = secret.headers.as_ref();
                head::is_free(name) && named.is_none_or(|named| named.contains(name))
            };
            let changed = match self.basic(value, is_named) {
                Some(changed) => Some(changed),
                None => self.plain(value.as_bytes(), |secret| {
                    secret.places.headers && is_named(secret)
                }),
            };
            if let Some(changed) = changed {
                changes.push((index, changed));
            }
        }
        let mut changes = changes.into_iter().peekable();
        changes.peek()?;
        for (index, (name, value)) in headers.iter().enumerate() {
            let changed = changes.next_if(|(changed, _)| *changed == index);
            let value = match changed {
                Some((_, changed)) => match HeaderValue::from_bytes(&changed) {
                    Ok(mut value) => {
                        value.set_sensitive(true);
                        value
                    }
                    // Values have no control characters; whatever it is, it does not pass.
                    Err(_) => {
                        self.is_long = true;
                        continue;
                    }
                },
                None => value.clone(),
            };
            let all = all.get_or_insert_default();
            if all.try_append(name.clone(), value).is_err() {
                self.is_long = true;
            }
        }
        all
    }

    /// Puts values into credentials of `Basic`. None if there is nothing to put.
    fn basic(&mut self, value: &HeaderValue, is_named: impl Fn(&Secret) -> bool) -> Option<Bytes> {
        let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let decoded = Zeroizing::new(BASIC.decode(rest.trim_ascii()).ok()?);
        let changed = self.plain(&decoded, |secret| secret.places.basic && is_named(secret))?;
        let encoded = Zeroizing::new(BASIC.encode(&*changed));
        let mut whole = Zeroizing::new(scheme.to_vec());
        whole.extend_from_slice(encoded.as_bytes());
        Some(whole)
    }

    /// The path and query with values. None if there is nothing to put.
    fn target(&mut self, parts: &request::Parts) -> Option<(Bytes, Bytes)> {
        let (path, query) = (head::path(parts), head::query(parts));
        let new_path = self.encoded(path, |secret| secret.places.path);
        let new_query = self.encoded(query, |secret| secret.places.query);
        if new_path.is_none() && new_query.is_none() {
            return None;
        }
        let or = |new: Option<Bytes>, old: &str| {
            new.unwrap_or_else(|| Zeroizing::new(old.as_bytes().to_vec()))
        };
        Some((or(new_path, path), or(new_query, query)))
    }

    /// What is to be done with the body, and noted of it.
    fn body(&self, headers: &HeaderMap, noted: &Noted) -> Option<Box<dyn Filter>> {
        let is_coded = headers.contains_key(CONTENT_ENCODING);
        let (mut leaks, mut misses, mut puts) = (Vec::new(), Vec::new(), Vec::new());
        let mut replaced = Vec::new();
        for (owner, secret) in self.set.all().enumerate() {
            let named = (owner, secret.name.clone());
            let is_place = secret.places.body && !is_coded && (self.tls || secret.plain_http);
            match (self.bound.get(owner), is_place) {
                (Some(true), true) => {
                    replaced.extend(pairs(owner, secret, headers));
                    puts.push(named);
                }
                (Some(true), false) => misses.push(named),
                _ => leaks.push(named),
            }
        }
        let mut filters: Vec<Box<dyn Filter>> = Vec::new();
        // It sees what the guest sent.
        if !(leaks.is_empty() && misses.is_empty()) {
            filters.push(Box::new(Watch {
                replacer: Replacer::new(Arc::clone(&self.set.disguises)),
                leaks,
                misses,
                noted: noted.clone(),
            }));
        }
        let table = Table::new(replaced);
        if !table.is_empty() {
            filters.push(Box::new(Put {
                replacer: Replacer::new(table),
                names: puts,
                noted: noted.clone(),
            }));
        }
        match filters.len() {
            0 | 1 => filters.pop(),
            _ => Some(Box::new(super::filter::Chain(filters))),
        }
    }
}

/// What is replaced in a body for a secret, by its media type.
fn pairs(owner: usize, secret: &Secret, headers: &HeaderMap) -> Vec<Replacement> {
    let (placeholder, value) = (secret.placeholder.as_bytes(), secret.value.as_bytes());
    let (finds, with) = match Media::of(headers) {
        Media::Json => (vec![json(placeholder)], json(value)),
        Media::Form => {
            let kept = ["-._~", "-._*", "-._~!'()*"];
            let forms = kept.iter().flat_map(|kept| {
                [true, false].map(|is_upper| percent(placeholder, kept, is_upper))
            });
            (forms.collect(), percent_all(value))
        }
        Media::Other => (Vec::new(), Zeroizing::new(value.to_vec())),
    };
    let plain = Zeroizing::new(placeholder.to_vec());
    let finds = finds.into_iter().chain([plain]);
    finds
        .map(|find| Replacement {
            find,
            with: with.clone(),
            owner,
        })
        .collect()
}

/// What a body is, as far as it matters here.
enum Media {
    Json,
    Form,
    Other,
}

impl Media {
    fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let text = String::from_utf8_lossy(value.unwrap_or_default()).to_ascii_lowercase();
        let essence = text.split(';').next().unwrap_or_default().trim();
        let (_, subtype) = essence.split_once('/').unwrap_or_default();
        let is_json = |part: &str| {
            let is_named = matches!(part, "json" | "ndjson" | "x-ndjson" | "jsonl");
            is_named || part.starts_with("x-amz-json")
        };
        match subtype {
            "x-www-form-urlencoded" => Self::Form,
            _ if is_json(subtype) || subtype.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

/// Breaks a body off in which there is the placeholder of a secret that is not for its
/// host, in any form, before the last byte of it is passed on.
pub(super) struct Watch {
    replacer: Replacer,
    /// Secrets that are not for the host: their numbers and names.
    leaks: Named,
    /// Those that are, but not in its body.
    misses: Named,
    noted: Noted,
}

/// Numbers and names of secrets.
type Named = Vec<(usize, String)>;

/// The names of those that were found.
fn found(names: &Named, is_hit: impl Fn(usize) -> bool) -> Vec<String> {
    let found = names.iter().filter(|(owner, _)| is_hit(*owner));
    found.map(|(_, name)| name.clone()).collect()
}

fn hits(replacer: &Replacer) -> impl Fn(usize) -> bool {
    let hits = replacer.hits();
    |owner| hits.get(owner).is_some_and(|hits| *hits > 0)
}

impl Watch {
    fn look(&self) -> Result<(), Broken> {
        self.refuse(hits(&self.replacer))
    }

    fn refuse(&self, is_hit: impl Fn(usize) -> bool) -> Result<(), Broken> {
        let missed = found(&self.misses, &is_hit);
        if !missed.is_empty() {
            self.noted.add(&SecretUse {
                missed,
                ..SecretUse::default()
            });
        }
        let leaked = found(&self.leaks, is_hit);
        match leaked.is_empty() {
            true => Ok(()),
            false => Err(Broken::Leak(leaked)),
        }
    }
}

/// Puts values into a body.
struct Put {
    replacer: Replacer,
    /// Whose: their numbers and names.
    names: Named,
    noted: Noted,
}

impl Put {
    fn note(&self) {
        let substituted = found(&self.names, hits(&self.replacer));
        if !substituted.is_empty() {
            self.noted.add(&SecretUse {
                substituted,
                ..SecretUse::default()
            });
        }
    }
}

impl Filter for Put {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let before = self.replacer.count();
        self.replacer.push(bytes, out)?;
        if self.replacer.count() > before {
            self.note();
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.replacer.finish(out)?;
        self.note();
        Ok(())
    }
}

impl Filter for Watch {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let before = (out.len(), self.replacer.count());
        self.replacer.push(bytes, out)?;
        if self.replacer.count() == before.1 {
            return Ok(());
        }
        self.look().inspect_err(|_| out.truncate(before.0))
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let before = out.len();
        self.replacer.finish(out)?;
        self.look().inspect_err(|_| out.truncate(before))
    }

    fn check(&self, text: &[u8]) -> Result<(), Broken> {
        let found = self.replacer.table().matches(text);
        let found: BTreeSet<_> = found.map(|(_, one)| one.owner).collect();
        self.refuse(|owner| found.contains(&owner))
    }

    fn keeps_length(&self) -> bool {
        true
    }
}

/// Takes values out of the headers of a response, and tells how often. A header that is named
/// after one is gone as a whole.
pub(super) fn scrub(table: &Table, headers: &mut HeaderMap) -> u64 {
    let named = headers
        .keys()
        .filter(|name| table.is_in_name(name.as_str()));
    let named: Vec<HeaderName> = named.cloned().collect();
    let mut count = u64::try_from(named.len()).unwrap_or(u64::MAX);
    for name in named {
        headers.remove(name);
    }
    for value in headers.values_mut() {
        let Some((scrubbed, times)) = table.replace(value.as_bytes()) else {
            continue;
        };
        count += times;
        // Placeholders are printable, so that it is one; with none the value is out as well.
        *value = HeaderValue::from_bytes(&scrubbed)
            .unwrap_or(HeaderValue::from_static("(a secret was here)"));
    }
    count
}

/// What asks for a part of a body: everywhere, before there was `Range`, and at Azure.
const RANGES: [&str; 3] = ["range", "request-range", "x-ms-range"];

/// Whether a request asks for a part of a body.
pub(super) fn has_range(headers: &HeaderMap) -> bool {
    RANGES.iter().any(|name| headers.contains_key(*name))
}

/// Takes parts out of a request with which a server would send parts of a body.
pub(super) fn without_range(headers: &mut HeaderMap) {
    for name in RANGES.iter().chain(&["if-range"]) {
        headers.remove(*name);
    }
}
