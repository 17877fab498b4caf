//! What a policy would have to allow, from what was seen of a guest that could reach
//! everything.

mod paths;

use std::collections::{BTreeMap, BTreeSet};

use flashpan_network::host::{Authority, Host};
use flashpan_network::policy::{Pattern, Rule, is_http, path};
use serde::Serialize;

use self::paths::Paths;
use crate::network_event::NetworkActivity;

/// Most hosts of which requests are told from each other. Of more the whole host is allowed.
const MAX_HOSTS: usize = 512;

/// Most refusals, and most names, that are kept.
const MAX_KEPT: usize = 256;

/// What was seen of a guest's network so far: [`Self::see`] what comes as an event, then
/// take what was [`Self::learned`].
///
/// All of it is what a guest does: it is for a person to read, who knows what the guest was
/// to do.
#[derive(Debug, Clone, Default)]
pub struct Learner {
    /// By host, with its port if that is not one of HTTP.
    requests: BTreeMap<String, Paths>,
    hosts: BTreeSet<String>,
    /// What allowed something already.
    own_hosts: BTreeSet<String>,
    own_rules: BTreeSet<String>,
    /// Names that were asked for.
    names: BTreeSet<String>,
    refused: BTreeMap<(String, String), Refused>,
    left_out: BTreeSet<String>,
    lost: u64,
}

/// What was refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refused {
    /// What: a host and port, or a name.
    pub target: String,
    /// Why; a stable word.
    pub code: String,
    /// What can be done about it.
    pub hint: String,
    /// How often.
    pub times: u64,
}

/// What would have to be allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Learned {
    /// Hosts, each with its port ([`Pattern`]).
    pub allowed_hosts: Vec<String>,
    /// Requests ([`Rule`]).
    pub rules: Vec<String>,
    /// Names that were asked for, of which nothing was wanted then.
    pub names_only: Vec<String>,
    /// What was refused or failed all the same: none of the above allows it.
    pub refused: Vec<Refused>,
    /// Requests, each its method and URL, that no rule is made for: their paths have a `*`,
    /// which in a rule means more than itself.
    pub left_out: Vec<String>,
    /// Events that are missing: they came faster than they were taken. What only these
    /// showed is not in here.
    pub lost: u64,
}

impl Learner {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// So many events are missing.
    pub fn lose(&mut self, number: u64) {
        self.lost = self.lost.saturating_add(number);
    }

    /// Takes in what is told of one connection, request or question.
    pub fn see(&mut self, activity: &NetworkActivity) {
        if activity.code.is_some() {
            self.refuse(activity);
        }
        // What failed was allowed, and has to be.
        let was_allowed = !activity.network.blocked;
        match activity.scheme.as_str() {
            "dns" if was_allowed && activity.code.is_none() => {
                if self.names.len() < MAX_KEPT {
                    self.names.insert(activity.network.host.clone());
                }
            }
            "dns" => {}
            _ if !was_allowed => {}
            _ if activity.code.is_none() && activity.rule.is_some() => {
                self.keep(activity.rule.as_deref().unwrap_or_default());
            }
            "http" | "https" => self.request(activity),
            // Whom it was for would have been said on it.
            "tcp" if activity.code.is_some() && is_of_http(activity) => {}
            "udp" => self.host(&format!("udp:{}", activity.network.host)),
            _ => self.host(&activity.network.host),
        }
    }

    /// What the policy had already is a part of what it has to have.
    fn keep(&mut self, text: &str) {
        if text.parse::<Rule>().is_ok() {
            self.own_rules.insert(text.to_owned());
        } else {
            self.own_hosts.insert(text.to_owned());
        }
    }

    fn host(&mut self, host: &str) {
        // A name that nobody could allow is none that was reached.
        if host.parse::<Pattern>().is_ok() && self.hosts.len() < MAX_HOSTS {
            self.hosts.insert(host.to_owned());
        }
    }

