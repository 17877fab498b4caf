//! What a guest may reach, while it runs.

use flashpan_network::edit::{SecretError, Secrets};
use flashpan_network::policy::{Basis, Pattern, Policy, Target};
use flashpan_protocol::supervisor::{
    Answer, Explained, Hidden, MAX_PATTERNS, PolicyRequest, Reachable, Request,
};

use zeroize::Zeroizing;

use crate::api::{Config, SecretValue};
use crate::attach::unexpected;
use crate::error::{Error, Result};
use crate::network::{Network, Settings};
use crate::sandbox::{Sandbox, Way};
use crate::secret_event::{SecretActivity, SecretState};

impl Sandbox {
    /// What the guest may reach.
    ///
    /// # Errors
    /// As every request to an attached VM.
    pub async fn reachable(&self) -> Result<Reachable> {
        self.policy(PolicyRequest::Show).await
    }

    /// Lets the guest reach more hosts ([`Pattern`]) from now on. Blanks around a pattern
    /// do not count, empty ones are passed over, and so is what is allowed already.
    /// [`Reachable::changed`] has what is new.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: one is no pattern, there would be too many, or the VM has
    /// no network. Nothing is allowed then.
    pub async fn allow_hosts<I>(&self, patterns: I) -> Result<Reachable>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let patterns = patterns.into_iter().map(Into::into).collect();
        self.policy(PolicyRequest::Allow(patterns)).await
    }

    /// Takes back what was allowed: the very patterns. Connections and requests
    /// that may not be any more are ended. [`Reachable::changed`] has what is gone.
    ///
    /// # Errors
    /// As [`Self::reachable`].
    pub async fn disallow_hosts<I>(&self, patterns: I) -> Result<Reachable>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let patterns = patterns.into_iter().map(Into::into).collect();
        self.policy(PolicyRequest::Disallow(patterns)).await
    }

    /// What would become of a connection to a host (`HOST[:PORT]`, `udp:HOST:PORT`) or of a
    /// request for a URL.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: it is none of these.
    pub async fn explain(&self, method: &str, target: &str) -> Result<Explained> {
        let request = PolicyRequest::Explain {
            method: method.to_owned(),
            target: target.to_owned(),
        };
        match self.ask_policy(request).await? {
            Answer::Explained(explained) => Ok(*explained),
            _ => Err(unexpected()),
        }
    }

    /// Gives a secret another value, from the next request on. The value before it is still
    /// taken out of responses.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: there is no such secret, or the value makes no sense.
    pub async fn set_secret(&self, name: &str, value: &SecretValue) -> Result<()> {
        let request = PolicyRequest::SetSecret {
            name: name.to_owned(),
            value: Hidden(Zeroizing::new(value.expose().to_owned())),
        };
        match self.ask_policy(request).await? {
            Answer::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Takes a secret's value away: requests with its placeholder are refused from now on.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: there is no such secret.
    pub async fn revoke_secret(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        match self
            .ask_policy(PolicyRequest::RevokeSecret { name })
            .await?
        {
            Answer::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn policy(&self, request: PolicyRequest) -> Result<Reachable> {
        match self.ask_policy(request).await? {
            Answer::Policy(reachable) => Ok(*reachable),
            _ => Err(unexpected()),
        }
    }

    /// Asks whoever decides: here, or in the VM's supervisor.
    pub(crate) async fn ask_policy(&self, request: PolicyRequest) -> Result<Answer> {
        match &self.way {
            Way::Attached(attachment) => {
                let mut asked = attachment.ask(&Request::Policy(request)).await?;
                asked.answer().await
            }
            Way::Own { .. } => match request {
                PolicyRequest::Explain { method, target } => {
                    let gateway = self.shared.gateway();
                    let policy = gateway.map(|gateway| gateway.policy());
                    // A script takes its time.
                    let explain = move || explain(policy.as_deref(), &method, &target);
                    let explained = tokio::task::spawn_blocking(explain).await;
                    explained.unwrap_or_else(|_| Err(unexpected()))
                }
                request => self.decide(&request),
            },
        }
    }

    fn decide(&self, request: &PolicyRequest) -> Result<Answer> {
        let gateway = self.shared.gateway();
        if let Some(secrets) = self.shared.secrets()
            && let Some(changed) = change(secrets, request)
        {
            let activity = changed.map_err(|error| no_secret(&error))?;
            self.shared.events.secret(activity);
            return Ok(Answer::Done);
        }
        let Some(gateway) = gateway else {
            return match request {
                PolicyRequest::Show => Ok(Answer::Policy(Box::default())),
                _ => Err(Error::config("network", "the VM has none")),
            };
        };
        let changed = match request {
            // These were answered, and the first is not asked here.
            PolicyRequest::Explain { .. }
            | PolicyRequest::SetSecret { .. }
            | PolicyRequest::RevokeSecret { .. }
            | PolicyRequest::Show => Vec::new(),
            PolicyRequest::Allow(patterns) => {
                let patterns = parsed(patterns)?;
                gateway.change(|policy| allow(policy, patterns))?
            }
            PolicyRequest::Disallow(patterns) => {
                gateway.change(|policy| disallow(policy, patterns))
            }
        };
        let mut reachable = shown(&gateway.policy());
        reachable.changed = changed;
        Ok(Answer::Policy(Box::new(reachable)))
    }
}

/// Changes a secret, if that is what is asked for. With what is told of it.
fn change(
    secrets: &Secrets,
    request: &PolicyRequest,
) -> Option<std::result::Result<SecretActivity, SecretError>> {
    let (name, state, changed) = match request {
        PolicyRequest::SetSecret { name, value } => {
            (name, SecretState::Set, secrets.set(name, value.0.clone()))
        }
        PolicyRequest::RevokeSecret { name } => (name, SecretState::Revoked, secrets.revoke(name)),
        _ => return None,
    };
    let secret = name.clone();
    Some(changed.map(|()| SecretActivity {
        secret,
        state,
        why: None,
    }))
}

fn no_secret(error: &SecretError) -> Error {
    Error::config("network.secrets", error.to_string())
}

fn parsed(patterns: &[String]) -> Result<Vec<Pattern>> {
    let texts = patterns.iter().map(|text| text.trim());
    let parse = |text: &str| {
        let wrong = |error: flashpan_network::policy::PatternError| {
            Error::config("network.allowed_hosts", error.to_string())
        };
        text.parse().map_err(wrong)
    };
    texts.filter(|text| !text.is_empty()).map(parse).collect()
}

fn allow(policy: &mut Policy, patterns: Vec<Pattern>) -> Result<Vec<String>> {
    let mut added: Vec<Pattern> = Vec::new();
    for pattern in patterns {
        let is_same = |other: &Pattern| other.as_str() == pattern.as_str();
        if !policy.allow.iter().chain(&added).any(is_same) {
            added.push(pattern);
        }
    }
    if policy.allow.len() + added.len() > MAX_PATTERNS {
        let why = format!("there would be more than {MAX_PATTERNS}");
        return Err(Error::config("network.allowed_hosts", why));
    }
    let texts = added.iter().map(ToString::to_string).collect();
    policy.allow.extend(added);
    Ok(texts)
}

fn disallow(policy: &mut Policy, patterns: &[String]) -> Vec<String> {
    let meant = patterns.iter().map(|text| text.trim().parse::<Pattern>());
    let meant: Vec<Pattern> = meant.filter_map(Result::ok).collect();
    let is_meant = |pattern: &Pattern| meant.iter().any(|of| of.is_same(pattern));
    let gone = policy.allow.extract_if(.., |pattern| is_meant(pattern));
    gone.map(|pattern| pattern.to_string()).collect()
}

fn shown(policy: &Policy) -> Reachable {
    fn texts<T: ToString>(of: &[T]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }
    Reachable {
        has_network: true,
        open: policy.open,
        private: policy.private,
        allowed: texts(&policy.allow),
        denied: texts(&policy.deny),
        rules: texts(&policy.rules),
        changed: Vec::new(),
    }
}

/// What would become of a connection or request of a guest that this configuration and
/// network are for, as [`Sandbox::explain`].
///
/// # Errors
/// [`Error::InvalidConfig`]: a pattern, rule, host or URL is none.
pub fn explain_offline(
    config: &Config,
    network: Network,
    method: &str,
    target: &str,
) -> Result<Explained> {
    let settings = Settings::of(config, network.of(config));
    let policy = settings.policy()?;
    let policy = Some(&policy).filter(|_| settings.network != Network::None);
    match explain(policy, method, target)? {
        Answer::Explained(explained) => Ok(*explained),
        _ => Err(unexpected()),
    }
}

/// The word for what becomes of connections without a network.
const NO_NETWORK: &str = "no_network";
const NO_NETWORK_HINT: &str = "start the VM without --network none or --no-network, and without \
     no_network in its configuration";

/// The word for what becomes of connections to name servers.
const NAME_SERVER: &str = "name_server";
const NAME_SERVER_HINT: &str =
    "flashpan answers there itself, and looks up only names that may be reached";

/// What a policy would do with a host or URL. There is none without a network.
fn explain(policy: Option<&Policy>, method: &str, target: &str) -> Result<Answer> {
    let wrong = |error: flashpan_network::policy::TargetError| {
        Error::config("host or URL", error.to_string())
    };
    let target: Target = target.parse().map_err(wrong)?;
    let mut explained = Explained {
        target: target.to_string(),
        ..Explained::default()
    };
    let Some(policy) = policy else {
        explained.code = Some(NO_NETWORK.to_owned());
        explained.hint = Some(NO_NETWORK_HINT.to_owned());
        return Ok(Answer::Explained(Box::new(explained)));
    };
    let explanation = policy.explain(&target, method);
    explained.inspected = explanation.inspected;
    match explanation.decision {
        Ok(basis) => {
            explained.allowed = true;
            match basis {
                Basis::Rule(rule) => explained.rule = Some(rule),
                Basis::Names => {
                    explained.code = Some(NAME_SERVER.to_owned());
                    explained.hint = Some(NAME_SERVER_HINT.to_owned());
                }
                Basis::Open => {}
            }
        }
        Err(denial) => {
            explained.code = Some(denial.code.to_string());
            explained.hint = Some(denial.hint());
            explained.rule = denial.rule;
        }
    }
    Ok(Answer::Explained(Box::new(explained)))
}

#[cfg(test)]
mod tests {
    use flashpan_network::edit::Secret;

    use super::*;

    #[test]
    fn hosts_are_added_once_and_removed_by_their_text() {
        let mut policy = Policy::default();
        let texts = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>()
        };
        let patterns = parsed(&texts(&[" a.test ", "", "b.test", "a.test"])).unwrap();
        assert_eq!(allow(&mut policy, patterns).unwrap(), ["a.test", "b.test"]);
        let again = parsed(&texts(&["b.test", "c.test:22"])).unwrap();
        assert_eq!(allow(&mut policy, again).unwrap(), ["c.test:22"]);
        let gone = disallow(
            &mut policy,
            &texts(&["a.test", " c.test:22", "c.test", "a.test"]),
        );
        assert_eq!(gone, ["a.test", "c.test:22"]);
        assert_eq!(shown(&policy).allowed, ["b.test"]);
        assert!(parsed(&texts(&["a.test", "a b"])).is_err());
    }

    #[test]
    fn a_secret_that_somebody_changed_is_told_of_without_its_value() {
        let hosts = vec!["a.test".parse().unwrap()];
        let value = |text: &str| Zeroizing::new(text.to_owned());
        let secret = Secret::new("KEY", value("hunter22"), "PLACEHOLDER", hosts);
        let secrets = Secrets::new(vec![secret]).unwrap();
        let set = |name: &str, text: &str| PolicyRequest::SetSecret {
            name: name.to_owned(),
            value: Hidden(value(text)),
        };
        let revoke = PolicyRequest::RevokeSecret {
            name: "KEY".to_owned(),
        };
        for (request, state) in [
            (set("KEY", "hunter33"), r#""set""#),
            (revoke, r#""revoked""#),
        ] {
            let activity = change(&secrets, &request).unwrap().unwrap();
            let json = serde_json::to_string(&activity).unwrap();
            assert_eq!(json, format!(r#"{{"secret":"KEY","state":{state}}}"#));
        }
        // What did not happen is not told.
        assert!(change(&secrets, &set("OTHER", "x")).unwrap().is_err());
        assert!(change(&secrets, &set("KEY", "")).unwrap().is_err());
        assert!(change(&secrets, &PolicyRequest::Show).is_none());
    }

    #[test]
    fn a_policy_does_not_grow_for_ever() {
        let mut policy = Policy::default();
        let pattern = |n: usize| format!("h{n}.test").parse().unwrap();
        let patterns = (0..=MAX_PATTERNS).map(pattern).collect();
        assert!(allow(&mut policy, patterns).is_err());
        assert!(policy.allow.is_empty());
    }
}