    fn request(&mut self, activity: &NetworkActivity) {
        let Some(Place { host, port, path }) = place(&activity.network.url) else {
            return;
        };
        // Rules mean both ports of HTTP unless they name another.
        let of_rules = match is_http(port) {
            true => host.to_string(),
            false => format!("{host}:{port}"),
        };
        let is_new = !self.requests.contains_key(&of_rules);
        if is_new && self.requests.len() >= MAX_HOSTS {
            return self.host(&format!("{host}:{port}"));
        }
        let paths = self.requests.entry(of_rules).or_default();
        let method = &activity.network.method;
        let has_rule = paths.add(&format!("{host}:{port}"), method, path.as_deref());
        if !has_rule && self.left_out.len() < MAX_KEPT {
            let url = without_query(&activity.network.url);
            self.left_out.insert(format!("{method} {url}"));
        }
    }

    fn refuse(&mut self, activity: &NetworkActivity) {
        let target = match activity.network.url.as_str() {
            "" => activity.network.host.clone(),
            url => without_query(url).to_owned(),
        };
        let code = activity.code.clone().unwrap_or_default();
        let key = (target.clone(), code.clone());
        if self.refused.len() >= MAX_KEPT && !self.refused.contains_key(&key) {
            return;
        }
        let host = &activity.network.host;
        let hint = match (activity.scheme.as_str(), code.as_str()) {
            // Nobody but the program knows why.
            ("tls", "authority_not_trusted" | "unknown_protocol") => format!(
                "it does not trust the VM's authority, so that its requests could not be looked \
                 into; if it may have the whole host: --allow-host {host}"
            ),
            _ => activity.hint.clone().unwrap_or_default(),
        };
        let refused = self.refused.entry(key).or_insert(Refused {
            target,
            code,
            hint,
            times: 0,
        });
        refused.times = refused.times.saturating_add(1);
    }

    /// What would have to be allowed for all that was seen.
    #[must_use]
    pub fn learned(&self) -> Learned {
        let mut hosts = self
            .hosts
            .union(&self.own_hosts)
            .cloned()
            .collect::<BTreeSet<_>>();
        let mut rules = Vec::from_iter(self.own_rules.iter().cloned());
        for (host, paths) in &self.requests {
            match paths.rules(host) {
                Some(of_host) => rules.extend(of_host),
                None => hosts.extend(paths.places().cloned()),
            }
        }
        let reached: BTreeSet<&str> = (hosts.iter().map(|host| bare(host)))
            .chain(self.requests.keys().map(|host| bare(host)))
            .collect();
        let is_reached = |name: &&String| {
            let mut patterns = self.own_hosts.iter().filter_map(|text| text.parse().ok());
            let name_of = name.parse().ok();
            let has = |pattern: Pattern| name_of.as_ref().is_some_and(|of| pattern.has_name(of));
            reached.contains(name.as_str()) || patterns.any(has)
        };
        let names_only = self.names.iter().filter(|name| !is_reached(name)).cloned();
        Learned {
            names_only: names_only.collect(),
            refused: self.refused.values().cloned().collect(),
            left_out: self.left_out.iter().cloned().collect(),
            lost: self.lost,
            allowed_hosts: hosts.into_iter().collect(),
            rules,
        }
    }
}

/// What a URL says.
struct Place {
    host: Host,
    port: u16,
    /// In its one form, if it has one.
    path: Option<String>,
}

fn place(url: &str) -> Option<Place> {
    let (scheme, rest) = url.split_once("://")?;
    let rest = without_query(rest);
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let authority: Authority = authority.parse().ok()?;
    Some(Place {
        host: authority.host,
        port: (authority.port).unwrap_or(if scheme == "http" { 80 } else { 443 }),
        path: path::normal(path),
    })
}

/// Whether it was sent to a port of HTTP.
fn is_of_http(activity: &NetworkActivity) -> bool {
    let destination = activity.destination;
    destination.is_some_and(|destination| is_http(destination.port()))
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// A host without the protocol and port of a pattern.
fn bare(host: &str) -> &str {
    let host = host.strip_prefix("udp:").unwrap_or(host);
    match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => bare,
        _ => host,
    }
}

#[cfg(test)]
mod tests;
